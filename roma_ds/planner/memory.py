"""Memory of one rank during router training, by counting."""

from __future__ import annotations

BYTES = {"float32": 4, "bfloat16": 2}
# AdamW keeps the weight, two moments and the gradient in float32.
ROUTER_BYTES = 16


def training_bytes(
    total: int, trainable: int, dtype: str, zero_stage: int, world_size: int, largest_layer: int
) -> int:
    """Bytes per rank for weights, router states and what ZeRO-3 gathers at a time; activations come on top.

    total, trainable, largest_layer: parameters of the model, of the trained routers, of the largest layer.
    Under ZeRO-3 a rank holds its share of the weights and about two gathered layers.
    """
    weight = BYTES[dtype]
    if zero_stage < 3:
        return total * weight + trainable * ROUTER_BYTES
    shard = -(-total // world_size)
    return (shard + 2 * largest_layer) * weight + trainable * ROUTER_BYTES
