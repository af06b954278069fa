"""Hunyuan: 64 routed experts, top-8, beside a shared MLP; the number of experts may be given by layer."""

from roma_ds.families.capability import Limit
from roma_ds.families.family import Family

FAMILY = Family(
    name="Hunyuan",
    model_types=("hunyuan_v1_moe",),
    router_class="HunYuanMoEV1Gate",
    weight="wg",
    logits_from="product",
    norm_class="HunYuanMoEV1RMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.wg.weight",
    experts_attribute="num_experts",
    top_k_attribute="moe_topk",
    selection="top-k of a softmax over all, renormalised",
    shared=("mlp.shared_mlp",),
    limits=(
        Limit(
            "route",
            "experimental",
            "routers are stored in float32; a run in bfloat16 rounds them, as DeepSpeed does, and now and "
            "then a token goes to another expert",
        ),
    ),
)
