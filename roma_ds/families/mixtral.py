"""Mixtral: 8 routed experts, top-2, scores renormalised, every layer sparse."""

from roma_ds.families.family import Family

FAMILY = Family(
    name="Mixtral",
    model_types=("mixtral",),
    router_class="MixtralTopKRouter",
    norm_class="MixtralRMSNorm",
    gate_key="model.layers.{layer}.block_sparse_moe.gate.weight",
    experts_attribute="num_local_experts",
    selection="top-k of a softmax over all, renormalised: a softmax over the selected",
)
