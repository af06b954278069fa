"""Granite 4: 62 to 72 routed experts, a softmax over the selected, one shared; most layers are Mamba-2."""

from roma_ds.families.family import Family

FAMILY = Family(
    name="Granite-4",
    model_types=("granitemoehybrid",),
    router_class="GraniteMoeHybridTopKRouter",
    norm_class="GraniteMoeHybridRMSNorm",
    gate_key="model.layers.{layer}.block_sparse_moe.router.layer.weight",
    experts_attribute="num_local_experts",
    selection="top-k of the logits, weighed by a softmax over the selected",
    without_routers=(("num_local_experts", 0),),
    shared=("shared_mlp",),
    mixing="rows",
    mixers=("mamba",),
    row_modules=("block_sparse_moe", "shared_mlp"),
)
