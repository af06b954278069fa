"""Frozen experts one after the other give what transformers' own implementations give, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.families import FAMILIES
from roma_ds.network.experts import FROZEN_EXPERTS, ROWS, _fits, rows_run, use_frozen_experts
from roma_ds.testing.tiny_models import random_model, tiny_config

HIDDEN, WIDTH, EXPERTS = 16, 8, 6
GROUPS = {"n_group": 2, "topk_group": 1}
TYPES = ["olmoe", "qwen3_moe"]
OWN = ("jetmoe", "dbrx", "llama4_text")
"""Types whose experts are not run through the library's interface: they stay as they are."""
ALL_TYPES = [family.model_types[0] for family in FAMILIES if family.model_types[0] not in OWN]
OTHERS = ("gpt_oss", "nemotron_h", "gemma4_text")
"""Experts with biases, without a gate, and with another activation."""
SPARSE = {
    "first_k_dense_replace": 0,
    "num_dense_layers": 0,
    "mlp_layer_types": ["sparse"],
    "mlp_only_layers": [],
    "moe_layer_start_index": 0,
    "moe_layers": [0],
}
"""What makes the only layer of a tiny model a sparse one."""


def interfaced(model_type: str, **more: Any) -> list[Any]:
    """The modules of a network of one layer that run through the library's interface of experts."""
    sizes = {"intermediate_size": WIDTH, "moe_intermediate_size": WIDTH} | SPARSE
    config = tiny_config(model_type, 8, 1, EXPERTS, HIDDEN, **sizes, **GROUPS, **more)
    torch.manual_seed(0)
    network = random_model(config)
    use_frozen_experts(network)
    return [part for part in network.modules() if hasattr(part, "has_gate")]


def block(model_type: str, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """The experts of one layer, with random weights."""
    (experts,) = interfaced(model_type, **more)
    experts.to(dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        parameter.requires_grad_(False)
    return experts


def pairs(tokens: int, chosen: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    source = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, HIDDEN, generator=source, dtype=torch.float64).to(dtype)
    logits = torch.randn(tokens, EXPERTS, generator=source, dtype=torch.float64)
    weights, index = torch.softmax(logits, dim=-1).topk(chosen)
    return hidden, weights.to(dtype), index


def run(experts: Any, name: str, inputs: tuple[torch.Tensor, ...], learn: tuple[bool, bool]) -> list[Any]:
    """Result, then gradients of a weighted sum of it to hidden states and weights, if they are asked for."""
    experts.config._experts_implementation = name
    hidden, weights = (
        value.clone().requires_grad_(asked) for value, asked in zip(inputs[:2], learn, strict=True)
    )
    result = experts(hidden, inputs[2], weights)
    if any(learn):
        (result * torch.linspace(-1, 2, HIDDEN, dtype=result.dtype)).sum().backward()
    return [result.detach(), hidden.grad, weights.grad]


@pytest.mark.parametrize("model_type", TYPES)
@given(
    tokens=st.integers(1, 9),
    chosen=st.integers(1, EXPERTS),
    seed=st.integers(0, 99),
    learn=st.tuples(st.booleans(), st.booleans()),
)
def test_as_transformers_runs_them(
    model_type: str, tokens: int, chosen: int, seed: int, learn: tuple[bool, bool]
) -> None:
    experts = block(model_type)
    inputs = pairs(tokens, chosen, seed, torch.float64)
    wanted = run(experts, "eager", inputs, learn)
    for found, value in zip(run(experts, FROZEN_EXPERTS, inputs, learn), wanted, strict=True):
        assert (found is None) == (value is None)
        if value is not None:
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model_type", ALL_TYPES)
def test_the_experts_of_every_family(model_type: str) -> None:
    """By this function where they are what it computes, else by the library's."""
    experts = block(model_type, torch.float32)
    inputs = pairs(11, 3, 5, torch.float32)
    wanted = run(experts, "eager", inputs, (True, True))
    for found, value in zip(run(experts, FROZEN_EXPERTS, inputs, (True, True)), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    assert _fits(experts, inputs[0]) == (model_type not in OTHERS)


@pytest.mark.parametrize("model_type", OWN)
def test_experts_beside_the_interface_are_the_library_s(model_type: str) -> None:
    assert not interfaced(model_type)


@pytest.mark.parametrize("learn", [(True, True), (False, True)])
def test_gradients_are_those_of_finite_differences(learn: tuple[bool, bool]) -> None:
    experts = block(TYPES[0])
    hidden, weights, index = pairs(5, 3, 1, torch.float64)
    inputs = (hidden.requires_grad_(learn[0]), weights.requires_grad_(learn[1]))
    assert torch.autograd.gradcheck(lambda h, w: experts(h, index, w), inputs)


def test_bfloat16_rounds_no_more_than_the_library() -> None:
    experts = block(TYPES[0], torch.bfloat16)
    inputs = pairs(64, 4, 2, torch.bfloat16)
    found, usual = (run(experts, name, inputs, (True, True)) for name in (FROZEN_EXPERTS, "eager"))
    precise = tuple(value.double() if value.is_floating_point() else value for value in inputs)
    exact = run(experts.double(), "eager", precise, (True, True))
    for value, rounded, wanted in zip(found, usual, exact, strict=True):
        assert value.dtype == torch.bfloat16
        ours, theirs = ((item.double() - wanted).norm() / wanted.norm() for item in (value, rounded))
        assert ours <= 1.2 * theirs < 0.02


@pytest.mark.parametrize("change", ["activation", "learning"])
def test_other_experts_go_to_the_library(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the function does not compute must not be computed wrongly."""
    experts = block(TYPES[0], torch.float32, **({"hidden_act": "gelu"} if change == "activation" else {}))
    if change == "learning":
        experts.down_proj.requires_grad_(True)
    inputs = pairs(7, 2, 3, torch.float32)
    wanted = run(experts, "eager", inputs, (True, True))
    for found, value in zip(run(experts, FROZEN_EXPERTS, inputs, (True, True)), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    if change == "learning":
        assert experts.down_proj.grad is not None


def test_products_have_few_different_numbers_of_rows_each_close_to_what_is_needed() -> None:
    # oneDNN keeps compiled code for every number of rows in bfloat16.
    found = {rows_run(count) for count in range(1, 4097)}
    assert len(found) < 80
    for count in range(1, 4097):
        assert count <= rows_run(count) < max(count + ROWS, 1.13 * count)
