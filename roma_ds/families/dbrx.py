"""DBRX: 16 routed experts, top-4, weights divided by their p-norm; no shared ones."""

from roma_ds.families.family import Family

FAMILY = Family(
    name="DBRX",
    model_types=("dbrx",),
    router_class="DbrxRouter",
    weight="layer",
    logits_at=None,
    indices_at=None,
    gate_key="transformer.blocks.{layer}.ffn.router.layer.weight",
    experts_attribute="ffn_config.moe_num_experts",
    top_k_attribute="ffn_config.moe_top_k",
    selection="top-k of a softmax over all, divided by its norm of `moe_normalize_expert_weights`",
    layers="transformer.blocks",
    embedding="transformer.wte",
    attention="norm_attn_norm.attn",
    layers_attribute="n_layers",
    width="d_model",
    mixing="rows",
    row_modules=("ffn",),
    gathered_whole=("ffn.experts",),
)
