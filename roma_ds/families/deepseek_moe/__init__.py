"""DeepSeekMoE 16B, the first version: 64 routed experts, top-6, not renormalised, 2 shared; an own model."""

from roma_ds.families.dense_layers import LeadingDenseLayers
from roma_ds.families.family import Family

FAMILY = Family(
    name="DeepSeekMoE",
    model_types=("deepseek",),
    router_class="DeepseekRouter",
    norm_class="LlamaRMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="n_routed_experts",
    selection="top-k of a softmax over all, not renormalised",
    dense=LeadingDenseLayers("first_k_dense_replace"),
    shared=("mlp.shared_experts",),
)
