"""FlexOLMo: 7 routed experts, one a domain, every layer sparse; norms behind the blocks."""

from roma_ds.families.family import Family

FAMILY = Family(
    name="FlexOLMo",
    model_types=("flex_olmo",),
    router_class="FlexOlmoTopKRouter",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="num_experts",
    selection="top-k of a softmax over all, renormalised where `norm_topk_prob`",
)
