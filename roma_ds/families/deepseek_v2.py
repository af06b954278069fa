"""DeepSeek-V2: 64 or 160 routed experts, top-6, beside 2 shared ones; latent attention; first layer dense."""

from roma_ds.families.dense_layers import LeadingDenseLayers
from roma_ds.families.family import Family
from roma_ds.families.latent_attention import ROW_MODULES

FAMILY = Family(
    name="DeepSeek-V2",
    model_types=("deepseek_v2",),
    router_class="DeepseekV2TopkRouter",
    norm_class="DeepseekV2RMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="n_routed_experts",
    selection="top-k of a softmax over all, within the groups of the best experts where "
    "`topk_method` is `group_limited_greedy`; times `routed_scaling_factor`, not renormalised",
    dense=LeadingDenseLayers("first_k_dense_replace"),
    shared=("mlp.shared_experts",),
    row_modules=ROW_MODULES,
)
