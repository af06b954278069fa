"""DeepSeek-V3.2: as V3, and in every layer an indexer chooses the keys that a token attends to."""

from roma_ds.families.capability import FLOAT8
from roma_ds.families.dense_layers import NamedSparseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER, SELECTION

FAMILY = Family(
    name="DeepSeek-V3.2",
    model_types=("deepseek_v32",),
    router_class="DeepseekV32TopkRouter",
    norm_class="DeepseekV32RMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="n_routed_experts",
    selection=SELECTION,
    scoring="sigmoid",
    frozen_router_parts=("e_score_correction_bias",),
    dense=NamedSparseLayers("mlp_layer_types", "sparse"),
    shared=("mlp.shared_experts",),
    mixing="rows",
    row_modules=("mlp",),
    limits=(FLOAT8, NOT_IN_THE_PAPER),
)
