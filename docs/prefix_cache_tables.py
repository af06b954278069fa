"""Prints the tables of docs/prefix-cache.md: `python docs/prefix_cache_tables.py`.

Operations are counted as in benchmarks/flops.py: matrix products alone, two operations a multiplication and
addition. Frozen weights get no gradient; the gradient of a product's input costs as much as the product.

Shapes: L layers of which the last n are trained, H hidden, V vocabulary.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

TRAINED, LENGTH, EPOCHS = 5, 256, 3
BYTES = 2
"""A bfloat16 number."""
GB = 1e9
DEVICE = 100e12
"""Operations a second of an imagined device."""


@dataclass(frozen=True)
class Model:
    """What decides operations and bytes."""

    name: str
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    experts: int
    used: int
    """Experts that a token goes through, shared ones too."""
    shared: int
    expert_width: int
    vocabulary: int
    dense: tuple[int, ...] = ()
    """Widths of dense layers, which come first."""

    @property
    def queries(self) -> int:
        """Width of queries, and of what the output product reads."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of keys, and of values."""
        return self.key_value_heads * self.head_width

    def layer_parameters(self, layer: int) -> int:
        """Weights of one decoder layer but for its norms."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        if layer < len(self.dense):
            return attention + 3 * self.hidden * self.dense[layer]
        experts = (self.experts + self.shared) * 3 * self.hidden * self.expert_width
        return attention + experts + self.hidden * self.experts

    @property
    def end(self) -> int:
        """Weights of the head, and of the embedding."""
        return self.hidden * self.vocabulary

    def parameters(self, first: int = 0, embedding: bool = True) -> int:
        """Weights from layer `first` to the head."""
        layers = sum(self.layer_parameters(layer) for layer in range(first, self.layers))
        return layers + self.end * (2 if embedding else 1)

    def products(self, layer: int) -> dict[str, float]:
        """Operations a token of the products with weights in one layer."""
        dense = layer < len(self.dense)
        width = self.dense[layer] if dense else self.used * self.expert_width
        return {
            "query": 2.0 * self.hidden * self.queries,
            "key_value": 4.0 * self.hidden * self.keys,
            "output": 2.0 * self.queries * self.hidden,
            "router": 0.0 if dense else 2.0 * self.hidden * self.experts,
            "experts": 6.0 * self.hidden * width,
        }

    def attention(self, length: int) -> float:
        """Operations of one sequence's scores and weighted values in one layer."""
        return 2.0 * self.queries * length * (length + 1)

    def forward(self, layer: int, length: int) -> float:
        """Operations of a layer on one sequence."""
        return length * sum(self.products(layer).values()) + self.attention(length)

    def backward(self, layer: int, length: int) -> float:
        """The same of the gradients that go through a trained layer."""
        products = self.products(layer)
        return length * (sum(products.values()) + products["router"]) + 2 * self.attention(length)


MODELS = (
    Model("OLMoE-1B-7B", 16, 2048, 16, 16, 128, 64, 8, 0, 1024, 50304),
    Model("DeepSeekMoE-16B", 28, 2048, 16, 16, 128, 64, 8, 2, 1408, 102400, (10944,)),
    Model("Qwen3-30B-A3B", 48, 2048, 32, 4, 128, 128, 8, 0, 768, 151936),
    Model("Qwen3-235B-A22B", 94, 4096, 64, 4, 128, 128, 8, 0, 1536, 151936),
)


def collection(model: Model, length: int) -> float:
    """Operations of one forward pass over a sequence, head at one position."""
    return sum(model.forward(layer, length) for layer in range(model.layers)) + 2.0 * model.end


def trainer(model: Model, trained: int, length: int, logits: int) -> float:
    """Operations of a step over one sequence, head at `logits` positions."""
    first = model.layers - trained
    forward = sum(model.forward(layer, length) for layer in range(model.layers))
    # In the first trained layer the gradient ends at the router.
    backward = sum(model.backward(layer, length) for layer in range(first + 1, model.layers))
    return forward + backward + length * model.products(first)["router"] + 4.0 * logits * model.end


