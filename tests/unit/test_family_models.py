"""Every family, on a tiny checkpoint in the key layout of its publisher, against stock transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import (
    CPU,
    DEPTH,
    MODEL_TYPES,
    SEQUENCES,
    Reference,
    assert_as_reference,
    checkpoint,
    run,
    suffix_of,
)
from safetensors import safe_open
from tiny_runs import model_config, stock_network
from transformers import AutoModelForCausalLM

from roma_ds.checkpoint.span import Span, load_span
from roma_ds.export.merge import merge
from roma_ds.families import MoELayout, detect, family_of
from roma_ds.families.own_models import register_own_models
from roma_ds.network import packed_attention
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import collate
from roma_ds.training.stage import write_router_file

pytestmark = [pytest.mark.parametrize("model_type", MODEL_TYPES), pytest.mark.usefixtures("one_thread")]


def loaded(model_type: str, first: int = 0) -> RoutedLM:
    return suffix_of(checkpoint(model_type), first)


@pytest.mark.parametrize("tokens", ["last1", "middle3"])
def test_packed_is_as_the_stock_model_padded(model_type: str, tokens: str) -> None:
    """Live routing is the family's scoring of h W^T done by hand, and logits are the model's own."""
    stock = stock_network(model_config(checkpoint(model_type)))
    reference, batch = Reference(stock, SEQUENCES), collate(SEQUENCES, tokens)
    output = run(loaded(model_type), batch)
    assert_as_reference(output, batch, reference, tokens)
    assert output.routing.dtype == torch.float32
    torch.testing.assert_close(output.routing.sum(dim=-1), torch.ones(output.routing.shape[:2]))
    # The comparison has teeth: r is far from uniform, and far from that of another layer.
    assert float(output.routing.std(dim=-1).min()) > 0.01
    assert float((output.routing[:, 0] - output.routing[:, 1]).abs().max()) > 0.05


def test_all_sequences_in_one_call_give_the_same(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As attention goes on a GPU: padded, with windows, sinks and other sizes of value heads."""
    routed, batch = loaded(model_type), collate(SEQUENCES, "last3")
    wanted = run(routed, batch)
    calls = []
    monkeypatch.setattr(
        packed_attention, "apart", lambda *given: calls.append(1) or packed_attention.together(*given)
    )
    found = run(routed, batch)
    assert len(calls) == DEPTH
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.routing, wanted.routing, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_prefix_and_suffix_are_the_whole(model_type: str, cut: int) -> None:
    whole, batch = loaded(model_type), collate(SEQUENCES, "last3")
    whole.capture(cut)
    wanted = run(whole, batch)
    assert wanted.entering is not None
    model = model_config(checkpoint(model_type))
    network = load_span(model, Span(0, cut, embedding=True, head=False), None, CPU)
    layout = detect(network, range(cut))
    with torch.no_grad():
        hidden, _ = RoutedLM(network, layout, layout.layers).attach().through(cut, **batch.inputs(CPU))
    torch.testing.assert_close(hidden, wanted.entering, rtol=0, atol=1e-6)
    suffix = loaded(model_type, cut)
    output = run(suffix, replace(batch, entering=wanted.entering))
    torch.testing.assert_close(output.logits, wanted.logits, rtol=0, atol=1e-6)
    kept = [place for place, layer in enumerate(whole.layers) if layer >= cut]
    assert suffix.layers == tuple(whole.layers[place] for place in kept)
    torch.testing.assert_close(output.routing, wanted.routing[:, kept], rtol=0, atol=1e-6)


def test_every_tensor_is_that_of_the_stock_model(model_type: str) -> None:
    """In bfloat16 too, where transformers keeps some tensors in float32: here only buffers."""
    for dtype in ("float32", "bfloat16"):
        model = model_config(checkpoint(model_type), dtype)
        wanted = dict(stock_network(model).state_dict())
        for first in (0, 2):
            network = load_span(model, Span.suffix(first, DEPTH), None, CPU)
            for name, tensor in network.state_dict().items():
                if name in dict(network.named_parameters()):
                    assert tensor.dtype == getattr(torch, dtype), name
                else:
                    assert tensor.dtype == wanted[name].dtype, name
                assert torch.equal(tensor, wanted[name].to(tensor.dtype)), name
            if first == 0:
                assert network.state_dict().keys() == wanted.keys()


def gates(network: Any, layout: MoELayout) -> dict[int, Any]:
    return {site.layer: network.get_parameter(f"{site.product}.weight") for site in layout.sites}


def test_training_moves_the_chosen_routers_alone(model_type: str) -> None:
    routed = loaded(model_type)
    chosen = routed.layout.choose("last2")
    before = {name: value.clone() for name, value in routed.network.state_dict().items()}
    routers = routed.routers()
    learning = [routers[layer].requires_grad_(True) for layer in chosen]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    batch = collate(SEQUENCES, "last1")
    losses = []
    for _ in range(4):
        output = routed(**batch.inputs(CPU))
        task = torch.nn.functional.cross_entropy(output.logits, batch.answer_ids)
        pull = output.routing[:, [routed.layers.index(layer) for layer in chosen]].square().sum()
        losses.append(float(task + pull))
        optimizer.zero_grad()
        (task + pull).backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    names = {f"{site.module}.weight" for site in routed.layout.sites if site.layer in chosen}
    after = routed.network.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == names
    assert len(names) == 2


