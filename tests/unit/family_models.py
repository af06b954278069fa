"""A tiny checkpoint of every family, and what its routers give, computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from tiny_runs import model_config

from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.families import FAMILIES, detect, family_of
from roma_ds.network.routed import RoutedLM, RoutedOutput
from roma_ds.sequences.batches import Batch, routing_positions
from roma_ds.sequences.encoding import Encoded
from roma_ds.testing.tiny_models import save_tiny

CPU = torch.device("cpu")
DEPTH = 4
DEPTHS = {"nemotron_h": 8}
"""Where 4 layers are too few for two routers: a layer is attention, a state space, an MLP or experts."""
MODEL_TYPES = [family.model_types[0] for family in FAMILIES]
DETECTED = ["deepseek_v4", "zaya"]
"""Types without a file of their own: residual streams, tables of tokens, and routers that read each other."""
FIRST = MODEL_TYPES[: MODEL_TYPES.index("jetmoe")]
"""Families whose attention is an ordinary one: every test is of each of them."""
MECHANISMS = [
    *FIRST,
    *("qwen3_next", "nemotron_h", "glm_moe_dsa", "lfm2_moe", "gemma4_text", "minimax_m2", "jetmoe"),
    *DETECTED,
]
"""Beside these one type for each way in which the others differ."""
SEQUENCES = [
    Encoded(0, (5, 6, 7, 8, 9, 10, 11, 50, 51), (12,)),
    Encoded(1, (20, 21), (22, 23, 24)),
    Encoded(2, (30,), (31,)),
    Encoded(3, (40, 41, 42, 43), (44, 45)),
]

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: (logits - logits.amax(dim=-1, keepdim=True)).exp(),
    "sigmoid": lambda logits: 1 / (1 + (-logits).exp()),
    "sqrt_softplus": lambda logits: (1 + logits.exp()).log().sqrt(),
}
"""What r is proportional to."""


@cache
def checkpoint(model_type: str) -> Path:
    """Written once a process; not to be changed."""
    return save_tiny(Path(mkdtemp()) / model_type, model_type, layers=depth(model_type), seed=3)


def depth(model_type: str) -> int:
    """Decoder layers of its tiny checkpoint."""
    return DEPTHS.get(model_type, DEPTH)


def layers_of(network: Any) -> Any:
    """The list of decoder layers, wherever a family has it."""
    return network.get_submodule(family_of(network.config).layers)


def read(sequence: Encoded) -> list[int]:
    """The tokens that a network reads of it."""
    return [*sequence.prompt, *sequence.continuation[:-1]]


def suffix_of(folder: Path, first: int = 0) -> RoutedLM:
    """The network of a checkpoint from layer `first` on, with all its routers read."""
    model = model_config(folder)
    layers = family_of(load_config(model)).depth(load_config(model))
    network = load_span(model, Span.suffix(first, layers), None, CPU)
    layout = detect(network, range(first, layers))
    return RoutedLM(network, layout, layout.layers, first).attach()


def run(routed: RoutedLM, batch: Batch) -> RoutedOutput:
    """A forward pass without gradients."""
    with torch.no_grad():
        output: RoutedOutput = routed(**batch.inputs(CPU))
    return output


class Reference:
    """The stock model on right-padded sequences: logits [B, L, V] and r [B, L, M, E] by hand."""

    def __init__(self, stock: Any, sequences: Sequence[Encoded]) -> None:
        layout = detect(stock)
        inputs: list[torch.Tensor] = []
        # What the trained weight is multiplied by, also where a router has more in front of it.
        hooks = [
            stock.get_submodule(site.product).register_forward_pre_hook(
                lambda _, args: inputs.append(args[0])
            )
            for site in layout.sites
        ]
        longest = max(sequence.length for sequence in sequences)
        rows = [read(sequence) + [0] * (longest - sequence.length) for sequence in sequences]
        mask = [[int(place < sequence.length) for place in range(longest)] for sequence in sequences]
        with torch.no_grad():
            self.logits = stock(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask)).logits
        for hook in hooks:
            hook.remove()
        found = []
        for site, hidden in zip(layout.sites, inputs, strict=True):
            module = stock.get_submodule(site.product)
            product = hidden.reshape(len(sequences), longest, -1).double() @ module.weight.double().T
            bias = getattr(module, "bias", None)
            product = product if bias is None else product + bias.double()
            # Rows of shared experts, which a gate may weigh too, are none of r.
            scores = SCORES[layout.family.scoring](product[..., : layout.experts])
            found.append(scores / scores.sum(dim=-1, keepdim=True))
        self.routing = torch.stack(found, dim=2).float().detach()


def assert_as_reference(output: RoutedOutput, batch: Batch, reference: Reference, tokens: str) -> None:
    """What ours gave for `SEQUENCES` is what the stock model gives."""
    for row, sequence in enumerate(SEQUENCES):
        places = routing_positions(len(sequence.prompt), tokens)
        wanted = reference.routing[row, places].mean(dim=0)
        torch.testing.assert_close(output.routing[row], wanted, rtol=0, atol=2e-6)
        first = len(sequence.prompt) - 1
        predicted = reference.logits[row, first : first + len(sequence.continuation)]
        found = output.logits[batch.answer_sequence == row]
        torch.testing.assert_close(found, predicted, rtol=0, atol=2e-5)
