"""EXAONE-MoE: 128 routed experts, top-8 by sigmoid, one shared; windows, or all without positions."""

from roma_ds.families.dense_layers import NamedSparseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER, SELECTION

FAMILY = Family(
    name="EXAONE-MoE",
    model_types=("exaone_moe",),
    router_class="ExaoneMoeTopkRouter",
    norm_class="ExaoneMoeRMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="num_experts",
    selection=SELECTION,
    scoring="sigmoid",
    frozen_router_parts=("e_score_correction_bias",),
    dense=NamedSparseLayers("mlp_layer_types", "sparse"),
    shared=("mlp.shared_experts",),
    limits=(NOT_IN_THE_PAPER,),
)
