"""The networks of the rivals: what of them is trained, and how a packed batch runs through them.

Shapes: B sequences, A predicted tokens, V vocabulary, M layers whose routing is read, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roma_ds.baselines.adapters import add_adapters, matched_plan, peft, rank_plan
from roma_ds.baselines.decoders import VirtualDecoder
from roma_ds.baselines.padded_network import PaddedNetwork
from roma_ds.checkpoint.loading import load_generation_config
from roma_ds.comm import World
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import MoELayout
from roma_ds.frozen_pass.frozen_model import load_part
from roma_ds.network.experts import use_frozen_experts
from roma_ds.network.release import release, return_freed_memory
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import Batch
from roma_ds.writing.decoding import Decoder
from roma_ds.writing.plain import PlainModel

PROMPT_TOKENS = 20
"""Virtual tokens of prompt tuning, as peft's examples have it."""

Read = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]
"""From a batch: logits float32 [A, V] at its answer positions, routing weights float32 [B, M, E]."""


@dataclass
class Rival:
    """A network with something trainable in it."""

    read: Read
    trained: list[nn.Parameter]
    first: int | None
    """The layer whose cached hidden states it takes, None for token ids."""
    facts: dict[str, Any]
    """What it is, for the result."""
    network: Any
    """What holds its weights."""
    decoder: Callable[[], Decoder]
    """What writes with the weights as they are now; the network itself may be empty afterwards."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits float32 [A, V] at the answer positions of a batch."""
        return self.read(batch)[0]

    def close(self) -> None:
        """Give back the memory."""
        release(self.network)
        return_freed_memory()


@dataclass(frozen=True)
class Build:
    """What a rival is built from."""

    world: World
    """This process alone."""
    model: ModelConfig
    depth: int
    first: int | None
    """The layer that the cache enters, None without one."""
    routers: int
    """Trainable numbers of the routers, which matched rivals have about as many of."""
    seed: int
    layers: tuple[int, ...]
    """Layers whose routing is read, none before `first`."""


def _packed(build: Build, network: Any, layout: MoELayout, first: int | None) -> Read:
    routed = RoutedLM(network, layout, build.layers, first or 0).attach()
    device = build.world.device

    def read(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        output = routed(**batch.inputs(device))
        return output.logits, output.routing

    return read


def _whole(
    build: Build,
    network: Any,
    trained: Sequence[nn.Parameter],
    places: Callable[[Any], Sequence[nn.Parameter]],
) -> PlainModel:
    """The whole network as the library runs it, with what was trained; `network` is emptied before.

    places: of the trained values, in the whole network.
    """
    values = [weight.detach().to("cpu", copy=True) for weight in trained]
    release(network)
    return_freed_memory()
    whole = PlainModel(build.world, build.model, {})
    with torch.no_grad():
        for place, value in zip(places(whole.network), values, strict=True):
            place.copy_(value)
    return whole


def adapted(build: Build, kind: str, rank: int | None) -> Rival:
    """Adapters of `kind` in the layers behind the cache; rank None matches the routers' parameters."""
    network, layout = load_part(build.world, build.model, build.depth, build.first, None)
    plan = matched_plan(network, kind, build.routers) if rank is None else rank_plan(network, kind, rank)
    trained = add_adapters(network, plan, build.seed)
    facts = {"adapters": kind, "products": list(plan.products), "rank": plan.rank, "alpha": 2 * plan.rank}
    if plan.adapters > 1:
        facts["experts"] = plan.adapters

    def decoder() -> Decoder:
        first = build.first or 0
        return _whole(build, network, trained, lambda whole: add_adapters(whole, plan, build.seed, first))

    return Rival(_packed(build, network, layout, build.first), trained, build.first, facts, network, decoder)


def dense(build: Build) -> Rival:
    """All routers, and the norms of and before attention, of the whole network (Dense BP as documented)."""
    network, layout = load_part(build.world, build.model, build.depth, None, None)
    routers = {f"{site.product}.weight" for site in layout.sites}
    attention = f".{layout.family.attention}."
    trained = {}
    for name, weight in network.named_parameters():
        norm = "norm" in name and (attention in name or ".input_layernorm." in name)
        if name in routers or norm:
            trained[name] = weight.requires_grad_(True)

    values = list(trained.values())

    def decoder() -> Decoder:
        return _whole(build, network, values, lambda whole: [whole.get_parameter(name) for name in trained])

    read = _packed(build, network, layout, None)
    return Rival(read, values, None, {"routers": len(routers)}, network, decoder)


def virtual_tokens(build: Build, kind: str) -> Rival:
    """Prompt tuning (embeddings before the prompt) or prefix tuning (keys and values in every layer).

    By peft; they run in transformers' own padded forward of the whole network.
    """
    library = peft()
    torch.manual_seed(build.seed)
    network, _ = load_part(build.world, build.model, build.depth, None, None)
    network.generation_config = load_generation_config(build.model, network.config)
    use_frozen_experts(network)
    if kind == "prompt":
        config = library.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT_TOKENS)
        count = PROMPT_TOKENS
    else:
        if not any(path.endswith(".k_proj") for path, _ in network.named_modules()):
            raise UserError(
                "prefix tuning trains keys and values of every head, and this model's attention has "
                "latent ones",
                "leave prefix_tuning out",
            )
        text = network.config
        if getattr(text, "is_heterogeneous", False):
            raise UserError(
                "prefix tuning trains keys and values of every head, and this model's heads differ from "
                "layer to layer",
                "leave prefix_tuning out",
            )
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        count = max(1, round(build.routers / (2 * text.num_hidden_layers * heads * width)))
        config = library.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)
    model = library.get_peft_model(network, config)
    added = count if kind == "prompt" else 0
    padded = PaddedNetwork(model, network, build.layers, added, build.world.device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]

    def decoder() -> Decoder:
        return VirtualDecoder(build.world, model, network, count)

    return Rival(padded.read, trained, None, {"virtual_tokens": count}, model, decoder)
