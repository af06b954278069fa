"""S and its routing weights follow training: the same routers in any placement and on any number of ranks."""

from __future__ import annotations

import itertools
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli.projects import Project, largest_difference, make_project
from safetensors.torch import load_file, save_file
from stage_runs import run_stages

from roma_ds.comm import World
from roma_ds.errors import Interrupted
from roma_ds.testing.local_ranks import on_ranks

pytestmark = pytest.mark.timeout(600)

CLOSE = 1e-6
BATCH = 8
COMMON = (
    "train.epochs=3",
    "train.lr=3.0e-2",
    "train.log_every=1",
    "train.save_every=4",
    "roma.lambda=0.5",
    "index.check_every=1",
    "train.micro_batch=2",
)


@dataclass(frozen=True)
class Way:
    """How one training keeps its index."""

    ranks: int
    placement: str
    refresh: str = "1"
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((f"{self.ranks} ranks", self.placement, self.refresh, *self.more))

    def words(self, out: Path) -> list[str]:
        cut = BATCH // 2 // self.ranks
        kept = (f"index.placement={self.placement}", f"roma.refresh={self.refresh}")
        return [*COMMON, *kept, f"output_dir={out}", f"train.gradient_accumulation={cut}", *self.more]


DRY = "index.candidates=1"
BALL = "roma.epsilon=0.6"
REFERENCES = (Way(1, "replicated"), Way(1, "replicated", "3"), Way(1, "replicated", "epoch"),
              Way(1, "replicated", "1", (BALL,)))  # fmt: skip
WAYS = (
    Way(1, "sharded"),
    Way(1, "replicated", "1", (DRY,)),
    Way(2, "replicated"),
    Way(2, "sharded"),
    Way(2, "sharded", "1", (DRY,)),
    Way(2, "replicated", "3", ("index.backend=torch",)),
    Way(2, "sharded", "epoch"),
    Way(2, "sharded", "1", (BALL, DRY)),
    Way(4, "replicated"),
    Way(4, "sharded", "1", (DRY,)),
)


def reference_of(way: Way) -> Way:
    return Way(1, "replicated", way.refresh, tuple(word for word in way.more if word == BALL))


def run_ways(world: World, config: Path, words: list[list[str]]) -> None:
    for given in words:
        run_stages(world, config, given, "train")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With experts strong enough that routing decides about answers."""
    made = make_project(tmp_path_factory.mktemp("refreshed"))
    for shard in (made.folder / "model").glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            tensor.mul_(10 if ".experts." in name else 1)
        save_file(tensors, shard, metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def collected(project: Project) -> Project:
    """A run with all before the index done."""
    words = Way(1, "replicated").words(project.out)
    on_ranks(1, run_stages, project.config, words, "collect", timeout_s=100)
    return project


@pytest.fixture(scope="module")
def trained(collected: Project) -> dict[Way, Project]:
    ways = enumerate((*REFERENCES, *WAYS))
    outs = {way: collected.copied(collected.folder / f"out-{number}") for number, way in ways}
    for ranks in (1, 2, 4):
        words = [way.words(run.out) for way, run in outs.items() if way.ranks == ranks]
        on_ranks(ranks, run_ways, collected.config, words, timeout_s=300)
    return outs


def apart(first: Project, second: Project) -> float:
    """The largest difference of the trained routers."""
    return largest_difference(first.routers(), second.routers())


def sizes(run: Project) -> list[int]:
    return [line["successful"] for line in run.metrics()]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_same_routers_and_the_same_members(way: Way, trained: dict[Way, Project]) -> None:
    wanted, found = trained[reference_of(way)], trained[way]
    assert apart(wanted, found) < CLOSE
    assert sizes(found) == sizes(wanted)


def test_members_come_and_go(trained: dict[Way, Project]) -> None:
    lines = trained[REFERENCES[0]].metrics()
    changes = {after["successful"] - before["successful"] for before, after in itertools.pairwise(lines)}
    assert min(changes) < 0 < max(changes)
    assert [line["index_epoch"] for line in lines] == list(range(1, len(lines) + 1))


def test_how_often_the_index_follows_makes_a_difference(trained: dict[Way, Project]) -> None:
    first, third, epoch = (trained[way] for way in REFERENCES[:3])
    assert apart(first, third) > 100 * CLOSE
    assert apart(third, epoch) > 100 * CLOSE
    # Every third of 24 steps, and steps 8 and 16, which end an epoch.
    assert third.metrics()[-1]["index_epoch"] == 10
    assert epoch.metrics()[-1]["index_epoch"] == 3


def stop_after(world: World, config: Path, words: list[str], steps: int) -> bool:
    """Train, and get a SIGTERM in the middle of step `steps`; whether it ended by that."""
    from roma_ds.training.loop import Training

    step = Training._step

    def signalled(self: Any, number: int, logged: bool) -> Any:
        found = step(self, number, logged)
        if number + 1 == steps and world.rank == world.size - 1:
            self.interruption.signum = signal.SIGTERM
        return found

    Training._step = signalled  # type: ignore[method-assign]
    try:
        run_stages(world, config, words, "train")
    except Interrupted:
        return True
    finally:
        Training._step = step  # type: ignore[method-assign]
    return False


@pytest.mark.parametrize(("first", "then", "refresh"), [(2, 4, "1"), (2, 1, "3"), (1, 2, "epoch")], ids=str)
def test_stopped_and_resumed_on_other_ranks_in_the_other_placement(
    first: int, then: int, refresh: str, collected: Project, trained: dict[Way, Project], tmp_path: Path
) -> None:
    run = collected.copied(tmp_path / "out")
    begun, resumed = Way(first, "sharded", refresh), Way(then, "replicated", refresh)
    # Step 5 ends no window of three steps, so outcomes wait when the state is saved.
    assert all(on_ranks(first, stop_after, run.config, begun.words(run.out), 5, timeout_s=120))
    on_ranks(then, run_ways, run.config, [resumed.words(run.out)], timeout_s=120)
    wanted = trained[Way(1, "replicated", refresh)]
    assert apart(wanted, run) < CLOSE
    assert sizes(run) == sizes(wanted)


def test_the_state_holds_the_index(trained: dict[Way, Project]) -> None:
    run = trained[Way(2, "sharded")]
    sizes_after = dict(enumerate(sizes(run), start=1))
    states = {int(path.name.removeprefix("step-")): path for path in (run.out / "train/state").glob("step-*")}
    assert max(sizes_after) in states
    for step, path in states.items():
        kept = load_file(path / "index.safetensors")
        assert len(kept["ids"]) == len(kept["vectors"]) == sizes_after[step]
