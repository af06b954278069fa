"""OLMoE: 64 routed experts, top-8, scores not renormalised, every layer sparse."""

from roma_ds.families.family import Family

FAMILY = Family(
    name="OLMoE",
    model_types=("olmoe",),
    router_class="OlmoeTopKRouter",
    norm_class="OlmoeRMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="num_experts",
    selection="top-k of a softmax over all, renormalised where `norm_topk_prob`",
)
