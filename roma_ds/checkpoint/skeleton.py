"""A whole network without weights."""

from __future__ import annotations

import re
from typing import Any

import torch

from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families.causal_lm import causal_lm
from roma_ds.families.unusable_config import making_faults


def blank_network(model: ModelConfig, config: Any) -> Any:
    """The causal LM of `config`: parameters on the meta device in the run's type, buffers computed.

    Raises UserError for a tied head with a bias, a config that describes no network.
    """
    from accelerate import init_empty_weights

    dtype = getattr(torch, model.dtype)
    with making_faults(config), init_empty_weights(include_buffers=False):
        network = causal_lm(config, dtype, model.trust_remote_code)
    # Each tensor went to the meta device by itself.
    network.tie_weights()
    _settle_types(network, dtype)
    head = network.get_output_embeddings()
    if getattr(config, "tie_word_embeddings", False) and getattr(head, "bias", None) is not None:
        raise UserError(
            f"model.path: the head of {model.path} shares its weight with the embedding "
            "(tie_word_embeddings) and has a bias of its own, which is not supported",
            "save the checkpoint with tie_word_embeddings false and the head's weight in it",
        )
    return network


def initial_values(network: Any, name: str, device: torch.device) -> torch.Tensor:
    """What a buffer is where a checkpoint goes without it, as its model's class sets it."""
    path, _, own = name.rpartition(".")
    module, like = network.get_submodule(path), network.get_buffer(name)
    others = [values for values in (*module.parameters(), *module.buffers()) if values is not like]
    values = module._buffers[own] = torch.zeros(like.shape, dtype=like.dtype, device=device)
    for other in others:
        # transformers leaves what is marked so as it is.
        other._is_hf_initialized = True
    network._init_weights(module)
    return values


def _settle_types(network: Any, dtype: torch.dtype) -> None:
    """Parameters all of `dtype`, as DeepSpeed casts them; buffers that transformers keeps in float32 so."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    plan = network._get_dtype_plan(dtype)
    for name, buffer in network.named_buffers() if plan else ():
        for pattern, wanted in plan.items():
            if re.search(pattern.replace("*", ".*"), name):
                buffer.data = buffer.data.to(wanted)
