"""Two ranks under ZeRO-3 give what one gives, with a prefix cached and without, whatever lies in a batch.

The ranks have sequences of other lengths, which decide about which parts of a layer run, and one of them has
nothing left to do in the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roma_ds.comm import World
from roma_ds.testing.local_ranks import on_ranks
from roma_ds.testing.tiny_models import save_tiny

pytestmark = pytest.mark.timeout(600)

MODEL_TYPES = {
    "axk1": "experts beside dense layers, found by a trial",
    "dbrx": "experts called one by one, as tokens ask for them",
    "deepseek_v4": "streams, and parts of a layer that short sequences leave out",
    "glm_moe_dsa": "keys that an earlier layer chose",
    "longcat_flash": "experts that are none, which some tokens choose",
    "zaya": "streams in float32, and routers that read each other",
}
FIRST, DEPTH = 3, 6
LENGTHS = ((30, 2), (3, 1), (1, 1), (22, 3), (9, 2))
"""Of prompt and continuation of each sequence."""
RUN = """\
model: {{path: {model}, dtype: float32}}
data: {{train: [{{path: train.jsonl}}]}}
roma: {{layers: last2}}
train: {{micro_batch: 1, lr: 0.01, clip: 1000000.0}}
eval: {{tasks: [{{name: mine, path: test.jsonl}}]}}
deepspeed: zero{stage}
output_dir: out
"""


@dataclass(frozen=True)
class Table:
    """In place of a prefix cache: what enters layer `FIRST`, by sequence."""

    pieces: list[Any]

    @property
    def plan(self) -> Any:
        class Plan:
            hidden, dtype = self.pieces[0].shape[1], self.pieces[0].dtype

        return Plan

    def read_once(self, numbers: Any) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.cat([self.pieces[number] for number in numbers])
        return values, torch.arange(len(values))


def sequences() -> list[Any]:
    from roma_ds.sequences.encoding import Encoded

    source = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 180, (count,), generator=source).tolist())

    return [Encoded(row, ids(first), ids(second)) for row, (first, second) in enumerate(LENGTHS)]


def results(world: World, folders: dict[str, str], stage: int) -> dict[str, dict[str, Any]]:
    """By type: what the frozen network gives for each sequence, and the routers after two updates."""
    return {model_type: _results(world, folder, stage) for model_type, folder in folders.items()}


def _results(world: World, folder: str, stage: int) -> dict[str, Any]:
    from roma_ds.config import parse_run_config, resolve_deepspeed
    from roma_ds.frozen_pass.frozen_model import FrozenModel
    from roma_ds.prefix.feed import Feed

    run = parse_run_config(RUN.format(model=folder, stage=stage), Path(folder) / "run.yaml", [])
    ds = resolve_deepspeed(run, world.size)
    frozen = FrozenModel(world, run.model, ds)
    frozen.routed.capture(FIRST)
    mine, feed = {}, Feed(sequences(), "last1")
    for numbers, _, output in frozen.outputs(feed, [[number] for number in range(len(LENGTHS))], "whole"):
        assert output.entering is not None
        mine[numbers[0]] = (output.routing[0].numpy(), output.logits.numpy(), output.entering)
    frozen.close()
    found = {number: one for part in world.gather_objects(mine) for number, one in part.items()}
    table = Table([found[number][2] for number in range(len(LENGTHS))])
    return {
        "routing": [found[number][0] for number in range(len(LENGTHS))],
        "logits": [found[number][1] for number in range(len(LENGTHS))],
        "table": [piece.numpy() for piece in table.pieces],
        "cached": _trained(world, run, ds, FIRST, Feed(sequences(), "last1", table)),  # type: ignore[arg-type]
        "whole": _trained(world, run, ds, None, feed),
    }


def _trained(world: World, run: Any, ds: Any, first: int | None, feed: Any) -> dict[int, Any]:
    """Routers after two updates by all sequences, one at a time, dealt to the ranks in turn."""
    from roma_ds.training.engine import RouterEngine

    engine = RouterEngine(world, run, ds, first)
    dealt = [list(range(len(LENGTHS)))[rank :: world.size] for rank in range(world.size)]
    turns = len(dealt[0])
    for _ in range(2):
        for turn in range(turns):
            numbers = dealt[world.rank][turn : turn + 1]
            batch = feed.batch(numbers)
            output = engine.forward(batch)
            loss = torch.nn.functional.cross_entropy(output.logits, batch.answer_ids, reduction="sum")
            loss = loss + output.routing.square().sum()
            share = world.size / len(LENGTHS) if numbers else 0.0
            engine.backward(share * loss, last=turn == turns - 1)
        engine.step(0.01)
    masters = {layer: weight.numpy() for layer, weight in engine.masters().items()}
    engine.close()
    return masters


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """Of one rank below ZeRO-3, then of both ranks under it."""
    folders = {
        model_type: str(save_tiny(tmp_path_factory.mktemp(model_type), model_type, DEPTH, seed=3))
        for model_type in MODEL_TYPES
    }
    alone = on_ranks(1, results, folders, 0, timeout_s=240)
    return [*alone, *on_ranks(2, results, folders, 3, timeout_s=360)]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_two_ranks_give_what_one_gives(found: list[dict[str, dict[str, Any]]], model_type: str) -> None:
    alone = found[0][model_type]
    for rank in found[1:]:
        for name in ("routing", "logits"):
            for one, other in zip(rank[model_type][name], alone[name], strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        assert [len(piece) for piece in rank[model_type]["table"]] == [len(piece) for piece in alone["table"]]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_two_ranks_learn_what_one_learns_on_cached_states_and_without(
    found: list[dict[str, dict[str, Any]]], model_type: str
) -> None:
    wanted = found[0][model_type]["whole"]
    assert len(wanted) == 2
    for result in found:
        for way in ("cached", "whole"):
            for layer, weight in wanted.items():
                np.testing.assert_allclose(result[model_type][way][layer], weight, rtol=0, atol=1e-5)
