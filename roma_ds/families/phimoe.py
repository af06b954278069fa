"""Phi-3.5-MoE: 16 routed experts, top-2, each chosen and weighed on its own among those close to it."""

from roma_ds.families.capability import Limit
from roma_ds.families.family import Family

FAMILY = Family(
    name="PhiMoE",
    model_types=("phimoe",),
    router_class="PhimoeTopKRouter",
    gate_key="model.layers.{layer}.block_sparse_moe.gate.weight",
    experts_attribute="num_local_experts",
    selection="the best, then the best of the others; each weighed by a softmax over those whose logit lies "
    "within `router_jitter_noise` of it",
    limits=(
        Limit(
            "route",
            "experimental",
            "the model weighs an expert against its close rivals only, r is the softmax over all",
        ),
    ),
)
