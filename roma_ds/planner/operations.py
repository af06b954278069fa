"""Floating-point operations of the frozen pass and of a training step.

Matrix products alone, two operations a multiplication and addition; norms, softmax, activations and routing
itself are left out, so counts are lower bounds. Frozen weights need no gradient of their own.

For a sequence of l tokens of which a are read, with routers trained from layer L0 to the last:
- every layer but the last runs all l tokens; attention looks back only, l (l + 1) / 2 pairs; linear
  attention, state spaces and convolutions have none, and their own sums are left out;
- the last layer makes keys and values of all l tokens, and queries, output and experts for a rows;
- the head runs on a rows;
- backward, gradients flow from the head down to the router of L0: through everything above L0 once more,
  where each product of two activations (scores, weighted values) has two gradients, one of frozen weights
  one. In L0 itself only the router's scores need a gradient: nothing flows into its experts or attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roma_ds.planner.model_sizes import ModelSizes


@dataclass(frozen=True)
class StepOperations:
    """Operations of one step."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class LayerProducts:
    """Operations a token of the products with weights in one layer."""

    every: float
    """Of those that all tokens need even in the last layer: keys and values."""
    by_rows: float
    """Of those that only the tokens that are read need there."""
    router: float

    @property
    def whole(self) -> float:
        """All of them."""
        return self.every + self.by_rows


def layer_products(sizes: ModelSizes, layer: int) -> LayerProducts:
    """Those of one decoder layer, numbered as in the whole model."""
    every = by_rows = router = 0.0
    for module in sizes.modules:
        if module.layer != layer:
            continue
        for weight in module.weights:
            if weight.kind == "norm":
                continue
            operations = 2.0 * weight.numel
            if weight.kind == "routed experts":
                operations *= sizes.top_k / sizes.experts
            elif weight.kind == "router":
                router += operations
            if module.by_rows:
                by_rows += operations
            else:
                every += operations
    return LayerProducts(every, by_rows, router)


def layer_forward(sizes: ModelSizes, layer: int, length: int) -> float:
    """Operations of one layer on a sequence of `length` tokens, all of them whole."""
    return length * layer_products(sizes, layer).whole + _causal(sizes, layer, length)


def _causal(sizes: ModelSizes, layer: int, length: int) -> float:
    return sizes.with_pairs[layer] * sizes.attention.pair * length * (length + 1) / 2


def _at_end(sizes: ModelSizes, length: int, rows: int) -> float:
    """The last rows look back at everything before them."""
    pairs = sum(length - place for place in range(rows))
    return float(sizes.with_pairs[sizes.layers - 1] * sizes.attention.pair * pairs)


def model_pass(sizes: ModelSizes, lengths: Sequence[int], rows: int = 1) -> float:
    """One forward pass of the whole network over sequences of `lengths`; the last layer and the head at
    `rows` positions of each, at its end."""
    below = sum(
        layer_forward(sizes, layer, length) for layer in range(sizes.layers - 1) for length in lengths
    )
    last = layer_products(sizes, sizes.layers - 1)
    end = sum(length * last.every + rows * last.by_rows + _at_end(sizes, length, rows) for length in lengths)
    return below + end + 2.0 * sizes.head * rows * len(lengths)


def training_step(
    sizes: ModelSizes, first: int, lengths: Sequence[int], rows: int = 1, cached: bool = True
) -> StepOperations:
    """One step over sequences of `lengths` with routers trained from layer `first` to the last.

    rows: positions of each sequence that the loss needs, at its end. Without `cached` the layers before
    `first` run forward as well.
    """
    last = sizes.layers - 1
    layers = {
        layer: layer_products(sizes, layer) for layer in range(0 if not cached else first, sizes.layers)
    }
    head = 2.0 * sizes.head
    forward = backward = 0.0
    for length in lengths:
        at_end = _at_end(sizes, length, rows)
        forward += sum(layer_forward(sizes, number, length) for number in layers if number < last)
        forward += rows * layers[last].by_rows + length * layers[last].every + at_end + rows * head
        backward += rows * head
        if first == last:
            backward += rows * layers[last].router
            continue
        for number in range(first + 1, last):
            # The router's own weight gradient is one more product of its size.
            backward += length * (layers[number].whole + layers[number].router)
            backward += 2 * _causal(sizes, number, length)
        backward += rows * (layers[last].by_rows + layers[last].router)
        backward += length * layers[last].every + 2 * at_end
        backward += length * layers[first].router
    return StepOperations(forward, backward)
