"""Every family, on a tiny checkpoint in the key layout of its publisher, against stock transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import (
    CPU,
    DETECTED,
    MECHANISMS,
    MODEL_TYPES,
    SEQUENCES,
    Reference,
    assert_as_reference,
    checkpoint,
    depth,
    layers_of,
    run,
    suffix_of,
)
from safetensors import safe_open
from tiny_runs import model_config, stock_class, stock_network

from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.export.merge import merge
from roma_ds.families import FAMILIES, MoELayout, detect, family_of
from roma_ds.network import packed_attention
from roma_ds.network.routed import RoutedLM
from roma_ds.network.token_rows import present
from roma_ds.sequences.batches import collate
from roma_ds.training.stage import write_router_file

pytestmark = pytest.mark.usefixtures("one_thread")
of_each = pytest.mark.parametrize("model_type", [*MODEL_TYPES, *DETECTED])
of_each_mechanism = pytest.mark.parametrize("model_type", MECHANISMS)
of_each_file = pytest.mark.parametrize("model_type", MODEL_TYPES)
PACKED = [family.model_types[0] for family in FAMILIES if family.mixing == "packed"]
BY_ROWS = [model_type for model_type in MODEL_TYPES if model_type not in PACKED]


def loaded(model_type: str, first: int = 0) -> RoutedLM:
    return suffix_of(checkpoint(model_type), first)


@of_each
def test_it_is_as_the_stock_model_padded(model_type: str) -> None:
    """Live routing is the family's scoring of h W^T done by hand, and logits are the model's own."""
    stock, routed = stock_network(model_config(checkpoint(model_type))), loaded(model_type)
    reference = Reference(stock, SEQUENCES)
    for tokens in ("last1", "middle3"):
        batch = collate(SEQUENCES, tokens)
        output = run(routed, batch)
        assert_as_reference(output, batch, reference, tokens)
        assert output.routing.dtype == torch.float32
        torch.testing.assert_close(output.routing.sum(dim=-1), torch.ones(output.routing.shape[:2]))
        # The comparison has teeth: r is far from uniform, and far from that of another layer.
        assert float(output.routing.std(dim=-1).min()) > 0.01
        assert float((output.routing[:, 0] - output.routing[:, 1]).abs().max()) > 0.05


@pytest.mark.parametrize("model_type", PACKED)
def test_all_sequences_in_one_call_give_the_same(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As attention goes on a GPU: padded, with windows, sinks and other sizes of value heads."""
    routed, batch = loaded(model_type), collate(SEQUENCES, "last3")
    wanted = run(routed, batch)
    calls = []
    monkeypatch.setattr(
        packed_attention, "apart", lambda *given: calls.append(1) or packed_attention.together(*given)
    )
    found = run(routed, batch)
    assert len(calls) == depth(model_type)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.routing, wanted.routing, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", [*BY_ROWS, *DETECTED])
def test_blocks_of_families_by_rows_see_no_padding(model_type: str) -> None:
    """The router of each layer sees as many rows as there are tokens; in the last layer, those that are read.

    A router that lies beside its experts in the layer, in no block of its own, sees the padding too.
    """
    routed, batch = loaded(model_type), collate(SEQUENCES, "last1")
    run(routed, batch)
    seen = {layer: len(hidden) for layer, hidden in routed.router_inputs.items()}
    apart = model_type in DETECTED
    every = len(SEQUENCES) * max(sequence.length for sequence in SEQUENCES) if apart else batch.tokens
    last = routed.last_layer
    assert {rows for layer, rows in seen.items() if layer != last} == {every}
    assert last not in seen or seen[last] == (every if apart else len(batch.packing.rows))


def assert_parts_are_the_whole(model_type: str, cut: int) -> None:
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


@pytest.mark.parametrize("cut", [1, 2])
@of_each_mechanism
def test_prefix_and_suffix_are_the_whole(model_type: str, cut: int) -> None:
    assert_parts_are_the_whole(model_type, cut)


@of_each
def test_the_last_layer_is_a_suffix(model_type: str) -> None:
    """One that takes keys, states or streams of earlier layers, where its family has such."""
    assert_parts_are_the_whole(model_type, depth(model_type) - 1)


