"""Frozen norms and the frozen head give what transformers' own give, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from roma_ds.families import FAMILIES, Family
from roma_ds.network import head as frozen_head
from roma_ds.network.frozen_modules import use_frozen_modules
from roma_ds.network.head import MOST_ROWS, use_frozen_head
from roma_ds.network.norms import use_frozen_norms
from roma_ds.testing.tiny_models import random_model, tiny_config

HIDDEN = 24
WITH_NORMS = [family for family in FAMILIES if family.norm_class is not None]


def network_of(family: Family) -> Any:
    """Two decoder layers, all of them frozen, with norm weights that are not 1."""
    config = tiny_config(family.model_types[0], vocabulary=50, layers=2, hidden=HIDDEN)
    torch.manual_seed(0)
    network = random_model(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.uniform_(0.5, 1.5)
    return network


def norms_of(network: nn.Module, family: Family) -> dict[str, nn.Module]:
    return {name: part for name, part in network.named_modules() if type(part).__name__ == family.norm_class}


def with_gradient(module: nn.Module, hidden: torch.Tensor, upward: torch.Tensor) -> list[torch.Tensor]:
    source = hidden.clone().requires_grad_(True)
    result = module(source)
    result.backward(upward)
    assert source.grad is not None
    return [result.detach(), source.grad]


@pytest.mark.parametrize("family", WITH_NORMS, ids=lambda family: family.name)
def test_every_norm_of_a_family_is_found(family: Family) -> None:
    network = network_of(family)
    # Of keys that an indexer sees, and of what linear attention gives, together with a gate.
    others = ("LayerNorm", "Gated")
    named = {
        name
        for name, part in network.named_modules()
        if "norm" in name.rpartition(".")[2] and not type(part).__name__.endswith(others)
    }
    assert set(norms_of(network, family)) == named
    assert named


@pytest.mark.parametrize("family", WITH_NORMS, ids=lambda family: family.name)
def test_norms_as_transformers_runs_them(family: Family) -> None:
    own, ours = network_of(family), network_of(family)
    assert family.norm_class is not None
    use_frozen_norms(ours, family.norm_class)
    found = norms_of(ours, family)
    for name, norm in norms_of(own, family).items():
        width = norm.get_parameter("weight").shape[0]
        hidden, upward = torch.randn(2, 3, 5, width) * 3, torch.randn(2, 3, 5, width)
        for ours_, theirs in zip(
            with_gradient(found[name], hidden, upward), with_gradient(norm, hidden, upward), strict=True
        ):
            torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-6)
        assert "_FrozenNorm" in type(found[name](hidden.requires_grad_(True)).grad_fn).__name__


@given(st.integers(0, 10**6), st.integers(1, 7), st.floats(0.01, 100))
def test_gradient_of_a_norm_is_that_of_finite_differences(seed: int, rows: int, scale: float) -> None:
    from roma_ds.network.norms import _FrozenNorm

    source = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(rows, 6, generator=source, dtype=torch.float64)
    weight = torch.randn(6, generator=source, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda value: _FrozenNorm.apply(value, weight, 1e-6), (hidden.requires_grad_(True),), eps=1e-6 * scale
    )


def test_bfloat16_norms_round_as_transformers_does() -> None:
    family = FAMILIES[0]
    assert family.norm_class is not None
    own, ours = (network_of(family).to(torch.bfloat16) for _ in range(2))
    use_frozen_norms(ours, family.norm_class)
    hidden = torch.randn(64, HIDDEN, dtype=torch.bfloat16)
    theirs = own.get_submodule("model.norm")(hidden)
    mine = ours.get_submodule("model.norm")(hidden)
    assert mine.dtype == torch.bfloat16
    assert (mine != theirs).float().mean() < 0.02
    torch.testing.assert_close(mine, theirs, rtol=2**-7, atol=0)


def test_a_norm_that_learns_runs_as_the_library_has_it() -> None:
    family = FAMILIES[0]
    assert family.norm_class is not None
    network = network_of(family)
    use_frozen_norms(network, family.norm_class)
    norm: Any = network.get_submodule("model.norm")
    norm.weight.requires_grad_(True)
    norm(torch.randn(4, HIDDEN)).sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("rows", [1, 2, 8, MOST_ROWS, MOST_ROWS + 1, 40])
def test_head_as_the_library_runs_it(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_head, "PART_BYTES", 7 * HIDDEN * 4)
    own = nn.Linear(HIDDEN, 50, bias=False).requires_grad_(False)
    ours = nn.Linear(HIDDEN, 50, bias=False).requires_grad_(False)
    ours.load_state_dict(own.state_dict())
    use_frozen_head(ours)
    hidden, upward = torch.randn(rows, HIDDEN), torch.randn(rows, 50)
    for mine, theirs in zip(
        with_gradient(ours, hidden, upward), with_gradient(own, hidden, upward), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    by_parts = "_FewRows" in type(ours(hidden.requires_grad_(True)).grad_fn).__name__
    assert by_parts == (1 < rows <= MOST_ROWS)


def test_a_head_that_learns_or_has_a_bias_is_left_alone() -> None:
    for head in (nn.Linear(HIDDEN, 50, bias=False), nn.Linear(HIDDEN, 50).requires_grad_(False)):
        use_frozen_head(head)
        result = head(torch.randn(4, HIDDEN, requires_grad=True))
        assert "_FewRows" not in type(result.grad_fn).__name__


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.norm_class is None], ids=lambda family: family.name
)
def test_other_norms_are_left_to_the_library(family: Family) -> None:
    network = network_of(family)
    use_frozen_modules(network)
    norms = [part for name, part in network.named_modules() if "norm" in name.rpartition(".")[2]]
    assert norms and not any("forward" in vars(norm) for norm in norms)
