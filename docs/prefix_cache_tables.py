"""Prints the tables of docs/prefix-cache.md: `python docs/prefix_cache_tables.py`.

Weights and operations are those of `roma_ds/planner/`, counted from the published configs: matrix products
alone, two operations a multiplication and addition.

Shapes: L layers of which the last n are trained, H hidden, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

from roma_ds.families import detect, published
from roma_ds.planner.memory import BYTES, Setting, stream_bytes
from roma_ds.planner.model_sizes import ModelSizes, sizes_of
from roma_ds.planner.operations import layer_forward, layer_products, model_pass, training_step

TRAINED, LENGTH, EPOCHS = 5, 256, 3
ITEM = BYTES["bfloat16"]
GB = 1e9
MILLION = 10**6
DEVICE = 100e12
"""Operations a second of an imagined device."""
MODELS = {
    "OLMoE-1B-7B": "olmoe-1b-7b",
    "DeepSeekMoE-16B": "deepseekmoe-16b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen3-235B-A22B": "qwen3-235b-a22b",
}


@cache
def sizes(name: str) -> ModelSizes:
    """Of a published model."""
    import torch
    from transformers import AutoModelForCausalLM

    config = published.config(name)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    return sizes_of(network, detect(network))


def first_trained(model: ModelSizes) -> int:
    """Number of the first layer whose router learns."""
    return model.layers - TRAINED


def all_rows(model: ModelSizes, logits: int, cached: bool) -> float:
    """Operations of a step over one sequence whose last layer runs all tokens, the head `logits` of them."""
    step = training_step(model, first_trained(model), [LENGTH], LENGTH, cached)
    return step.total - 4.0 * model.head * (LENGTH - logits)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def by_depth() -> str:
    """The formula alone."""
    rows = []
    for layers in (16, 28, 48, 94):
        passes = layers + TRAINED - 1
        fed, row_fed = 2 * TRAINED - 1, 2 * TRAINED - 3
        jobs = [(layers + EPOCHS * runs * passes) / (layers + EPOCHS * runs * row_fed) for runs in (1, 2)]
        ratios = (f"{ratio:.1f}" for ratio in (passes / fed, passes / row_fed, *jobs))
        rows.append((layers, passes, fed, row_fed, *ratios))
    head = (
        "L",
        "Trainer",
        "suffix",
        "rows only",
        "Trainer / suffix",
        "Trainer / rows only",
        "job, 1 run",
        "job, 2 runs",
    )
    return table(head, rows)


def by_model() -> str:
    """Operations a token."""
    rows = []
    for title, name in MODELS.items():
        model = sizes(name)
        last = model.layers - 1
        one = layer_forward(model, last, LENGTH)
        c = LENGTH * layer_products(model, last).every / one
        rival, users = (all_rows(model, logits, cached=False) for logits in (1, LENGTH))
        whole = all_rows(model, 1, cached=True)
        ours = training_step(model, first_trained(model), [LENGTH]).total
        once = model_pass(model, [LENGTH])
        job = (once + EPOCHS * rival) / (once + EPOCHS * ours)
        numbers = [f"{value / LENGTH / 1e9:.2f}" for value in (one, users, rival, whole, ours)]
        ratios = [f"{ratio:.1f}" for ratio in (rival / whole, rival / ours, users / ours, job)]
        rows.append((title, model.layers, f"{c:.2f}", *numbers, *ratios))
    head = (
        "model",
        "L",
        "c",
        "one layer",
        "Trainer, all logits",
        "Trainer",
        "suffix",
        "rows only",
        "Trainer / suffix",
        "Trainer / rows only",
        "all logits / rows only",
        f"job of {EPOCHS} epochs",
    )
    return table(head, rows)


def on_disk() -> str:
    """Bytes of the cache, and what reading them must be worth."""
    rows = []
    for title, name in MODELS.items():
        model = sizes(name)
        a_token = model.hidden * ITEM
        below = range(first_trained(model))
        saved = sum(layer_forward(model, layer, LENGTH) for layer in below) / LENGTH
        rows.append(
            (
                title,
                model.hidden,
                a_token,
                f"{a_token * MILLION / GB:.1f} GB",
                f"{2 * a_token * MILLION / GB:.1f} GB",
                f"{saved / 1e9:.2f}",
                f"{a_token * DEVICE / saved / 1e6:.0f} MB/s",
            )
        )
    head = (
        "model",
        "H",
        "bytes a token",
        "a million tokens",
        "in float32",
        "10^9 operations saved a token",
        "rate at 10^14 operations a second",
    )
    return table(head, rows)


def moved_and_held() -> str:
    """Weights on a rank, and gathered in a step."""
    rows = []
    for title, name in MODELS.items():
        model = sizes(name)
        whole = model.total * ITEM
        part = model.suffix(first_trained(model)).total * ITEM
        rows.append(
            (
                title,
                f"{whole / GB:.1f}",
                f"{part / GB:.1f}",
                f"{whole / part:.1f}",
                f"{(whole + part) / GB:.1f}",
                f"{2 * part / GB:.1f}",
                f"{(whole + part) / part / 2:.1f} to {(whole + part) / part:.1f}",
            )
        )
    head = (
        "model",
        "whole network W",
        "suffix S",
        "W / S",
        "W + S",
        "2 S",
        "ratio, suffix gathered twice or once",
    )
    return table(head, rows)


def streamed() -> str:
    """Bound of the stream engine's memory, and its traffic."""
    rows = []
    for title, name in MODELS.items():
        model = sizes(name)
        two = stream_bytes(model, Setting(zero_stage=0, tokens=0), 0).weights
        states = model.hidden * ITEM * MILLION
        rows.append(
            (
                title,
                f"{model.total * ITEM / GB:.1f}",
                f"{two / GB:.1f}",
                f"{states / GB:.1f}",
                f"{2 * states / GB:.1f}",
                f"{model.layers * states / GB:.0f}",
            )
        )
    head = (
        "model",
        "read from the checkpoint",
        "two steps in memory",
        "hidden states of a million tokens",
        "room on disk beyond the budget",
        "written, and read as much",
    )
    return table(head, rows)


def tables() -> list[str]:
    """All of them, in the order of the page."""
    return [by_depth(), by_model(), on_disk(), moved_and_held(), streamed()]


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables()) + "\n")
