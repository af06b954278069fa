"""GLM-4.7-Flash: 64 routed experts, top-4 by sigmoid, one shared; latent attention; first layer dense."""

from roma_ds.families.dense_layers import NamedSparseLayers
from roma_ds.families.family import Family
from roma_ds.families.latent_attention import ROW_MODULES
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER, SELECTION

FAMILY = Family(
    name="GLM-4.7-Flash",
    model_types=("glm4_moe_lite",),
    router_class="Glm4MoeLiteTopkRouter",
    norm_class="Glm4MoeLiteRMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="n_routed_experts",
    selection=SELECTION,
    scoring="sigmoid",
    frozen_router_parts=("e_score_correction_bias",),
    dense=NamedSparseLayers("mlp_layer_types", "sparse"),
    shared=("mlp.shared_experts",),
    row_modules=ROW_MODULES,
    limits=(NOT_IN_THE_PAPER,),
)