def test_gradient_of_r_is_that_of_finite_differences(model_type: str) -> None:
    routed = loaded(model_type)
    layer = routed.layers[-1]
    weight = routed.routers()[layer].requires_grad_(True)
    batch = collate(SEQUENCES, "last1")

    def term() -> torch.Tensor:
        found: torch.Tensor = routed(**batch.inputs(CPU)).routing[:, -1].square().sum()
        return found

    term().backward()
    assert weight.grad is not None
    step = weight.grad / weight.grad.norm()
    with torch.no_grad():
        kept = weight.clone()
        weight.copy_(kept + 0.02 * step)
        more = term()
        weight.copy_(kept - 0.02 * step)
        less = term()
    assert float(weight.grad.norm()) == pytest.approx(float(more - less) / 0.04, rel=0.02)


def test_a_merged_checkpoint_is_the_tuned_model(model_type: str, tmp_path: Path) -> None:
    base = checkpoint(model_type)
    stock = stock_network(model_config(base))
    layout = detect(stock)
    source = torch.Generator().manual_seed(1)
    tuned = {
        layer: weight + 0.3 * torch.randn(weight.shape, generator=source)
        for layer, weight in gates(stock, layout).items()
        if layer in layout.choose("last2")
    }
    keys = {layer: layout.gate_key(layer) for layer in tuned}
    write_router_file(tmp_path / "router.safetensors", tuned, keys, {"method": "roma"})
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        before = stock(input_ids=ids).logits
        for layer, weight in tuned.items():
            gates(stock, layout)[layer].copy_(weight)
        wanted = stock(input_ids=ids).logits
    merge(base, tmp_path / "router.safetensors", tmp_path / "merged")
    merged, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        found = merged.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert float((found - before).abs().max()) > 1e-3


EACH = {f"mlp.experts.0.{name}_proj.weight" for name in ("gate", "up", "down")}
SHARED = {f"mlp.shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")}
SPARSE = {f"block_sparse_moe.experts.0.w{number}.weight" for number in (1, 2, 3)} | {
    "block_sparse_moe.gate.weight"
}
PLAIN = EACH | {"mlp.gate.weight"}
STORED = {
    "olmoe": PLAIN,
    "flex_olmo": PLAIN,
    "qwen3_moe": PLAIN,
    "qwen2_moe": PLAIN
    | {f"mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up", "down")}
    | {"mlp.shared_expert_gate.weight"},
    "mixtral": SPARSE,
    "phimoe": SPARSE,
    "granitemoe": {
        "block_sparse_moe.input_linear.weight",
        "block_sparse_moe.output_linear.weight",
        "block_sparse_moe.router.layer.weight",
    },
    "deepseek": PLAIN | SHARED,
    "deepseek_v2": PLAIN | SHARED,
    "deepseek_v3": PLAIN | SHARED | {"mlp.gate.e_score_correction_bias"},
    "glm4_moe": PLAIN | SHARED | {"mlp.gate.e_score_correction_bias"},
    "ernie4_5_moe": PLAIN | SHARED | {"mlp.moe_statics.e_score_correction_bias"},
    "gpt_oss": {
        "mlp.router.weight",
        "mlp.router.bias",
        *(f"mlp.experts.{name}{end}" for name in ("gate_up_proj", "down_proj") for end in ("", "_bias")),
    },
}
"""What the publishers' own files hold of the first expert, the router and shared experts of a layer."""


def test_the_layout_on_disk_is_the_publisher_s(model_type: str) -> None:
    assert set(STORED) == set(MODEL_TYPES)
    with safe_open(checkpoint(model_type) / "model.safetensors", framework="pt") as file:
        keys = {key for key in file.keys() if ".layers.2." in key}  # noqa: SIM118 - not a mapping
    inside = {key.removeprefix("model.layers.2.") for key in keys if "moe" in key or ".mlp." in key}
    assert {key for key in inside if not key.partition(".experts.")[2][:1].strip("0").isdigit()} == STORED[
        model_type
    ]


def test_what_the_family_says_is_in_the_model(model_type: str) -> None:
    register_own_models()
    stock = stock_network(model_config(checkpoint(model_type)))
    layout, family = detect(stock), family_of(stock.config)
    assert layout.layers == family.sparse_layers(stock.config)
    with safe_open(checkpoint(model_type) / "model.safetensors", framework="pt") as file:
        for site in layout.sites:
            router = stock.get_submodule(site.module)
            assert torch.equal(file.get_tensor(layout.gate_key(site.layer)), router.weight)
            own = {name for name, _ in (*router.named_parameters(), *router.named_buffers())}
            assert own == {"weight", *family.frozen_router_parts}
            layer = stock.base_model.layers[site.layer]
            for name in (*family.shared, family.attention):
                layer.get_submodule(name)
    dense = set(range(DEPTH)) - set(layout.layers)
    for number in dense:
        assert not any("experts" in name for name, _ in stock.base_model.layers[number].named_modules())
