"""What a run of a model will need: memory of a rank in every setting, traffic, disk, operations, time."""

from __future__ import annotations

from dataclasses import dataclass

from roma_ds.planner.cache_size import cache_bytes
from roma_ds.planner.model_sizes import ModelSizes
from roma_ds.planner.operations import model_pass, training_step
from roma_ds.planner.pass_row import PassRow, pass_rows
from roma_ds.planner.question import Question
from roma_ds.planner.recommendation import Recommendation, recommend
from roma_ds.planner.training_row import TrainingRow, training_row


@dataclass(frozen=True)
class Forecast:
    """The answer."""

    trainable: int
    suffix: int
    """Parameters of the part that training holds with the prefix cache."""
    cache_bytes: int
    """The prefix cache on disk."""
    token_bytes: int
    """Of each token in it."""
    hidden_bytes: int
    """Of these, what one vector of hidden states takes; less where a model hands more from layer to layer."""
    collection_operations: float
    epoch_operations: float
    """With the prefix cache where there is one."""
    epoch_operations_uncached: float
    training: tuple[TrainingRow, ...]
    passes: tuple[PassRow, ...]
    recommendation: Recommendation


def forecast(model: ModelSizes, question: Question) -> Forecast:
    """Everything that can be said from sizes alone. No weights, no device."""
    first = min(question.layers)
    marked = model.training(question.layers)
    suffix = marked.suffix(first)
    lengths = [question.length]
    kept = model.entering_bytes(first, question.setting.itemsize)
    once = question.samples * model_pass(model, lengths)
    epochs = {
        cached: question.samples * training_step(model, first, lengths, cached=cached).total
        for cached in (True, False)
    }
    rows = tuple(
        training_row(suffix if cached else marked, question, stage, cached, epochs[cached])
        for cached in ((True, False) if question.cacheable else (False,))
        for stage in range(4)
    )
    passes = tuple(pass_rows(model, question, once))
    return Forecast(
        trainable=marked.trained,
        suffix=suffix.total,
        cache_bytes=cache_bytes(question.tokens, question.samples, kept) if question.cacheable else 0,
        token_bytes=kept,
        hidden_bytes=model.hidden * question.setting.itemsize,
        collection_operations=once,
        epoch_operations=epochs[question.cacheable],
        epoch_operations_uncached=epochs[False],
        training=rows,
        passes=passes,
        recommendation=recommend(model, suffix if question.cacheable else marked, question, rows, once),
    )
