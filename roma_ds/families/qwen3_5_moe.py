"""Qwen3.5-MoE, the text part: 256 or 512 routed experts in every layer, otherwise as Qwen3-Next."""

from dataclasses import replace

from roma_ds.families.dense_layers import NoDenseLayers
from roma_ds.families.qwen3_next import FAMILY as QWEN3_NEXT

FAMILY = replace(
    QWEN3_NEXT,
    name="Qwen3.5-MoE",
    model_types=("qwen3_5_moe_text",),
    router_class="Qwen3_5MoeTopKRouter",
    selection="top-k of a softmax over all, renormalised",
    dense=NoDenseLayers(),
)
