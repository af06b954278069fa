"""Ernie 4.5 MoE: 64 routed experts, top-6, beside 2 shared ones; routers in float32; first layers dense."""

from roma_ds.families.capability import Limit
from roma_ds.families.dense_layers import SparseRange
from roma_ds.families.family import Family

FAMILY = Family(
    name="Ernie-4.5-MoE",
    model_types=("ernie4_5_moe",),
    router_class="Ernie4_5_MoeTopKRouter",
    norm_class="Ernie4_5_MoeRMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="moe_num_experts",
    top_k_attribute="moe_k",
    selection="top-k of a softmax over all plus a correction bias; weighed by the softmax, renormalised",
    frozen_router_parts=("moe_statics.e_score_correction_bias",),
    dense=SparseRange("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
    shared=("mlp.shared_experts",),
    limits=(
        Limit(
            "route",
            "experimental",
            "routers and correction biases are stored in float32; a run in bfloat16 rounds both, as "
            "DeepSpeed does, and now and then a token goes to another expert",
        ),
    ),
)
