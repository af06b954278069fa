"""Gemma 4 with experts, the text part: 128 routed experts, top-8, beside the MLP of each layer."""

from roma_ds.families.capability import Limit
from roma_ds.families.family import Family

FAMILY = Family(
    name="Gemma-4-MoE",
    model_types=("gemma4_text",),
    router_class="Gemma4TextRouter",
    weight="proj",
    logits_from="product",
    gate_key="model.layers.{layer}.router.proj.weight",
    experts_attribute="num_experts",
    top_k_attribute="top_k_experts",
    selection="top-k of a softmax over all, renormalised, then each times a learned factor of its expert; "
    "the router reads the normed and scaled stream",
    frozen_router_parts=("scale", "per_expert_scale"),
    without_routers=(("enable_moe_block", False),),
    by_detection=("num_kv_shared_layers", "hidden_size_per_layer_input"),
    shared=("mlp",),
    row_modules=("mlp",),
    limits=(
        Limit(
            "route",
            "experimental",
            "the model multiplies the weight of each expert by a factor of its own, r is the softmax before",
        ),
    ),
)
