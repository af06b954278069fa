"""The modules of a network in the forms that suit weights which never learn."""

from __future__ import annotations

from typing import Any

from roma_ds.families import family_of
from roma_ds.network.experts import use_frozen_experts
from roma_ds.network.head import use_frozen_head
from roma_ds.network.norms import use_frozen_norms
from roma_ds.network.packed_attention import use_packed_attention
from roma_ds.network.products import use_linears
from roma_ds.network.rotary import refuse_switching_rotary


def use_frozen_modules(network: Any) -> None:
    """Let a transformers causal LM, or a span of one, attend within packed sequences and run frozen parts.

    Its forward then takes `packing`. All engines call this, so that they compute the same function.
    """
    family = family_of(network.config)
    if family.mixing == "packed":
        use_packed_attention(network)
    use_frozen_experts(network)
    if family.norm_class is not None:
        use_frozen_norms(network, family.norm_class)
    use_linears(network)
    refuse_switching_rotary(network)
    use_frozen_head(network.get_output_embeddings())