@of_each
def test_every_tensor_is_that_of_the_stock_model(model_type: str) -> None:
    """In bfloat16 too, where transformers keeps some tensors in float32: here only buffers."""
    for dtype in ("float32", "bfloat16"):
        model = model_config(checkpoint(model_type), dtype)
        wanted = dict(stock_network(model).state_dict())
        for first in (0, 2):
            network = load_span(model, Span.suffix(first, depth(model_type)), None, CPU)
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


@of_each_mechanism
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
    names = {f"{site.product}.weight" for site in routed.layout.sites if site.layer in chosen}
    after = routed.network.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == names
    assert len(names) == 2


@of_each_mechanism
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


@of_each
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
        before = stock(input_ids=ids, use_cache=False).logits
        for layer, weight in tuned.items():
            gates(stock, layout)[layer].copy_(weight)
        wanted = stock(input_ids=ids, use_cache=False).logits
    merge(base, tmp_path / "router.safetensors", tmp_path / "merged")
    merged, report = stock_class(base).from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        # torch chooses other kernels of a convolution for weights that could learn.
        found = merged.eval().requires_grad_(False)(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert float((found - before).abs().max()) > 1e-3


GLU = ("gate", "up", "down")
BLOCKS = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "mixer", "router", "experts", "shared_mlp")


def linear(place: str, *names: str) -> set[str]:
    return {f"{place}.{name}_proj.weight" for name in names}


def numbered(place: str) -> set[str]:
    return {f"{place}.w{number}.weight" for number in (1, 2, 3)}


EACH = linear("mlp.experts.0", *GLU)
SHARED = linear("mlp.shared_experts", *GLU)
SPARSE = numbered("block_sparse_moe.experts.0") | {"block_sparse_moe.gate.weight"}
PLAIN = EACH | {"mlp.gate.weight"}
GATED = PLAIN | linear("mlp.shared_expert", *GLU) | {"mlp.shared_expert_gate.weight"}
CORRECTED = PLAIN | SHARED | {"mlp.gate.e_score_correction_bias"}
GRANITE = {
    *(f"block_sparse_moe.{name}_linear.weight" for name in ("input", "output")),
    "block_sparse_moe.router.layer.weight",
}
STORED = {
    "olmoe": PLAIN,
    "flex_olmo": PLAIN,
    "qwen3_moe": PLAIN,
    "qwen2_moe": GATED,
    "mixtral": SPARSE,
    "phimoe": SPARSE,
    "granitemoe": GRANITE,
    "deepseek": PLAIN | SHARED,
    "deepseek_v2": PLAIN | SHARED,
    "deepseek_v3": CORRECTED,
    "glm4_moe": CORRECTED,
    "ernie4_5_moe": PLAIN | SHARED | {"mlp.moe_statics.e_score_correction_bias"},
    "gpt_oss": {
        "mlp.router.weight",
        "mlp.router.bias",
        *(f"mlp.experts.{name}{end}" for name in ("gate_up_proj", "down_proj") for end in ("", "_bias")),
    },
    "jetmoe": {f"mlp.{name}" for name in ("input_linear.weight", "output_linear.weight", "bias")}
    | {"mlp.router.layer.weight"},
    "dbrx": {f"ffn.experts.mlp.{name}" for name in ("w1", "v1", "w2")} | {"ffn.router.layer.weight"},
    "qwen3_next": GATED,
    "qwen3_5_moe_text": GATED,
    "glm4_moe_lite": CORRECTED,
    "glm_moe_dsa": CORRECTED,
    "deepseek_v32": CORRECTED,
    "minimax_m2": SPARSE | {"block_sparse_moe.e_score_correction_bias"},
    "kimi_linear": SPARSE
    | linear("block_sparse_moe.shared_experts", *GLU)
    | {"block_sparse_moe.gate.e_score_correction_bias"},
    "lfm2_moe": numbered("feed_forward.experts.0") | {"feed_forward.gate.weight", "feed_forward.expert_bias"},
    "nemotron_h": linear("mixer.experts.0", "up", "down")
    | linear("mixer.shared_experts", "up", "down")
    | linear("mixer", "fc1_latent", "fc2_latent")
    | {"mixer.gate.weight", "mixer.gate.e_score_correction_bias"},
    "granitemoehybrid": GRANITE | {f"shared_mlp.{name}_linear.weight" for name in ("input", "output")},
    "hunyuan_v1_moe": EACH | linear("mlp.shared_mlp", *GLU) | {"mlp.gate.wg.weight"},
    "exaone_moe": PLAIN | SHARED | {"mlp.e_score_correction_bias"},
    "llama4_text": {f"feed_forward.experts.{name}_proj" for name in ("gate_up", "down")}
    | linear("feed_forward.shared_expert", *GLU)
    | {"feed_forward.router.weight"},
    "gemma4_text": {f"experts.{name}_proj" for name in ("gate_up", "down")}
    | linear("mlp", *GLU)
    | {f"router.{name}" for name in ("proj.weight", "scale", "per_expert_scale")},
    "dots1": CORRECTED,
    "solar_open": CORRECTED,
    "afmoe": EACH | SHARED | {"mlp.router.gate.weight", "mlp.expert_bias"},
    "jamba": linear("feed_forward.experts.0", *GLU) | {"feed_forward.router.weight"},
    "mistral4": {f"mlp.experts.{name}_proj" for name in ("gate_up", "down")} | SHARED | {"mlp.gate.weight"},
}
"""What files in the publishers' layout hold of the first expert, the router and shared experts of a layer."""


