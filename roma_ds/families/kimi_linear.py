"""Kimi-Linear: 256 routed experts, top-8 by sigmoid, one shared; three layers of four are delta attention."""

from roma_ds.families.dense_layers import NamedSparseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER, SELECTION

FAMILY = Family(
    name="Kimi-Linear",
    model_types=("kimi_linear",),
    router_class="KimiLinearTopkRouter",
    norm_class="KimiLinearRMSNorm",
    gate_key="model.layers.{layer}.block_sparse_moe.gate.weight",
    experts_attribute="num_local_experts",
    selection=SELECTION,
    scoring="sigmoid",
    frozen_router_parts=("e_score_correction_bias",),
    dense=NamedSparseLayers("mlp_layer_types", "sparse"),
    shared=("mlp.shared_experts",),
    mixing="rows",
    row_modules=("mlp",),
    limits=(NOT_IN_THE_PAPER,),
)
