"""LFM2-MoE: 32 routed experts, top-4 by sigmoid; most layers are short convolutions; first layers dense."""

from roma_ds.families.dense_layers import LeadingDenseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER

FAMILY = Family(
    name="LFM2-MoE",
    model_types=("lfm2_moe",),
    router_class="Lfm2MoeTopKRouter",
    norm_class="Lfm2MoeRMSNorm",
    gate_key="model.layers.{layer}.feed_forward.gate.weight",
    experts_attribute="num_experts",
    selection="top-k of sigmoids, where `use_expert_bias` plus a correction bias; weighed by the sigmoids, "
    "renormalised where `norm_topk_prob`, times `routed_scaling_factor`",
    scoring="sigmoid",
    frozen_block_parts=("expert_bias",),
    dense=LeadingDenseLayers("num_dense_layers"),
    mixing="rows",
    mixers=("conv",),
    row_modules=("feed_forward",),
    limits=(NOT_IN_THE_PAPER,),
)
