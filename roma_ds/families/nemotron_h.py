"""Nemotron-H: a layer is a state space, attention, an MLP or experts alone; 128 experts, top-6 by sigmoid."""

from roma_ds.families.dense_layers import NamedSparseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER, SELECTION

FAMILY = Family(
    name="Nemotron-H",
    model_types=("nemotron_h",),
    router_class="NemotronHTopkRouter",
    gate_key="backbone.layers.{layer}.mixer.gate.weight",
    experts_attribute="n_routed_experts",
    selection=SELECTION,
    scoring="sigmoid",
    frozen_router_parts=("e_score_correction_bias",),
    dense=NamedSparseLayers("layers_block_type", "moe"),
    shared=("mixer.shared_experts",),
    attention="mixer",
    token_layers=("layers_block_type", ("moe", "mlp")),
    mixing="rows",
    row_modules=("mixer",),
    embedding="model.embeddings",
    limits=(NOT_IN_THE_PAPER,),
)
