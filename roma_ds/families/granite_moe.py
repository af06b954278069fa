"""Granite-MoE: 32 or 40 routed experts, top-8, a softmax over the selected; scaled embedding and logits."""

from roma_ds.families.family import Family

FAMILY = Family(
    name="Granite-MoE",
    model_types=("granitemoe",),
    router_class="GraniteMoeTopKRouter",
    norm_class="GraniteMoeRMSNorm",
    gate_key="model.layers.{layer}.block_sparse_moe.router.layer.weight",
    experts_attribute="num_local_experts",
    selection="top-k of the logits, weighed by a softmax over the selected",
    row_modules=("self_attn.q_proj", "self_attn.o_proj", "block_sparse_moe"),
)
