"""What the arguments of a decoder layer's forward are, by the names that the library gives them."""

from __future__ import annotations

from roma_ds.families.entering import CHOSEN_KEYS, HIDDEN, Carried

RECOMPUTED = {
    "hidden_states",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "use_cache",
    "position_embeddings",
    "attention_scaling",
    "output_attentions",
    "conv_mask",
    "input_ids",
    "ple_input_ids",
    "kwargs",
}
"""Arguments of a layer that a model makes from the tokens and their places alone."""
HANDED_ON = (
    CHOSEN_KEYS,
    Carried("prev_router_hidden_states", (("router_hidden_size",),)),
)
"""Arguments of a layer that come from the layers before it, and that it returns behind the hidden states."""
KEPT = (Carried("block_states", (("hidden_size",),), block="n_layers_per_attn_res_block"),)
"""Arguments of a layer that come from the layers before it, and that the model keeps."""
SWITCHED = {"per_layer_input": "hidden_size_per_layer_input", "shared_kv_states": "num_kv_shared_layers"}
"""Arguments of a layer that mean nothing where a config attribute is 0 or absent."""
STREAMS = (
    ("hc_mult", Carried(HIDDEN.name, (("hc_mult",), ("hidden_size",)))),
    ("hc_count", Carried(HIDDEN.name, (("hc_count", "hidden_size"),))),
    # Routers that read those before them come with a residual stream in float32.
    ("router_hidden_size", Carried(HIDDEN.name, (("hidden_size",),), "float32")),
)
"""Config attributes of models with other residual streams than one, and what then enters a layer."""
