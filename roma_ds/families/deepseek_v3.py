"""DeepSeek-V3 and R1: 256 routed experts in 8 groups, top-8 by sigmoid; latent attention; 3 dense layers."""

from roma_ds.families.capability import FLOAT8
from roma_ds.families.dense_layers import LeadingDenseLayers
from roma_ds.families.family import Family
from roma_ds.families.latent_attention import ROW_MODULES
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER, SELECTION

FAMILY = Family(
    name="DeepSeek-V3",
    model_types=("deepseek_v3",),
    router_class="DeepseekV3TopkRouter",
    norm_class="DeepseekV3RMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="n_routed_experts",
    selection=SELECTION,
    scoring="sigmoid",
    frozen_router_parts=("e_score_correction_bias",),
    dense=LeadingDenseLayers("first_k_dense_replace"),
    shared=("mlp.shared_experts",),
    row_modules=ROW_MODULES,
    limits=(FLOAT8, NOT_IN_THE_PAPER),
)
