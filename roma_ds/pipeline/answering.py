"""Training samples that are judged by the answers that the pretrained model generates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from roma_ds.collect.outcomes import Generated, shares
from roma_ds.comm import agreement
from roma_ds.config import RunConfig
from roma_ds.data.learned import (
    generated_datasets,
    generated_rows,
    refuse_useless,
    stop_texts,
    training_tokens,
)
from roma_ds.data.sample import Sample
from roma_ds.data.store import load_samples
from roma_ds.evaluation.judges import SHOWN, Judges, Trial
from roma_ds.pipeline.session import Session
from roma_ds.sequences.encoding import Prompt
from roma_ds.storage import fingerprint
from roma_ds.writing.generation import Asked, Writer, Written
from roma_ds.writing.kept import KeptAnswers
from roma_ds.writing.sampling import draw_of


def collect_inputs(session: Session) -> dict[str, Any]:
    """All that the collection depends on. A collective."""
    run = session.run
    inputs = {
        "data": session.fingerprint(session.folders.record("data")),
        **session.model_inputs,
        "tokens": run.roma.tokens,
        "max_tokens": run.data.max_tokens,
    }
    if generated_datasets(run):
        with agreement(session.world):
            judges = Judges(run).identity() if session.world.is_first else {}
        inputs["judges"] = session.world.from_first(judges)
        inputs["right_share"] = run.collect.right_share
        inputs["generate"] = _writing(run)
    return inputs


def _writing(run: RunConfig) -> dict[str, Any]:
    """Settings that the texts depend on."""
    collect = run.collect
    return {
        "samples": collect.samples,
        "temperature": collect.temperature,
        "seed": collect.seed if collect.temperature else None,
        "max_new_tokens": collect.max_new_tokens,
        "stop": {task: list(stop_texts(run, task)) for task in training_tokens(run)},
    }


def try_judges(session: Session) -> None:
    """Judge the samples' own answers, before anything expensive is made of them. A collective.

    Raises UserError where the judge of a dataset fails, or finds no answer to judge by, and where the run
    cannot generate.
    """
    run = session.run
    with agreement(session.world):
        refuse_useless(run)
    if not generated_datasets(run):
        return
    inputs, record = collect_inputs(session), session.folders.record("collect")
    with agreement(session.world):
        if session.world.is_first and record.why_stale(inputs) is not None:
            judges, samples = Judges(run), load_samples(session.folders.stage("data") / "samples.parquet")
            for line in told(run, judges, judges.try_on(samples)):
                session.say(f"judge: {line}")


def told(run: RunConfig, judges: Judges, trial: Trial) -> Iterator[str]:
    """How answers are judged, in lines; `trial`: of the samples' own answers."""
    for key, judge in judges.by_dataset.items():
        yield f"{'/'.join(key)}: a sample is answered right by {how_judged(run, judge)}"
    if trial.wrong:
        shown = ", ".join(trial.wrong[:SHOWN])
        yield (
            f"{len(trial.wrong)} of {trial.samples} samples would be judged wrong if the model wrote their "
            f"own answers: {shown}"
        )


def how_judged(run: RunConfig, judge: str) -> str:
    """In words, what counts among how many answers."""
    collect = run.collect
    kind = {
        "final": "the final answer",
        "number": "the final number",
        "letter": "the final letter",
        "text": "the final text",
    }
    what = kind.get(judge, judge.rpartition("/")[2])
    if not collect.temperature:
        return f"{what} of what the model writes (most likely tokens)"
    drawn = f"at temperature {collect.temperature:g}, at least {100 * collect.right_share:g}% of them right"
    return f"{what} of {collect.samples} drawn answers ({drawn})"


def kept_folder(session: Session) -> Path:
    """Where answers lie until the collection is done."""
    return session.folders.stage("collect") / "unfinished-answers"


def generated_answers(
    session: Session, samples: Sequence[Sample], prompts: Sequence[Prompt], inputs: dict[str, Any]
) -> list[Generated | None] | None:
    """By sample the pretrained model's answers, judged, None where likelihood judges; whole on rank 0.

    inputs: of the collection. A collective.
    """
    run, world = session.run, session.world
    rows = generated_rows(run, samples)
    if not rows:
        return None
    count, seed = run.collect.samples, run.collect.seed
    asked = [
        Asked(
            prompts[row].prompt,
            stop_texts(run, samples[row].task),
            draw=draw_of(seed, samples[row].id, number),
        )
        for row in rows
        for number in range(count)
    ]
    texts = {key: value for key, value in inputs.items() if key not in ("judges", "right_share", "tokens")}
    kept = KeptAnswers(kept_folder(session), fingerprint.of_json(texts), run.collect.save_every)
    model = session.plain()
    model.use_routers({})
    ends = session.chat.end_tokens if session.chat is not None else ()
    writer = Writer(model, session.tokenizer, run.collect.max_new_tokens, ends, run.collect.temperature)
    found = writer.write(asked, run.eval.batch_size, "answers", kept)
    written: list[Written] = world.from_first(found)
    mine: dict[int, Generated] = {}
    with agreement(world):
        judges = Judges(run)
        for place in world.share(len(rows)):
            own = written[place * count : (place + 1) * count]
            mine[rows[place]] = _judged(judges, samples[rows[place]], own)
    gathered = world.gather_to_first(mine)
    if gathered is None:
        return None
    judged = {row: one for part in gathered for row, one in part.items()}
    return [judged.get(row) for row in range(len(samples))]


def _judged(judges: Judges, sample: Sample, written: Sequence[Written]) -> Generated:
    answers = judges.judge(sample, [one.text for one in written])
    return Generated(
        tuple(one.text for one in written),
        tuple(one.extracted for one in answers),
        tuple(one.correct for one in answers),
        tuple(one.predicted for one in answers),
        tuple(one.tokens for one in written),
        tuple(one.ended for one in written),
    )


def judged_facts(
    run: RunConfig, samples: Sequence[Sample], generated: Sequence[Generated | None]
) -> dict[str, dict[str, Any]]:
    """By dataset how its samples are judged, and the shares of right, unread and unfinished answers."""
    facts = {}
    for key, judge in generated_datasets(run).items():
        own = [
            one
            for sample, one in zip(samples, generated, strict=True)
            if one is not None and (sample.task, sample.split) == key
        ]
        if own:
            facts["/".join(key)] = {"judge": judge, "how": how_judged(run, judge), **shares(own)}
    return facts


def collected_line(name: str, facts: dict[str, Any]) -> str:
    """One line of a dataset's answers, from `judged_facts`."""
    told_shares = f"{100 * facts['right']:.1f}% of {facts['answers']} answers right"
    unread = f"{100 * facts['unread']:.1f}% could not be read and count as wrong"
    cut = f"{100 * facts['unfinished']:.1f}% were cut off by collect.max_new_tokens"
    return f"{name}: judged by {facts['how']}: {told_shares}, {unread}, {cut}"
