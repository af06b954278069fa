"""dots.llm1: 128 routed experts, top-6 by sigmoid, beside 2 shared ones; first layer dense."""

from roma_ds.families.dense_layers import LeadingDenseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER, SELECTION

FAMILY = Family(
    name="dots1",
    model_types=("dots1",),
    router_class="Dots1TopkRouter",
    norm_class="Dots1RMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="n_routed_experts",
    selection=SELECTION,
    scoring="sigmoid",
    frozen_router_parts=("e_score_correction_bias",),
    dense=LeadingDenseLayers("first_k_dense_replace"),
    shared=("mlp.shared_experts",),
    limits=(NOT_IN_THE_PAPER,),
)
