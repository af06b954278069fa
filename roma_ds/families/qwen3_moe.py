"""Qwen3-MoE: 128 routed experts, top-8, scores renormalised; layers may be dense by config."""

from roma_ds.families.dense_layers import ListedDenseLayers
from roma_ds.families.family import Family

FAMILY = Family(
    name="Qwen3-MoE",
    model_types=("qwen3_moe",),
    router_class="Qwen3MoeTopKRouter",
    norm_class="Qwen3MoeRMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="num_experts",
    selection="top-k of a softmax over all, renormalised where `norm_topk_prob`",
    dense=ListedDenseLayers("mlp_only_layers", "decoder_sparse_step"),
)
