"""Experts that stay in the codes of their checkpoint give the numbers of decoded ones, bit for bit."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from coded_checkpoints import change, in_codes, with_blocks
from coded_tensors import FORMATS, by_name
from safetensors.torch import load_file
from stream_setting import CPU, DEPTH, WORLD, Setting

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.loaded_weights import check_loaded
from roma_ds.checkpoint.span import Span, SpanLoader, load_span, skeleton
from roma_ds.checkpoint.stored.codes import FOUR_BIT_FLOATS, eight_bit_numbers, pairs, powers
from roma_ds.checkpoint.stored.kept_experts import KeptExperts, kept_in
from roma_ds.config import ModelConfig
from roma_ds.errors import RomaError, UserError
from roma_ds.families import detect
from roma_ds.frozen_pass.frozen_model import load_part
from roma_ds.frozen_pass.kept_codes import keeps_codes, kept_bytes
from roma_ds.network.routed import RoutedLM
from roma_ds.planner import memory
from roma_ds.planner.model_sizes import sizes_of
from roma_ds.planner.step_traffic import gathered_bytes
from roma_ds.planner.zero3_fetches import Zero3Limits
from roma_ds.sequences.batches import collate
from roma_ds.testing.tiny_models import save_tiny

BLOCKS = "mxfp4 blocks"
FEW = [("qwen3_moe", "fp8 blocks of another size"), ("gpt_oss", BLOCKS), ("qwen3_moe", "int4 groups")]
CASES = [("qwen3_moe", form.name) for form in FORMATS if form.name not in ("fp8 blocks", "fp8 576 rows")]
CASES += [("deepseek_v3", "fp8 blocks of another size"), ("olmoe", "fp8 blocks"), ("gpt_oss", BLOCKS)]
WHOLE = Span.suffix(0, DEPTH)
Coded = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Coded:
    """The folder of a checkpoint in codes, made when first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def folder(model_type: str, name: str) -> Path:
        if (model_type, name) not in made:
            place = tmp_path_factory.mktemp("coded")
            more = {"intermediate_size": 32} if model_type == "gpt_oss" else {}
            experts = 8 if model_type == "deepseek_v3" else 4
            base = save_tiny(place / "base", model_type, experts=experts, **more)
            made[model_type, name] = (
                with_blocks(base, place) if name == BLOCKS else in_codes(base, place, by_name(name))
            )[0]
        return made[model_type, name]

    return folder


def configured(folder: Path, dtype: str = "float32", **more: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), dtype=dtype, **more)  # type: ignore[arg-type]


