"""Mistral Small 4, the text part: 128 routed experts, top-4, one shared; latent attention."""

from roma_ds.families.capability import FLOAT8
from roma_ds.families.dense_layers import LeadingDenseLayers
from roma_ds.families.family import Family
from roma_ds.families.latent_attention import ROW_MODULES

FAMILY = Family(
    name="Mistral-4",
    model_types=("mistral4",),
    router_class="Mistral4TopkRouter",
    norm_class="Mistral4RMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="n_routed_experts",
    selection="top-k of a softmax over all, within the groups whose two best add up to most; "
    "renormalised where `norm_topk_prob`, times `routed_scaling_factor`",
    dense=LeadingDenseLayers("first_k_dense_replace"),
    shared=("mlp.shared_experts",),
    row_modules=ROW_MODULES,
    limits=(FLOAT8,),
)
