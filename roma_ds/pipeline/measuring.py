"""What evaluations share, and how training samples are judged by answers that the base model generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roma_ds.collect.outcomes import Generated
from roma_ds.comm import agreement
from roma_ds.config import RunConfig
from roma_ds.data.chat import ChatTemplate
from roma_ds.data.learned import (
    generated_datasets,
    generated_rows,
    refuse_useless,
    stop_texts,
    training_tokens,
)
from roma_ds.data.sample import Sample
from roma_ds.data.store import load_samples
from roma_ds.data.tasks import new_tokens_of
from roma_ds.evaluation.judges import Judges, told
from roma_ds.pipeline.folders import Folders
from roma_ds.pipeline.session import Session
from roma_ds.sequences.encoding import Prompt
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import read_json
from roma_ds.writing.decoding import Decoder
from roma_ds.writing.generation import Asked, Writer, Written
from roma_ds.writing.kept import KeptAnswers
from roma_ds.writing.sampling import draw_of


def scoring_inputs(run: RunConfig) -> dict[str, Any]:
    """What of the config decides how answers count; prompts are in the data stage's fingerprint."""
    inputs: dict[str, Any] = {
        "max_tokens": run.data.max_tokens,
        "scoring": run.eval.scoring,
        "shots": run.eval.shots,
    }
    if generated := new_tokens_of(run):
        inputs["generate"] = {
            "max_new_tokens": generated,
            "stop": list(run.eval.stop),
            "answers": run.eval.answers,
        }
    return inputs


def evaluated_rows(folders: Folders) -> dict[str, int]:
    """Rows in the split of each task, used or not, from the data stage's manifest."""
    manifest = read_json(folders.stage("data") / "manifest.json")
    return {entry["dataset"]: entry["rows"] for entry in manifest["evaluation"]["datasets"]}


def written_answers(
    model: Decoder,
    run: RunConfig,
    tokenizer: Any,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    title: str,
    chat: ChatTemplate | None = None,
) -> list[Written | None] | None:
    """The model's own answers to the prompts whose task asks for them, None for others; on rank 0.

    chat: what wrote the prompts, if anything; its end of a turn ends an answer. A collective.
    """
    rows = [row for row, sample in enumerate(samples) if sample.task in new_tokens_of(run)]
    anywhere = run.eval.answers != "roma"
    asked = [Asked(prompts[row].prompt, stop_texts(run, samples[row].task), anywhere) for row in rows]
    ends = chat.end_tokens if chat is not None else ()
    writer = Writer(model, tokenizer, run.eval.max_new_tokens, ends)
    written = writer.write(asked, run.eval.batch_size, title)
    if written is None:
        return None
    by_row = dict(zip(rows, written, strict=True))
    return [by_row.get(row) for row in range(len(samples))]


def say_accuracies(say: Callable[[str], None], name: str, facts: Mapping[str, Any]) -> None:
    """One line: the average, and where there are several tasks each of them."""
    tasks: Mapping[str, float] = facts["tasks"]
    each = ", ".join(f"{task} {100 * accuracy:.2f}%" for task, accuracy in tasks.items())
    say(
        f"eval {name}: average accuracy {100 * facts['average']:.2f}%"
        + (f" ({each})" if len(tasks) > 1 else "")
    )
    if unread := {task: share for task, share in facts.get("unread", {}).items() if share}:
        each = ", ".join(f"{task} {100 * share:.2f}%" for task, share in unread.items())
        say(f"eval {name}: no answer could be read in {each} of the generated texts, which count as wrong")


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
    if not generated_datasets(run):
        return
    with agreement(session.world):
        refuse_useless(run)
    inputs, record = collect_inputs(session), session.folders.record("collect")
    with agreement(session.world):
        if session.world.is_first and record.why_stale(inputs) is not None:
            judges, samples = Judges(run), load_samples(session.folders.stage("data") / "samples.parquet")
            for line in told(run, judges, judges.try_on(samples)):
                session.say(f"judge: {line}")


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
    model = session.decoder({})
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