def trained(model: ModelConfig, stored: bool, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of 12 steps towards even logits, and the routers after them."""
    setting = Setting(Path(model.path), folder, model.dtype)
    network, layout = load_part(WORLD, model, DEPTH, None, None, stored)
    assert bool(kept_in(network)) == stored
    routed = RoutedLM(network, layout, layout.layers).attach()
    gates = {
        name: network.get_parameter(name) for name in (f"{site.product}.weight" for site in layout.sites)
    }
    for gate in gates.values():
        gate.requires_grad_(True)
    optimizer = torch.optim.SGD(gates.values(), lr=5.0)
    losses = []
    for step in range(12):
        numbers = setting.batches[step % len(setting.batches)]
        batch = collate([setting.requests.sequences[number] for number in numbers], "last1")
        output = routed(**batch.inputs(CPU))
        loss = output.logits.float().logsumexp(dim=-1).mean() + output.routing.square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, {name: gate.detach() for name, gate in gates.items()}


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_is_that_with_decoded_experts(
    case: tuple[str, str], dtype: str, coded: Coded, tmp_path: Path
) -> None:
    model = configured(coded(*case), dtype)
    losses, routers = trained(model, True, tmp_path)
    other_losses, others = trained(model, False, tmp_path)
    assert losses == other_losses and len(set(losses)) > 4
    start = load_span(model, WHOLE, None, CPU)
    for name, values in routers.items():
        assert torch.equal(values, others[name]), name
        assert not torch.equal(values, start.get_parameter(name)), name


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_an_expert_decodes_to_what_is_read_decoded(case: tuple[str, str], coded: Coded) -> None:
    for dtype in ("float32", "bfloat16"):
        model = configured(coded(*case), dtype)
        network, plain = load_span(model, WHOLE, None, CPU, stored=True), load_span(model, WHOLE, None, CPU)
        found = kept_in(network)
        assert found.keys() == {
            name for name, one in plain.named_parameters() if ".experts." in name and one.ndim == 3
        }
        for name, parameter in network.named_parameters():
            if name not in found:
                assert torch.equal(parameter, plain.get_parameter(name)), name
                continue
            values, before = plain.get_parameter(name), parameter.clone()
            assert parameter.dtype == torch.uint8 and not parameter.requires_grad
            assert found[name].saved == values.nbytes - parameter.nbytes > 0
            for expert, row in enumerate(parameter):
                assert torch.equal(found[name].decode(row), values[expert]), name
            assert torch.equal(parameter, before)


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_nothing_decoded_is_left_but_what_the_cache_has_room_for(
    case: tuple[str, str], coded: Coded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, alive, counts = KeptExperts.decode, [], []

    def counted(kept: KeptExperts, row: torch.Tensor) -> torch.Tensor:
        found = decode(kept, row)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(KeptExperts, "decode", counted)
    setting = Setting(coded(*case), tmp_path)
    batch = collate([setting.requests.sequences[number] for number in setting.batches[0]], "last1")
    numbers = []
    for room in (0.0, 9000 / 2**30, 1.0):
        network, layout = load_part(
            WORLD, replace(setting.model, decoded_cache=room), DEPTH, None, None, True
        )
        routed = RoutedLM(network, layout, layout.layers).attach()
        gate = network.get_parameter(f"{layout.sites[0].product}.weight").requires_grad_(True)
        alive.clear()
        for _ in range(2):
            output = routed(**batch.inputs(CPU))
            output.logits.float().logsumexp(dim=-1).mean().backward()
            del output
        assert gate.grad is not None
        numbers.append(gate.grad)
        held = [one() for one in alive]
        kept = [one for one in held if one is not None]
        assert sum(one.nbytes for one in kept) <= room * 2**30
        counts.append((len(alive), len(kept)))
        del held, kept, network, routed
    assert torch.equal(numbers[0], numbers[1]) and torch.equal(numbers[0], numbers[2])
    (every, none), (_, some), (once, all_held) = counts
    assert none == 0 < some < all_held == once and every >= 3 * once


class Share:
    """A rank's part of each parameter, as ZeRO-3 cuts it."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def spans(self, size: int) -> list[tuple[int, int]]:
        share = -(-size // self.ranks)
        start, stop = min(size, self.rank * share), min(size, (self.rank + 1) * share)
        return [(start, stop)] if start < stop else []

    def take(self, parameter: Any) -> None:
        assert parameter.device == CPU


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_a_rank_reads_its_share_of_the_codes(case: tuple[str, str], coded: Coded) -> None:
    model = configured(coded(*case), "bfloat16")
    whole = load_span(model, WHOLE, None, CPU, stored=True)
    for rank in range(3):
        loader = SpanLoader(model, WHOLE, CPU, stored=True)
        for part in loader.parts():
            loader.fill(part, Share(rank, 3))  # type: ignore[arg-type]
        for name in loader.kept:
            wanted, found = (one.get_parameter(name).reshape(-1) for one in (whole, loader.network))
            for start, stop in Share(rank, 3).spans(len(wanted)):
                assert torch.equal(found[start:stop], wanted[start:stop]), name


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_what_was_loaded_is_held_against_the_stored_bytes(case: tuple[str, str], coded: Coded) -> None:
    network, layout = load_part(WORLD, configured(coded(*case)), DEPTH, None, None, stored=True)
    files = CheckpointFiles(configured(coded(*case)))
    for name in kept_in(network):
        rows = network.get_parameter(name)
        rows[0, 5] ^= 1
        with pytest.raises(RomaError, match=r"experts\..* is not where it belongs"):
            check_loaded(network, layout, files, WORLD)
        rows[0, 5] ^= 1
    check_loaded(network, layout, files, WORLD)


def test_codes_that_stand_for_no_number_are_named(coded: Coded, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(coded(*FEW[0]), tmp_path / "model"))
    key = "model.layers.2.mlp.experts.1.up_proj.weight"
    codes = load_file(folder / "model.safetensors")[key]
    codes.view(torch.uint8)[-1, -1] = 0xFF
    change(folder, {key: codes})
    with pytest.raises(UserError, match=r"not finite .*layers\.2\.mlp\.experts\.gate_up_proj"):
        load_span(configured(folder), WHOLE, None, CPU, stored=True)


def test_experts_that_are_not_stored_alike_are_decoded(coded: Coded, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(coded(*FEW[0]), tmp_path / "model"))
    key = "model.layers.2.mlp.experts.1.up_proj.weight_scale_inv"
    scales = load_file(folder / "model.safetensors")[key]
    change(folder, {key: scales.to(torch.float16)})
    model = configured(folder, "bfloat16")
    network, plain = load_span(model, WHOLE, None, CPU, stored=True), load_span(model, WHOLE, None, CPU)
    whole = {
        f"model.layers.{layer}.mlp.experts.{name}_proj" for layer in range(4) for name in ("gate_up", "down")
    }
    assert whole - kept_in(network).keys() == {"model.layers.2.mlp.experts.gate_up_proj"}
    assert torch.equal(*(one.model.layers[2].mlp.experts.gate_up_proj for one in (network, plain)))


def test_what_cannot_stay_in_codes_is_refused_by_name(coded: Coded, tiny_qwen3: Path) -> None:
    plain = configured(tiny_qwen3, frozen="stored")
    with pytest.raises(
        UserError, match=r"model\.frozen: stored is not possible with .* no experts"
    ) as caught:
        load_part(WORLD, plain, DEPTH, None, None, stored=True)
    assert "model.frozen" in caught.value.fix
    network, _ = load_part(WORLD, replace(plain, frozen="auto"), DEPTH, None, None, stored=True)
    assert not kept_in(network)
    model = configured(coded(*FEW[0]), "bfloat16")
    network, _ = load_part(WORLD, replace(model, frozen="decoded"), DEPTH, None, None, stored=True)
    assert not kept_in(network)
    zero: dict[str, Any] = {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}
    nvme: dict[str, Any] = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}
    for ds, device in ((zero, CPU), (nvme, CPU), (None, torch.device("cuda"))):
        assert not keeps_codes(model, ds, device)
        with pytest.raises(UserError, match=r"model\.frozen: stored is not possible"):
            keeps_codes(replace(model, frozen="stored"), ds, device)
    assert keeps_codes(model, {"zero_optimization": {"stage": 3}}, CPU)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_every_code_of_eight_bits(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(16, 16)
    found, wanted = eight_bit_numbers(codes), codes.float()
    assert found.dtype == torch.float32
    numbers = ~wanted.isnan()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found[numbers].view(torch.int32), wanted[numbers].view(torch.int32))
    assert torch.equal(eight_bit_numbers(codes[:7]).nan_to_num(3.0), wanted[:7].nan_to_num(3.0))


def test_bfloat16_has_every_float_of_four_bits_at_every_power() -> None:
    codes = torch.arange(256, dtype=torch.uint8).expand(256, 256)
    scales = powers(torch.arange(256, dtype=torch.uint8))[:, None]
    rounded = (pairs(codes, FOUR_BIT_FLOATS) * scales).bfloat16()
    direct = pairs(codes, FOUR_BIT_FLOATS, dtype=torch.bfloat16) * scales.bfloat16()
    assert direct.dtype == torch.bfloat16 and direct.shape == (256, 512)
    assert torch.equal(direct[:255].view(torch.int16), rounded[:255].view(torch.int16))
    assert direct[255].isnan().all() and rounded[255].isnan().all()


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_forecasts_count_the_codes(case: tuple[str, str], coded: Coded) -> None:
    model = configured(coded(*case), "bfloat16")
    kept = kept_bytes(model, None, CPU)
    network = load_span(model, WHOLE, None, CPU, stored=True)
    assert kept == {name: network.get_parameter(name).nbytes for name in kept_in(network)} and kept
    assert kept_bytes(replace(model, frozen="decoded"), None, CPU) == {}
    assert kept_bytes(model, None, torch.device("cuda")) == {}
    layout = detect(network)
    sizes, plain = (sizes_of(skeleton(model), layout, found) for found in (kept, None))
    assert sizes.total == plain.total and sizes.expert_width == plain.expert_width
    assert sizes.held * 2 == sum(one.nbytes for one in network.parameters())
    for stage, ranks in ((0, 1), (3, 2)):
        setting = memory.Setting(
            zero_stage=stage, world_size=ranks, device="cpu", limits=Zero3Limits(persistence=0)
        )
        found, other = (memory.training_bytes(one.training((2, 3)), setting) for one in (sizes, plain))
        saved = 2 * plain.total - 2 * sizes.held
        assert abs(other.weights - found.weights - saved / ranks) < 100
        assert found.activations == other.activations and found.routers == other.routers
        assert (found.gathered < other.gathered) == (stage == 3)
        assert (
            gathered_bytes(sizes.training((2, 3)), setting) < gathered_bytes(plain.training((2, 3)), setting)
        ) == (stage == 3)


def test_a_forecast_of_a_checkpoint_whose_experts_cannot_stay(tiny_qwen3: Path) -> None:
    assert kept_bytes(configured(tiny_qwen3), None, CPU) == {}
    with pytest.raises(UserError, match=r"model\.frozen: stored is not possible"):
        kept_bytes(configured(tiny_qwen3, frozen="stored"), None, CPU)
