"""Products of bfloat16 by float32, on processors that have none of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from roma_ds.network import products
from roma_ds.network.experts import FROZEN_EXPERTS, use_frozen_experts
from roma_ds.network.frozen_modules import use_frozen_modules
from roma_ds.network.products import by_float32, use_linears
from roma_ds.testing.tiny_models import tiny_config

HALF_A_STEP = 2.0**-8
"""Half a step of bfloat16, relative."""


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "lacks_bfloat16", lambda: True)


def network_of(model_type: str = "olmoe") -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(tiny_config(model_type, vocabulary=50, layers=1, hidden=24))
    return network.to(torch.bfloat16).eval().requires_grad_(False)


def linear(bias: bool, learns: bool = False) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(24, 10, bias=bias).to(torch.bfloat16).requires_grad_(learns)


def answered(module: nn.Module, hidden: torch.Tensor) -> list[torch.Tensor]:
    """What it gives, and the gradients to what goes in and to all that learns."""
    source = hidden.clone().requires_grad_(True)
    result = module(source)
    (result * torch.linspace(-1, 2, result.shape[-1], dtype=result.dtype)).sum().backward()
    learnt = [p.grad for p in module.parameters() if p.grad is not None]
    assert source.grad is not None
    return [result.detach(), source.grad, *learnt]


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40), st.integers(1, 7), st.booleans())
def test_a_product_is_rounded_once(seed: int, rows: int, inner: int, columns: int, with_bias: bool) -> None:
    source = torch.Generator().manual_seed(seed)
    left, right, bias = (
        torch.randn(*shape, generator=source).to(torch.bfloat16)
        for shape in ((rows, inner), (inner, columns), (columns,))
    )
    exact = left.double() @ right.double() + (bias.double() if with_bias else 0)
    sizes = left.double().abs() @ right.double().abs() + bias.double().abs()
    found = by_float32(left, right, bias if with_bias else None)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - exact).abs() <= HALF_A_STEP * exact.abs() + 1e-5 * sizes).all()


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 24), (1, 7, 24)])
def test_a_linear_layer_as_the_library_runs_it(shape: tuple[int, ...], bias: bool, learns: bool) -> None:
    own, ours = linear(bias, learns), linear(bias, learns)
    use_linears(ours)
    assert "forward" in vars(ours)
    hidden = torch.randn(shape).to(torch.bfloat16)
    mine, theirs = answered(ours, hidden), answered(own, hidden)
    assert len(mine) == len(theirs) == 2 + learns * (1 + bias)
    for found, wanted in zip(mine, theirs, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=2**-7)
    name = type(ours(hidden.requires_grad_(True)).grad_fn).__name__
    assert ("_FrozenLinear" in name) != learns


@pytest.mark.usefixtures("lacking")
def test_learning_or_not_changes_no_bit_of_the_values() -> None:
    frozen, learning = linear(bias=True), linear(bias=True, learns=True)
    hidden = torch.randn(5, 24).to(torch.bfloat16)
    for module in (frozen, learning):
        use_linears(module)
    assert torch.equal(frozen(hidden), learning(hidden))


@pytest.mark.usefixtures("lacking")
def test_float32_and_the_head_are_left_alone() -> None:
    module, hidden = linear(bias=False).float(), torch.randn(5, 24)
    own = module(hidden)
    use_linears(module)
    assert torch.equal(module(hidden), own)
    network = network_of()
    use_linears(network)
    assert "forward" not in vars(network.get_output_embeddings())
    assert "forward" in vars(network.model.layers[0].self_attn.q_proj)


def test_nothing_changes_where_the_processor_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "lacks_bfloat16", lambda: False)
    network = network_of()
    use_frozen_modules(network)
    changed = [part for part in network.modules() if isinstance(part, nn.Linear) and "forward" in vars(part)]
    assert changed in ([], [network.get_output_embeddings()])


@pytest.mark.parametrize("lacks", [False, True])
def test_experts_in_bfloat16(lacks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "lacks_bfloat16", lambda: lacks)
    network = network_of()
    use_frozen_experts(network)
    (experts,) = (part for part in network.modules() if hasattr(part, "gate_up_proj"))
    hidden = torch.randn(9, 24).to(torch.bfloat16)
    weights, index = torch.softmax(torch.randn(9, len(experts.gate_up_proj)), dim=-1).topk(2)
    found = []
    for name in ("eager", FROZEN_EXPERTS):
        experts.config._experts_implementation = name
        source = hidden.clone().requires_grad_(True)
        result = experts(source, index, weights.to(torch.bfloat16))
        result.sum().backward()
        assert source.grad is not None
        found.append((result.detach(), source.grad))
    for theirs, mine in zip(*found, strict=True):
        assert F.cosine_similarity(mine.double().flatten(), theirs.double().flatten(), dim=0) > 0.9999
