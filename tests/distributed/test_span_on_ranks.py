"""Spans under ZeRO-3: each rank keeps its part of what the files hold, and an engine takes them so."""

from __future__ import annotations

import shutil
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


def partitioned(world: World, folder: str, dtype: str, first_reads: bool) -> dict[str, Any]:
    """What this rank holds before and after gathering, and the forward pass inside an engine."""
    import deepspeed
    import torch

    from roma_ds.backbone.checkpoint_files import CheckpointFiles
    from roma_ds.backbone.loading import load_model
    from roma_ds.backbone.span import Span, load_span
    from roma_ds.config import ModelConfig

    class Tail(torch.nn.Module):
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            hidden = self.network.base_model(inputs_embeds=hidden, position_ids=positions).last_hidden_state
            logits: torch.Tensor = self.network.get_output_embeddings()(hidden)
            return logits

    model = ModelConfig(path=folder, dtype=dtype)  # type: ignore[arg-type]
    whole = load_model(model, None, world.device)
    layers = list(whole.base_model.layers)
    whole.base_model.layers = torch.nn.ModuleList(layers[FIRST:])
    wanted = whole.state_dict()
    read = CheckpointFiles.read
    reads: list[str] = []

    def counted(files: CheckpointFiles, key: str) -> torch.Tensor:
        reads.append(key)
        return read(files, key)

    CheckpointFiles.read = counted  # type: ignore[method-assign]
    ds = zero3(world, dtype)
    span = Span.suffix(FIRST, DEPTH)
    network = load_span(model, span, ds, world.device, world if first_reads else None)
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

    routers = [layer.mlp.gate.weight.requires_grad_(True) for layer in network.base_model.layers]
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
    return {"held": held, "total": total, "reads": len(reads), "same": same}


@pytest.mark.parametrize(("ranks", "dtype"), [(1, "float32"), (2, "bfloat16")])
@pytest.mark.parametrize("model_type", ["olmoe", "qwen3_moe"])
def test_each_rank_holds_its_part_of_the_files(
    checkpoints: dict[str, Path], model_type: str, ranks: int, dtype: str
) -> None:
    found = on_ranks(ranks, partitioned, str(checkpoints[model_type]), dtype, True)
    for rank in found:
        assert rank["held"] <= rank["total"] / ranks * 1.02
        assert rank["same"]
    assert found[0]["reads"] > 50
    assert [rank["reads"] for rank in found[1:]] == [0] * (ranks - 1)


def test_without_a_world_every_rank_reads(checkpoints: dict[str, Path]) -> None:
    found = on_ranks(2, partitioned, str(checkpoints["olmoe"]), "float32", False)
    assert found[0]["reads"] == found[1]["reads"] > 50


def damaged(world: World, folder: str) -> None:
    from roma_ds.backbone.span import Span, load_span
    from roma_ds.config import ModelConfig

    load_span(ModelConfig(path=folder), Span.suffix(0, DEPTH), zero3(world, "bfloat16"), world.device, world)


def test_what_the_first_rank_cannot_read_ends_all(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["olmoe"], tmp_path / "model")
    shard = sorted(folder.glob("model-*.safetensors"))[-2]
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(RankFailed) as failed:
        on_ranks(2, damaged, str(folder))
    assert failed.value.codes == {0: 2, 1: 2}
