"""Answers that a cell's network writes, where tasks ask for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roma_ds.backbone.decoding import Decoder
from roma_ds.backbone.encoding import Prompt
from roma_ds.backbone.scores import Scores
from roma_ds.data.sample import Sample
from roma_ds.data.tasks import new_tokens_of
from roma_ds.evaluation.stage import judged
from roma_ds.pipeline.measuring import written_answers
from roma_ds.pipeline.session import Session


def with_written_answers(
    session: Session,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    scores: Scores | None,
    decoder: Callable[[], Decoder],
    title: str,
) -> Scores | None:
    """The scores, where tasks of `samples` are generated with what the written answers say.

    A collective of the decoder's ranks, complete where `scores` is given. decoder: made when it is needed.
    """
    if not any(sample.task in new_tokens_of(session.run) for sample in samples):
        return scores
    written = written_answers(decoder(), session.run, session.tokenizer, samples, prompts, f"write {title}")
    if scores is None or written is None:
        return None
    if unfinished := sum(one is not None and not one.ended for one in written):
        limit = session.run.eval.max_new_tokens
        session.say(
            f"write {title}: {unfinished} answers were cut off at {limit} tokens (eval.max_new_tokens)"
        )
    return judged(samples, scores, written)[0]