@of_each_file
def test_the_layout_on_disk_is_the_publisher_s(model_type: str) -> None:
    assert set(STORED) == set(MODEL_TYPES)
    family = family_of(load_config(model_config(checkpoint(model_type))))
    place = family.stored_layer(depth(model_type) - 1)
    with safe_open(checkpoint(model_type) / "model.safetensors", framework="pt") as file:
        keys = {key.removeprefix(place) for key in file.keys() if key.startswith(place)}  # noqa: SIM118
    inside = {key for key in keys if key.partition(".")[0] in BLOCKS}
    assert {key for key in inside if not key.partition(".experts.")[2][:1].strip("0").isdigit()} == STORED[
        model_type
    ]


@of_each_file
def test_what_the_family_says_is_in_the_model(model_type: str) -> None:
    stock = stock_network(model_config(checkpoint(model_type)))
    layout, family = detect(stock), family_of(stock.config)
    assert layout.layers == family.sparse_layers(stock.config)
    assert layout.layers[-1] == depth(model_type) - 1
    with safe_open(checkpoint(model_type) / "model.safetensors", framework="pt") as file:
        for site in layout.sites:
            router, product = stock.get_submodule(site.module), stock.get_submodule(site.product)
            assert torch.equal(file.get_tensor(layout.gate_key(site.layer)), product.weight)
            weight = f"{family.weight}.weight" if family.weight else "weight"
            assert parts_of(router) == {weight, *family.frozen_router_parts}
            block = stock.get_submodule(site.module.rpartition(".")[0])
            own = {name for name in parts_of(block, recurse=False) if "bias" in name}
            assert own == set(family.frozen_block_parts) | ({"bias"} if model_type == "jetmoe" else set())
            for name in family.shared:
                layers_of(stock)[site.layer].get_submodule(name)
    assert (family.embedding, family.head) == tuple(
        name
        for end in (stock.get_input_embeddings(), stock.get_output_embeddings())
        for name, module in stock.named_modules()
        if module is end
    )
    mixers = {family.attention, *family.mixers}
    found = [{name for name in mixers if has(layer, name)} for layer in layers_of(stock)]
    assert all(len(names) == 1 for names in found) and set.union(*found) == mixers
    for number, layer in enumerate(layers_of(stock)):
        stacked = any("experts" in name for name, _ in layer.named_modules() if "shared" not in name)
        assert stacked == (number in layout.layers)
        mixes = family.mixes_tokens(stock.config, number)
        assert mixes == any(hasattr(part, "layer_idx") for part in layer.children())


def parts_of(module: Any, recurse: bool = True) -> set[str]:
    """Names of a module's parameters and buffers."""
    return {
        name
        for name, _ in (*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse))
    }


def has(layer: Any, path: str) -> bool:
    """Whether a layer has a module at a path; one that it leaves out is None there."""
    return next(present(layer, (path,)), None) is not None
