"""MiniMax-M2: 256 routed experts, top-8 by sigmoid, every layer sparse; the block hands its router a bias."""

from roma_ds.families.capability import FLOAT8
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER

FAMILY = Family(
    name="MiniMax-M2",
    model_types=("minimax_m2",),
    router_class="MiniMaxM2TopKRouter",
    norm_class="MiniMaxM2RMSNorm",
    gate_key="model.layers.{layer}.block_sparse_moe.gate.weight",
    experts_attribute="num_local_experts",
    selection="top-k of sigmoids plus a correction bias; weighed by the sigmoids, renormalised",
    scoring="sigmoid",
    frozen_block_parts=("e_score_correction_bias",),
    limits=(FLOAT8, NOT_IN_THE_PAPER),
)
