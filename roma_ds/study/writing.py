"""Answers that a cell's network writes, where tasks ask for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from roma_ds.data.sample import Sample
from roma_ds.data.tasks import new_tokens_of
from roma_ds.evaluation.stage import judged
from roma_ds.pipeline.measuring import written_answers
from roma_ds.pipeline.session import Session
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.scores import Scores
from roma_ds.writing.decoding import Decoder


def with_written_answers(
    session: Session,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    scores: Scores | None,
    decoder: Callable[[], Decoder],
    title: str,
) -> tuple[Scores | None, dict[str, Any]]:
    """The scores, where tasks of `samples` are generated with what the written answers say; and facts.

    A collective of the decoder's ranks, complete where `scores` is given. decoder: made when it is needed.
    The facts are `written`, columns of the samples, `unfinished`, by generated task how many answers were cut
    off, and `unread`, the share in which no answer was found; none where nothing is generated.
    """
    generated = [task for task in new_tokens_of(session.run) if any(one.task == task for one in samples)]
    if not generated:
        return scores, {}
    written = written_answers(
        decoder(), session.run, session.tokenizer, samples, prompts, f"write {title}", session.chat
    )
    if scores is None or written is None:
        return None, {}
    cut = [one.task for one, text in zip(samples, written, strict=True) if text and not text.ended]
    if cut:
        limit = session.run.eval.max_new_tokens
        session.say(f"write {title}: {len(cut)} answers were cut off at {limit} tokens (eval.max_new_tokens)")
    scores, columns = judged(samples, scores, written, session.run.eval.answers)
    found: dict[str, list[bool]] = {task: [] for task in generated}
    for sample, extracted in zip(samples, columns["extracted"], strict=True):
        if extracted is not None:
            found[sample.task].append(bool(extracted))
    return scores, {
        "written": columns,
        "unfinished": {task: cut.count(task) for task in generated},
        "unread": {task: some.count(False) / len(some) for task, some in found.items() if some},
    }
