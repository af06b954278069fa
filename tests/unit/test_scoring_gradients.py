"""Gradients of a gate, for each way in which routers score, against finite differences and autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from mechanism_models import CPU, SEQUENCES, checkpoint, part
from stream_setting import WORLD

from roma_ds.network.routed import RoutedLM, RoutedOutput
from roma_ds.sequences.batches import Batch, collate
from roma_ds.training.term_gradients import TermGradient

pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = {
    "qwen3_next": "softmax",
    "minimax_m2": "sigmoids and a bias",
    "deepseek_v4": "roots of softplus",
    "longcat_flash": "softmax with experts that pass a token on",
    "zaya": "softmax with a class that skips, behind an MLP",
    "inkling_text": "sigmoids, jointly with shared experts",
    "gemma4_text": "softmax behind a norm and scales",
    "llama4_text": "a sigmoid of the input",
}
STEPS = (0.01, 0.002, 0.0005)
"""Lengths of which the largest counts that leaves all tokens where they are."""
of_each_way = pytest.mark.parametrize("model_type", WAYS)
Term = Callable[[RoutedOutput], torch.Tensor]


def task(output: RoutedOutput) -> torch.Tensor:
    """The cross-entropy of all answers, in sum."""
    return torch.nn.functional.cross_entropy(output.logits, BATCH.answer_ids, reduction="sum")


def pull(output: RoutedOutput) -> torch.Tensor:
    """What differs from expert to expert, as the manifold term's gradient does."""
    towards = torch.linspace(0, 1, output.routing.shape[-1])
    return (output.routing - towards).square().sum()


BATCH: Batch = collate(SEQUENCES, "last1")


@contextmanager
def learning(routed: RoutedLM) -> Iterator[dict[int, torch.nn.Parameter]]:
    """The gates that are read, which get a gradient."""
    gates = {layer: gate.requires_grad_(True) for layer, gate in routed.routers().items()}
    yield gates
    for gate in gates.values():
        gate.requires_grad_(False)
        gate.grad = None


def directional(routed: RoutedLM, gate: torch.Tensor, step: torch.Tensor, term: Term) -> float | None:
    """The central difference of a term along `step`; None where a token's experts change on the way."""
    kept = gate.clone()
    with torch.no_grad():
        ends = [routed(**BATCH.inputs(CPU))]
        for sign in (1, -1):
            gate.copy_(kept + sign * step)
            ends.append(routed(**BATCH.inputs(CPU)))
        gate.copy_(kept)
    middle, more, less = ends
    if not (torch.equal(middle.load, more.load) and torch.equal(middle.load, less.load)):
        return None
    return float(term(more).double() - term(less).double()) / (2 * float(step.norm()))


@pytest.mark.parametrize("term", [task, pull], ids=["loss", "r"])
@of_each_way
def test_the_gradient_of_a_gate_is_that_of_finite_differences(model_type: str, term: Term) -> None:
    routed = part(checkpoint(model_type), read=2)
    with learning(routed) as gates:
        term(routed(**BATCH.inputs(CPU))).backward()
        for gate in gates.values():
            assert gate.grad is not None
            along = gate.grad / gate.grad.norm()
            found = (directional(routed, gate, along * size, term) for size in STEPS)
            difference = next(value for value in found if value is not None)
            assert difference == pytest.approx(float(gate.grad.norm()), rel=0.02)


@of_each_way
def test_the_norms_of_the_two_terms_are_those_of_their_own_gradients(model_type: str) -> None:
    """Also where the weight is one of several in its router, or has more rows than r has entries."""
    routed = part(checkpoint(model_type), read=2)
    with learning(routed) as gates:
        for term in (task, pull):
            gradient = TermGradient(routed)
            output = routed(**BATCH.inputs(CPU))
            gradient.watch()
            wanted = torch.autograd.grad(term(output), list(gates.values()))
            norm = torch.linalg.vector_norm(torch.cat([one.flatten() for one in wanted]))
            assert gradient.norm(WORLD, dict(gates)) == pytest.approx(float(norm), rel=1e-4)