def suffix(model: Model, trained: int, length: int, rows: bool) -> float:
    """The same of the layers from the first trained one; `rows`: the last layer at the position read."""
    first, last = model.layers - trained, model.layers - 1
    inner = range(first, last)
    total = sum(model.forward(layer, length) for layer in inner) + 4.0 * model.end
    total += sum(model.backward(layer, length) for layer in inner if layer > first)
    router = length * model.products(first)["router"]
    if not rows:
        return total + router + model.forward(last, length) + model.backward(last, length)
    products = model.products(last)
    at_row = sum(products.values()) - products["key_value"]
    # One row sees all keys; its scores and values have two gradients, its router one more product.
    pairs = 4.0 * model.queries * length
    return total + router + 2 * (at_row + length * products["key_value"]) + products["router"] + 3 * pairs


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print one table."""
    lines = ["", title, "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")


def by_depth() -> None:
    """The formula alone."""
    rows = []
    for layers in (16, 28, 48, 94):
        passes = layers + TRAINED - 1
        fed, row_fed = 2 * TRAINED - 1, 2 * TRAINED - 3
        jobs = [(layers + EPOCHS * runs * passes) / (layers + EPOCHS * runs * row_fed) for runs in (1, 2)]
        ratios = (f"{ratio:.1f}" for ratio in (passes / fed, passes / row_fed, *jobs))
        rows.append((layers, passes, fed, row_fed, *ratios))
    head = ("L", "Trainer", "suffix", "rows only", "step", "step, rows only", "job, 1 run", "job, 2 runs")
    table(f"In layers, n = {TRAINED}, c = 0, {EPOCHS} epochs", head, rows)


def by_model() -> None:
    """Operations a token."""
    rows = []
    for model in MODELS:
        last = model.layers - 1
        one = model.forward(last, LENGTH)
        c = LENGTH * model.products(last)["key_value"] / one
        rival, users = (trainer(model, TRAINED, LENGTH, logits) for logits in (1, LENGTH))
        whole, ours = (suffix(model, TRAINED, LENGTH, rows) for rows in (False, True))
        once = collection(model, LENGTH)
        job = (once + EPOCHS * rival) / (once + EPOCHS * ours)
        numbers = [f"{value / LENGTH / 1e9:.2f}" for value in (one, users, rival, whole, ours)]
        ratios = [f"{ratio:.1f}" for ratio in (rival / whole, rival / ours, users / ours, job)]
        rows.append((model.name, model.layers, f"{c:.2f}", *numbers, *ratios))
    table(
        f"Giga-operations a token, n = {TRAINED}, {LENGTH} tokens of which one is predicted",
        (
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
        ),
        rows,
    )


def on_disk() -> None:
    """Bytes of the cache, and what reading them must be worth."""
    rows = []
    for model in MODELS:
        a_token = model.hidden * BYTES
        first = model.layers - TRAINED
        saved = sum(model.forward(layer, LENGTH) for layer in range(first)) / LENGTH
        rows.append(
            (
                model.name,
                model.hidden,
                a_token,
                f"{a_token * 1e6 / GB:.1f} GB",
                f"{2 * a_token * 1e6 / GB:.1f} GB",
                f"{saved / 1e9:.2f}",
                f"{a_token * DEVICE / saved / 1e6:.0f} MB/s",
            )
        )
    head = ("model", "H", "bytes a token", "per million tokens", "in float32")
    table("Disk", (*head, "Gop saved a token", "rate at 100 Top/s"), rows)


def moved_and_held() -> None:
    """Weights on a rank, and gathered in a step."""
    rows = []
    for model in MODELS:
        first = model.layers - TRAINED
        whole = model.parameters() * BYTES
        part = model.parameters(first, embedding=False) * BYTES
        rows.append(
            (
                model.name,
                f"{whole / GB:.1f}",
                f"{part / GB:.1f}",
                f"{whole / part:.1f}",
                f"{(whole + part) / GB:.1f}",
                f"{2 * part / GB:.1f}",
                f"{(whole + part) / part / 2:.1f} to {(whole + part) / part:.1f}",
            )
        )
    head = ("model", "whole, GB", "suffix, GB", "ratio", "gathered, Trainer", "gathered, suffix", "ratio")
    table(f"Weights in bfloat16, n = {TRAINED}", head, rows)


def streamed() -> None:
    """Bound of the stream engine's memory, and its traffic."""
    rows = []
    for model in MODELS:
        sizes = [model.end, *(model.layer_parameters(layer) for layer in range(model.layers)), model.end]
        two = max(one + other for one, other in itertools.pairwise(sizes)) * BYTES
        states = model.hidden * BYTES * 1e6
        rows.append(
            (
                model.name,
                f"{model.parameters() * BYTES / GB:.1f}",
                f"{two / GB:.1f}",
                f"{states / GB:.1f}",
                f"{2 * states / GB:.1f}",
                f"{model.layers * states / GB:.0f}",
            )
        )
    head = ("model", "read from the checkpoint", "two steps in memory", "states of a million tokens")
    table("Stream engine, GB a rank", (*head, "room on disk", "written, and read as much"), rows)


if __name__ == "__main__":
    by_depth()
    by_model()
    on_disk()
    moved_and_held()
    streamed()
