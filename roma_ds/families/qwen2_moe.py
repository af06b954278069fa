"""Qwen2-MoE (Qwen1.5-MoE too): 60 or 64 routed experts beside one shared expert with a gate of its own."""

from roma_ds.families.dense_layers import ListedDenseLayers
from roma_ds.families.family import Family

FAMILY = Family(
    name="Qwen2-MoE",
    model_types=("qwen2_moe",),
    router_class="Qwen2MoeTopKRouter",
    norm_class="Qwen2MoeRMSNorm",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="num_experts",
    selection="top-k of a softmax over all, renormalised where `norm_topk_prob`",
    dense=ListedDenseLayers("mlp_only_layers", "decoder_sparse_step"),
    shared=("mlp.shared_expert", "mlp.shared_expert_gate"),
)
