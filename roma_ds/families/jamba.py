"""Jamba: 16 routed experts, top-2, in every second layer; one layer of eight is attention, the rest Mamba."""

from roma_ds.families.dense_layers import PeriodicSparseLayers
from roma_ds.families.family import Family

FAMILY = Family(
    name="Jamba",
    model_types=("jamba",),
    router_class="JambaTopKRouter",
    norm_class="JambaRMSNorm",
    gate_key="model.layers.{layer}.feed_forward.router.weight",
    experts_attribute="num_experts",
    selection="top-k of a softmax over all, not renormalised",
    dense=PeriodicSparseLayers("expert_layer_period", "expert_layer_offset"),
    without_routers=(("num_experts", 1),),
    mixing="rows",
    mixers=("mamba",),
    row_modules=("feed_forward",),
)
