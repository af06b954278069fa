"""Llama 4, the text part: 16 or 128 routed experts, top-1 by sigmoid, one shared; attention in chunks."""

from roma_ds.families.dense_layers import ListedSparseLayers
from roma_ds.families.family import Family
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER

FAMILY = Family(
    name="Llama-4",
    model_types=("llama4_text",),
    router_class="Llama4Router",
    logits_at=1,
    indices_at=None,
    gate_key="model.layers.{layer}.feed_forward.router.weight",
    experts_attribute="num_local_experts",
    selection="top-k of the logits; what enters an expert is multiplied by the sigmoid of its own",
    scoring="sigmoid",
    dense=ListedSparseLayers("moe_layers"),
    shared=("feed_forward.shared_expert",),
    mixing="rows",
    row_modules=("feed_forward",),
    limits=(NOT_IN_THE_PAPER,),
)
