"""Families learn under ZeRO-3 on two ranks what one rank learns without partitions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roma_ds.comm import World
from roma_ds.families import FAMILIES
from roma_ds.testing.local_ranks import on_ranks
from roma_ds.testing.tiny_models import save_tiny

pytestmark = pytest.mark.timeout(600)

FIRST = [family.model_types[0] for family in FAMILIES]
MODEL_TYPES = [
    *FIRST[: FIRST.index("jetmoe")],
    # One type for each other way to mix tokens or to route; those that hand on more than hidden states are
    # in test_mechanisms_on_ranks.py.
    *("qwen3_next", "nemotron_h", "lfm2_moe", "gemma4_text", "minimax_m2", "jetmoe"),
]
DEPTHS = {"nemotron_h": 8}
"""Decoder layers where 4 do not hold two routers."""
IN_BF16 = ["deepseek_v3", "ernie4_5_moe"]
RUN = """\
model: {{path: {model}, dtype: {dtype}}}
data: {{train: [{{path: train.jsonl}}]}}
roma: {{layers: last2}}
train: {{micro_batch: {micro}, lr: 0.01, clip: 1000000.0}}
eval: {{tasks: [{{name: mine, path: test.jsonl}}]}}
deepspeed: zero{stage}
output_dir: out
"""


Job = tuple[str, int, str]
"""Model type, ZeRO stage, type of the weights."""


def trained(world: World, folders: dict[str, str], jobs: list[Job]) -> dict[Job, dict[str, Any]]:
    """By job: routers after two steps, what they make of a batch, and a digest of all the rest."""
    return {job: _trained(world, folders[job[0]], *job[1:]) for job in jobs}


def _trained(world: World, folder: str, stage: int, dtype: str) -> dict[str, Any]:
    import deepspeed

    from roma_ds.config import parse_run_config, resolve_deepspeed
    from roma_ds.sequences.batches import collate
    from roma_ds.sequences.encoding import Encoded
    from roma_ds.training.engine import RouterEngine

    source = torch.Generator().manual_seed(5)
    sequences = []
    for row in range(4):
        ids = torch.randint(3, 180, (5 + 3 * row,), generator=source).tolist()
        sequences.append(Encoded(row, tuple(ids[:-2]), tuple(ids[-2:])))
    text = RUN.format(model=folder, micro=4 // world.size, stage=stage, dtype=dtype)
    run = parse_run_config(text, Path(folder) / "run.yaml", [])
    engine = RouterEngine(world, run, resolve_deepspeed(run, world.size))
    assert engine.layers == engine.routed.layout.layers[-2:]
    batch = collate(sequences[world.rank :: world.size], "last1")
    losses = []
    for _ in range(2):
        output = engine.forward(batch)
        task = torch.nn.functional.cross_entropy(output.logits, batch.answer_ids)
        loss = task + output.routing.square().sum(dim=(1, 2)).mean()
        losses.append(float(loss))
        engine.backward(loss, last=True)
        engine.step(0.01)
    everything = collate(sequences, "last1")
    with torch.no_grad():
        routing = engine.forward(everything).routing
    learning = {id(weight) for weight in engine.routers.values()}
    digest = hashlib.sha256()
    network = engine.routed.network
    for name, parameter in network.named_parameters():
        if id(parameter) not in learning:
            with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
                digest.update(name.encode() + parameter.detach().float().numpy().tobytes())
    for name, buffer in network.named_buffers():
        digest.update(name.encode() + buffer.float().numpy().tobytes())
    found = {
        "masters": {layer: weight.numpy() for layer, weight in engine.masters().items()},
        "routing": routing.numpy(),
        "rest": digest.hexdigest(),
        "fell": losses[-1] < losses[0],
        "held": sum(parameter.ds_tensor.numel() for parameter in network.parameters()) if stage == 3 else 0,
        "total": sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in network.parameters()),
    }
    engine.close()
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Job, dict[str, Any]]]:
    """Of one rank, then of both ranks."""
    folders = {
        name: str(save_tiny(tmp_path_factory.mktemp(name), name, layers=DEPTHS.get(name, 4), seed=3))
        for name in MODEL_TYPES
    }
    alone = [(model_type, 0, "float32") for model_type in MODEL_TYPES]
    both = [(model_type, 3, "float32") for model_type in MODEL_TYPES]
    both += [(model_type, stage, "bfloat16") for model_type in IN_BF16 for stage in (1, 3)]
    first = on_ranks(1, trained, folders, alone, timeout_s=240)
    return [*first, *on_ranks(2, trained, folders, both, timeout_s=360)]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_two_ranks_under_zero3_are_one_rank(
    results: list[dict[Job, dict[str, Any]]], model_type: str
) -> None:
    alone = results[0][model_type, 0, "float32"]
    assert alone["fell"]
    assert len(alone["masters"]) == 2
    for result in results[1:]:
        rank = result[model_type, 3, "float32"]
        assert 0 < rank["held"] < 0.51 * rank["total"] == 0.51 * alone["total"]
        assert rank["rest"] == alone["rest"]
        np.testing.assert_allclose(rank["routing"], alone["routing"], rtol=0, atol=1e-5)
        for layer, weight in alone["masters"].items():
            np.testing.assert_allclose(rank["masters"][layer], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", IN_BF16)
def test_in_bfloat16_a_partitioned_network_is_the_whole_one(
    results: list[dict[Job, dict[str, Any]]], model_type: str
) -> None:
    """Also where the checkpoint keeps routers or correction biases in float32."""
    for result in results[1:]:
        whole, partitioned = (result[model_type, stage, "bfloat16"] for stage in (1, 3))
        assert whole["fell"] and partitioned["fell"]
        assert whole["rest"] == partitioned["rest"]
        np.testing.assert_allclose(partitioned["routing"], whole["routing"], rtol=0, atol=2e-3)
        for layer, weight in whole["masters"].items():
            assert np.abs(partitioned["masters"][layer] - weight).mean() < 1e-4
