"""GLM-4.5 and 4.6: 128 or 160 routed experts, top-8 by sigmoid, one shared; first layer or layers dense."""

from roma_ds.families.dense_layers import LeadingDenseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER, SELECTION

FAMILY = Family(
    name="GLM-4-MoE",
    model_types=("glm4_moe",),
    router_class="Glm4MoeTopkRouter",
    norm_class="Glm4MoeRMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="n_routed_experts",
    selection=SELECTION,
    scoring="sigmoid",
    frozen_router_parts=("e_score_correction_bias",),
    dense=LeadingDenseLayers("first_k_dense_replace"),
    shared=("mlp.shared_experts",),
    limits=(NOT_IN_THE_PAPER,),
)
