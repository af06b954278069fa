"""Qwen3-Next: 512 routed experts, top-10, one shared with a gate; most layers are delta nets."""

from roma_ds.families.dense_layers import ListedDenseLayers
from roma_ds.families.family import Family

FAMILY = Family(
    name="Qwen3-Next",
    model_types=("qwen3_next",),
    router_class="Qwen3NextTopKRouter",
    gate_key="model.layers.{layer}.mlp.gate.weight",
    experts_attribute="num_experts",
    selection="top-k of a softmax over all, renormalised where `norm_topk_prob`",
    dense=ListedDenseLayers("mlp_only_layers", "decoder_sparse_step"),
    shared=("mlp.shared_expert", "mlp.shared_expert_gate"),
    mixing="rows",
    mixers=("linear_attn",),
    row_modules=("mlp",),
)
