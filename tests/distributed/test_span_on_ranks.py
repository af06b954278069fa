"""Spans under ZeRO-3: each rank keeps its part of what the files hold, and an engine takes them so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roma_ds.comm import World
from roma_ds.testing.local_ranks import RankFailed, on_ranks
from roma_ds.testing.tiny_models import save_tiny

DEPTH, FIRST = 4, 2


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        model_type: save_tiny(tmp_path_factory.mktemp("span"), model_type, shard_size="60KB")
        for model_type in ("olmoe", "qwen3_moe")
    }


def zero3(world: World, dtype: str) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world.size,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {
            "stage": 3,
            "leaf_module": {"classes": [], "names": [], "name_suffixes": []},
        },
    }


def partitioned(world: World, folder: str, dtype: str) -> dict[str, Any]:
    """What this rank holds before and after gathering, and the forward pass inside an engine."""
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
    from roma_ds.checkpoint.loaded_weights import check_loaded
    from roma_ds.checkpoint.span import Span, load_span
    from roma_ds.config import ModelConfig
    from roma_ds.errors import RomaError
    from roma_ds.families import detect

    class Tail(torch.nn.Module):
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            hidden = self.network.base_model(inputs_embeds=hidden, position_ids=positions).last_hidden_state
            logits: torch.Tensor = self.network.get_output_embeddings()(hidden)
            return logits

    model = ModelConfig(path=folder, dtype=dtype)  # type: ignore[arg-type]
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    layers = list(whole.base_model.layers)
    wanted = whole.state_dict()
    read = CheckpointFiles.read_flat
    bytes_read = 0

    def counted(files: CheckpointFiles, key: str, start: int, stop: int) -> torch.Tensor:
        nonlocal bytes_read
        values = read(files, key, start, stop)
        bytes_read += values.nbytes
        return values

    CheckpointFiles.read_flat = counted  # type: ignore[method-assign]
    ds = zero3(world, dtype)
    span = Span.suffix(FIRST, DEPTH)
    network = load_span(model, span, ds, world.device, world)
    files = CheckpointFiles(model)
    stored = [files.place(key) for key in files.keys]
    one_expert = max(place.size for place in stored if len(place.shape) == 2) * 3
    ends = ("model.norm", "lm_head", *(f"model.layers.{number}." for number in range(FIRST, DEPTH)))
    whole_bytes = sum(files.place(key).size for end in ends for key in files.under(end))
    # A rank's share begins and ends within an expert, which is read whole.
    assert bytes_read <= whole_bytes / world.size + (DEPTH - FIRST) * 2 * one_expert
    assert world.size > 1 or bytes_read == whole_bytes
    layout = detect(network, range(FIRST, DEPTH))
    check_loaded(network, layout, files, world)
    expert = -(-8 * world.rank // world.size)
    for path, first in (
        (layout.sites[0].module + ".weight", 0),
        (f"model.layers.{FIRST}.mlp.experts.down_proj", expert),
    ):
        parameter = network.get_parameter(path)
        share = parameter.ds_tensor
        place = max(0, first * parameter.ds_numel // 8 - world.rank * len(share))
        kept = share[place].item()
        share[place] = kept + 1
        with pytest.raises(RomaError, match="is not where it belongs"):
            check_loaded(network, layout, files, world)
        share[place] = kept
    held = 0
    for parameter in network.parameters():
        assert parameter.numel() == 0 and not parameter.requires_grad
        assert parameter.dtype == getattr(torch, dtype)
        held += parameter.ds_tensor.numel()
    total = sum(parameter.ds_numel for parameter in network.parameters())
    for parameter in network.base_model.layers.parameters():
        assert parameter.ds_tensor.numel() * world.size < parameter.ds_numel + world.size
    equal = []
    for name, parameter in network.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            equal.append(torch.equal(parameter.data, wanted[name]))
    assert all(equal) and len(equal) >= 20
    for parameter in network.parameters():
        assert parameter.numel() == 0

    routers = [layer.mlp.gate.weight.requires_grad_(True) for layer in network.base_model.layers[FIRST:]]
    engine, *_ = deepspeed.initialize(
        model=Tail(network), model_parameters=routers, optimizer=torch.optim.AdamW(routers), config=ds
    )
    torch.manual_seed(0)
    hidden = torch.randn(1, 7, whole.config.hidden_size).to(getattr(torch, dtype))
    positions = torch.arange(7)[None]
    logits = engine(hidden, positions)
    with torch.no_grad():
        for layer in layers[FIRST:]:
            embeddings = whole.base_model.rotary_emb(hidden, positions)
            hidden = layer(hidden, position_embeddings=embeddings, position_ids=positions)
        expected = whole.lm_head(whole.base_model.norm(hidden))
    same = torch.equal(logits.detach(), expected)
    engine.backward(logits.float().pow(2).mean())
    engine.step()
    engine.destroy()
    return {"held": held, "total": total, "same": same}


@pytest.mark.parametrize(
    ("model_type", "ranks", "dtype"),
    [("olmoe", 1, "float32"), ("olmoe", 2, "bfloat16")],
)
def test_each_rank_reads_and_holds_its_part_of_the_files(
    checkpoints: dict[str, Path], model_type: str, ranks: int, dtype: str
) -> None:
    for rank in on_ranks(ranks, partitioned, str(checkpoints[model_type]), dtype):
        assert rank["held"] <= rank["total"] / ranks * 1.02
        assert rank["same"]


def damaged(world: World, folder: str) -> None:
    import torch

    from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
    from roma_ds.checkpoint.span import Span, load_span
    from roma_ds.config import ModelConfig
    from roma_ds.errors import UserError

    read = CheckpointFiles.read_flat

    def broken(files: CheckpointFiles, key: str, start: int, stop: int) -> torch.Tensor:
        if "layers.3.mlp" in key:
            raise UserError("this file cannot be read here", "mend it")
        return read(files, key, start, stop)

    if world.rank == 1:
        CheckpointFiles.read_flat = broken  # type: ignore[method-assign]
    load_span(ModelConfig(path=folder), Span.suffix(0, DEPTH), zero3(world, "bfloat16"), world.device, world)


def test_what_one_rank_cannot_read_ends_all(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(RankFailed) as failed:
        on_ranks(2, damaged, str(checkpoints["olmoe"]))
    assert failed.value.codes == {0: 2, 1: 2}


def memory(name: str) -> int:
    """Bytes of resident memory: now (VmRSS), or the most since it was last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def peak(world: World, folder: str) -> tuple[int, int]:
    """Bytes of the whole network, and by how much memory grew at most while this rank loaded its share."""
    from roma_ds.checkpoint.span import Span, load_span
    from roma_ds.config import ModelConfig
    from roma_ds.network.release import return_freed_memory

    model = ModelConfig(path=folder, dtype="float32")
    # What is imported and compiled at first use shall not count.
    load_span(model, Span.suffix(DEPTH, DEPTH), zero3(world, "float32"), world.device, world)
    return_freed_memory()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    network = load_span(model, Span.suffix(0, DEPTH), zero3(world, "float32"), world.device, world)
    grown = memory("VmHWM") - before
    return sum(parameter.ds_numel * 4 for parameter in network.parameters()), grown


def cut_in_three(world: World, tiny: str, large: str) -> tuple[dict[str, Any], tuple[int, int]]:
    return partitioned(world, tiny, "float32"), peak(world, large)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc")
def test_no_rank_ever_holds_much_more_than_its_share(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Also where the number of ranks divides neither the experts nor the values of most tensors.

    Tensors of 34 experts lie above 32 MB, where glibc's malloc keeps nothing of what is freed.
    """
    large = save_tiny(tmp_path, hidden=512, experts=34, shard_size="50MB")
    for rank, (whole, grown) in on_ranks(3, cut_in_three, str(checkpoints["qwen3_moe"]), str(large)):
        assert rank["held"] <= rank["total"] / 3 * 1.02
        assert rank["same"]
        assert whole > 400e6
        assert 0.3 * whole < grown < 0.55 * whole
