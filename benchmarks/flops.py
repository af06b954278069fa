"""The floating-point operations that a training step of the suffix cannot do without.

Counts matrix products only, two operations a multiplication and addition; norms, softmax, activations and
routing itself are left out, so the count is a lower bound. Frozen weights need no gradients of their own.

For a sequence of l tokens of which a are predicted, with routers trained from layer L0 to the last:
- every layer but the last runs all l tokens; attention looks back only, l (l + 1) / 2 pairs;
- the last layer makes keys and values of all l tokens, and queries, output and experts for a rows;
- the head runs on a rows;
- backward, gradients flow from the head down to the router of L0: through everything above L0 once more,
  where each product of two activations (scores, weighted values) has two gradients, one of frozen weights
  one. In L0 itself only the router's scores need a gradient: nothing flows into its experts or attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shapes import Shape


@dataclass(frozen=True)
class Cost:
    """Operations of one step, on one rank or on all, by part."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both passes."""
        return self.forward + self.backward


def _linear(shape: Shape) -> dict[str, float]:
    """Operations a token for the products with frozen weights in one layer."""
    queries, keys = shape.heads * shape.head_width, shape.key_value_heads * shape.head_width
    return {
        "query": 2.0 * shape.hidden * queries,
        "key_value": 4.0 * shape.hidden * keys,
        "output": 2.0 * queries * shape.hidden,
        "router": 2.0 * shape.hidden * shape.experts,
        "experts": 6.0 * shape.top_k * shape.hidden * shape.expert_width,
    }


def _pairs(shape: Shape, pairs: float) -> float:
    """Scores and weighted values for so many query-key pairs, all heads."""
    return 4.0 * shape.heads * shape.head_width * pairs


def step_cost(shape: Shape, lengths: Sequence[int], trained: int, rows: int = 1) -> Cost:
    """Operations of one training step over sequences of `lengths`.

    rows: positions of each sequence that the loss needs, at its end. `trained` counts layers from the first
    one whose router learns to the last.
    """
    linear = _linear(shape)
    whole = sum(linear.values())
    wanted = sum(value for name, value in linear.items() if name != "key_value")
    head = 2.0 * shape.hidden * shape.vocabulary
    forward = backward = 0.0
    for length in lengths:
        causal = length * (length + 1) / 2
        # The last rows look back at everything before them.
        at_end = sum(length - place for place in range(rows))
        full_layer = length * whole + _pairs(shape, causal)
        last_layer = rows * wanted + length * linear["key_value"] + _pairs(shape, at_end)
        forward += (trained - 1) * full_layer + last_layer + rows * head
        backward += rows * head
        if trained > 1:
            # The router's own weight gradient is one more product of its size.
            backward += (trained - 2) * (
                length * (whole + linear["router"]) + 2 * _pairs(shape, causal)
            ) + rows * (wanted + linear["router"])
            backward += length * linear["key_value"] + 2 * _pairs(shape, at_end)
            backward += length * linear["router"]
        else:
            backward += rows * linear["router"]
    return Cost(forward, backward)


def model_cost(shape: Shape, lengths: Sequence[int], rows: int = 1) -> float:
    """Operations of one forward pass of the whole network, head at `rows` positions a sequence."""
    whole = sum(_linear(shape).values())
    layers = sum(length * whole + _pairs(shape, length * (length + 1) / 2) for length in lengths)
    return shape.layers * layers + 2.0 * len(lengths) * rows * shape.hidden * shape.vocabulary
