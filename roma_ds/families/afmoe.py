"""AFMoE (Trinity): 128 routed experts, top-8 by sigmoid, one shared; windows and gated attention."""

from roma_ds.families.dense_layers import LeadingDenseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER

FAMILY = Family(
    name="AFMoE",
    model_types=("afmoe",),
    router_class="AfmoeTokenChoiceRouter",
    weight="gate",
    logits_from="product",
    gate_key="model.layers.{layer}.mlp.router.gate.weight",
    experts_attribute="num_experts",
    selection="top-k of sigmoids plus a correction bias; weighed by the sigmoids, renormalised, times "
    "`route_scale`",
    scoring="sigmoid",
    frozen_block_parts=("expert_bias",),
    dense=LeadingDenseLayers("num_dense_layers"),
    shared=("mlp.shared_experts",),
    row_modules=("self_attn.q_proj", "self_attn.gate_proj", "self_attn.o_proj", "mlp"),
    limits=(NOT_IN_THE_PAPER,),
)
