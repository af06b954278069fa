"""A tiny checkpoint for each way in which a layer hands on more than hidden states, or cannot be packed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from tiny_runs import model_config

from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.families import detect, family_of
from roma_ds.network.routed import RoutedLM, RoutedOutput
from roma_ds.sequences.batches import Batch, collate
from roma_ds.sequences.encoding import Encoded
from roma_ds.testing.tiny_models import save_tiny

CPU = torch.device("cpu")
DEPTH = 6
MECHANISMS = {
    "qwen3_next": "linear attention",
    "nemotron_h": "a state space, attention, an MLP or experts in a layer",
    "glm_moe_dsa": "keys that an earlier layer chose",
    "deepseek_v4": "several residual streams, experts by token, roots of softplus",
    "lfm2_moe": "convolutions, and a bias that the router is given",
    "gemma4_text": "a router beside its experts, which gives probabilities out",
    "zaya": "a router that reads the one before it, a class that skips, streams in float32",
    "inkling_text": "shared experts that the router weighs",
    "inkling2_text": "hidden states that entered earlier blocks, which the model keeps",
    "minimax_m2": "packed, with a bias that the router is given",
}
CARRYING = ("glm_moe_dsa", "deepseek_v4", "zaya", "inkling2_text")
"""Those whose tables are more than hidden states in the type of the weights."""


def made_up(*lengths: tuple[int, int]) -> list[Encoded]:
    """Sequences of random tokens; lengths: of prompt and continuation."""
    source = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 180, (count,), generator=source).tolist())

    return [Encoded(row, tokens(first), tokens(second)) for row, (first, second) in enumerate(lengths)]


SEQUENCES = made_up((9, 1), (1, 3), (23, 2), (1, 1), (14, 4))
"""Beyond every window and choice of keys, and of a single token."""


@cache
def checkpoint(model_type: str, **more: Any) -> Path:
    """Written once a process; not to be changed."""
    return save_tiny(Path(mkdtemp()) / model_type, model_type, layers=DEPTH, seed=3, **more)


@cache
def part(folder: Path, first: int | None = None, dtype: str = "float32", read: int = 0) -> RoutedLM:
    """The network from layer `first` on, without embedding, or all of it.

    read: how many routers are read, from the end; 0 for all. Loaded once a process; not to be changed.
    """
    model = model_config(folder, dtype)
    depth = family_of(load_config(model)).depth(load_config(model))
    span = Span.suffix(0, depth) if first is None else Span(first, depth, embedding=False, head=True)
    network = load_span(model, span, None, CPU)
    layout = detect(network, range(first or 0, depth))
    return RoutedLM(network, layout, layout.layers[-read:], first or 0).attach()


def run(routed: RoutedLM, batch: Batch, entering: torch.Tensor | None = None) -> RoutedOutput:
    """A forward pass without gradients, fed with a table where there is one."""
    with torch.no_grad():
        output: RoutedOutput = routed(**replace(batch, entering=entering).inputs(CPU))
    return output


def entering_at(folder: Path, layer: int, batch: Batch, dtype: str = "float32") -> torch.Tensor:
    """What enters a layer of the whole network."""
    whole = part(folder, dtype=dtype)
    whole.capture(layer)
    table = run(whole, batch).entering
    assert table is not None
    return table


def logits_of(output: RoutedOutput, batch: Batch, row: int) -> torch.Tensor:
    """Of one sequence of a batch, [answers, V]."""
    found: torch.Tensor = output.logits[batch.answer_sequence == row]
    return found


def together(*sequences: Encoded) -> Batch:
    """One batch of sequences, which are numbered anew."""
    return collate([replace(one, row=row) for row, one in enumerate(sequences)], "last1")
