"""The cost model of the live index against the bytes that one holds and moves, on threads for ranks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thread_worlds import ThreadWorld

from roma_ds.comm import transport as transport_module
from roma_ds.index.candidates import Candidates
from roma_ds.index.live import LiveIndex, Snapshot
from roma_ds.index.live_neighbours import LiveNeighbours
from roma_ds.index.replicas import check_replicas
from roma_ds.index.updates import ADD, REFRESH, REMOVE, Updates
from roma_ds.planner import index_cost
from roma_ds.planner.index_cost import IndexSetting, Line, Rates, Traffic
from roma_ds.testing.thread_ranks import ThreadWire, on_threads

DOCS = Path(__file__).resolve().parents[2] / "docs"
SAMPLES, DIM, WIDTH, K = 48, 6, 5, 4


class CountingWire(ThreadWire):
    """Counts what leaves this rank: every copy of its rows that another one gets."""

    messages: int
    sent: int

    def headers(self, mine: Any) -> Any:
        found = super().headers(mine)
        self.count((len(found) - 1) * mine.nbytes)
        return found

    def all_gather(self, rows: Any, received: Any, counts: Any, width: int) -> None:
        self.count((len(counts) - 1) * len(rows))
        super().all_gather(rows, received, counts, width)

    def all_to_all(self, sent: Any, received: Any, counts: Any, width: int) -> None:
        mine = counts[self._rank]
        self.count(int(mine.sum() - mine[self._rank]) * width)
        super().all_to_all(sent, received, counts, width)

    def count(self, nbytes: int) -> None:
        self.messages += 1
        self.sent += nbytes

    def taken(self) -> tuple[int, int]:
        found = self.messages, self.sent
        self.messages = self.sent = 0
        return found


class CountingWorld(ThreadWorld):
    """An agreement is two messages, and where nothing is wrong there is none."""

    def gather_objects(self, item: Any) -> list[Any]:
        if self.wire is not None:
            self.wire.messages += 2
        return super().gather_objects(item)


def opened(transport: Any, setting: IndexSetting) -> tuple[LiveIndex, Any]:
    """An index as `setting` says, half of the samples in S: the even pairs of rows of R ids."""
    wire = transport._wire
    if wire is not None:
        wire.__class__ = CountingWire
        wire.messages = wire.sent = 0
    vectors = np.random.default_rng(0).standard_normal((setting.samples, setting.dim)).astype(np.float32)
    index = LiveIndex(
        CountingWorld.of(transport),
        transport,
        vectors,
        np.arange(setting.samples),
        setting.width,
        setting.sharded,
        setting.backend,
        payload=setting.payload,
    )
    ids = np.arange(setting.samples)
    members = ids[(ids // setting.ranks) % 2 == 0]
    index.load(Snapshot(0, members, np.ones((len(members), setting.width), np.float32)))
    return index, wire


SETTINGS = [
    IndexSetting(SAMPLES, ranks, sharded, DIM, WIDTH, payload, neighbours=K, candidates=16, micro_batch=6)  # type: ignore[arg-type]
    for ranks in (1, 2, 3, 4)
    for sharded in (False, True)
    for payload in ("float32", "bfloat16")
]


def named(setting: IndexSetting) -> str:
    return f"{setting.ranks}-{'sharded' if setting.sharded else 'replicated'}-{setting.payload}"


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_memory_is_that_of_the_arrays_which_a_rank_holds(setting: IndexSetting, backend: Any) -> None:
    setting = IndexSetting(**{**vars(setting), "backend": backend})

    def counted(transport: Any) -> tuple[int, int, int, int]:
        index, _ = opened(transport, setting)
        shard = index.shard
        vectors = shard.vectors.nbytes
        if backend == "faiss":
            vectors += shard.backend._index.ntotal * shard.backend._index.d * 4  # type: ignore[attr-defined]
        else:
            assert np.shares_memory(shard.backend._vectors.numpy(), shard.vectors)  # type: ignore[attr-defined]
        own = (shard.ids, shard.groups, shard._group_numbers, shard._group_sizes, shard.members)
        everyone = (np.arange(SAMPLES), index.members, np.ones(SAMPLES, np.bool_), np.ones(SAMPLES, np.bool_))
        ids = np.flatnonzero(index.members)
        read = index.payload.read(ids[index.placement.mine(ids)]).nbytes
        return vectors, index.payload.rows.nbytes, sum(array.nbytes for array in (*own, *everyone)), read

    found = index_cost.held(setting)
    for vectors, payload, numbers, read in on_threads(setting.ranks, counted):
        assert (found.vectors, found.payload, found.numbers) == (vectors, payload, numbers)
        assert read == index_cost.members_bytes(setting)
        assert found.total == vectors + payload + numbers


def of_rank(rank: int, setting: IndexSetting, per_owner: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and operations of a rank's updates, `per_owner` of each operation for each owner."""
    ids, ops = [], []
    for number in range(per_owner):
        for owner in range(setting.ranks):
            for operation, block in ((REFRESH, 0), (REMOVE, 2), (ADD, 1)):
                turn = 4 * (number * setting.ranks + rank) + block
                ids.append(turn * setting.ranks + owner)
                ops.append(operation)
    return np.array(ids, np.int64), np.array(ops, np.uint8)


@pytest.mark.parametrize("enclosed", [0, 1 << 16])
@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_traffic_is_what_leaves_a_rank(
    setting: IndexSetting, enclosed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything behind the headers, and with all that is small among them."""
    for module in (transport_module, index_cost):
        monkeypatch.setattr(module, "ROOM", enclosed)
    setting = IndexSetting(**{**vars(setting), "samples": 4 * setting.ranks**2, "micro_batch": setting.ranks})
    ranks = setting.ranks

    def counted(transport: Any) -> dict[str, tuple[float, float]]:
        index, wire = opened(transport, setting)
        taken = (lambda: (0, 0)) if wire is None else wire.taken
        found = {}
        vectors = np.random.default_rng(1).standard_normal((5, setting.dim)).astype(np.float32)
        index.nearest(vectors, np.full(5, -1), K)
        found["search"] = taken()
        # Each list begins one id later, so that neighbours are dealt evenly over owners.
        everyone = (np.arange(setting.samples) + np.arange(setting.samples)[:, None]) % setting.samples
        lists = Candidates(everyone, np.zeros(everyone.shape), np.ones(len(everyone), np.bool_))
        LiveNeighbours(index, lists, np.zeros((0, DIM)), np.zeros(0), K).of(range(setting.micro_batch))
        found["neighbours"] = taken()
        ids, ops = of_rank(transport.rank, setting, 1)
        index.apply(Updates(ids, ops, np.zeros((int((ops != REMOVE).sum()), setting.width), np.float32)))
        found["apply"] = taken()
        check_replicas(index)
        found["check"] = taken()
        return found

    wanted = {
        "search": index_cost.searching(setting, 5),
        "neighbours": index_cost.fetching(setting),
        "apply": index_cost.applying(setting, 3 * ranks, 2 * ranks),
        "check": index_cost.checking(setting),
    }
    for counts in on_threads(ranks, counted):
        for name, (messages, nbytes) in counts.items():
            assert wanted[name] == Traffic(messages, pytest.approx(nbytes)), name


def test_a_step_is_the_sum_of_its_parts() -> None:
    setting = IndexSetting(1000, 4, sharded=True)
    often, seldom = index_cost.a_step(setting, 1, 100), index_cost.a_step(setting, 10, 100)
    checks = index_cost.checking(setting) * 0.01
    once = index_cost.fetching(setting) + checks
    assert often == once + index_cost.applying(setting, 8)
    assert seldom.messages == pytest.approx((once + index_cost.applying(setting, 80) * 0.1).messages)
    assert seldom.bytes < often.bytes and seldom.messages < often.messages
    assert index_cost.a_step(IndexSetting(1000)) == Traffic()


def test_sharding_saves_memory_and_no_operations() -> None:
    whole = IndexSetting(10**8, 64)
    part = IndexSetting(10**8, 64, sharded=True)
    assert index_cost.search_operations(whole, 8) == index_cost.search_operations(part, 8)
    assert index_cost.held(whole).vectors == 64 * index_cost.held(part).vectors == 2 * 4 * 384 * 10**8
    assert index_cost.file_bytes(whole) == index_cost.file_bytes(part)
    assert index_cost.file_bytes(whole)["index/candidates.npy and candidate_products.npy"] == 64 * 16 * 10**8


def test_seconds_follow_the_rates() -> None:
    rates = Rates(
        message=1e-3, link=1e6, many=Line(0.5, 1e9), few=Line(0.25, 1e8), digest=1e6, neighbours=5e-3,
        apply=Line(4e-3, 1e3),
    )  # fmt: skip
    alone = IndexSetting(1000, dim=100, width=25)
    assert index_cost.search_seconds(alone, rates, 16) == pytest.approx(0.5 + 2 * 16 * 1e5 / 1e9)
    assert index_cost.search_seconds(alone, rates, 8) == pytest.approx(0.25 + 2 * 8 * 1e5 / 1e8)
    assert index_cost.apply_seconds(alone, rates, 8) == pytest.approx(12e-3)
    assert index_cost.check_seconds(alone, rates) == pytest.approx(500 * 108 / 1e6)
    assert index_cost.step_seconds(alone, rates, 1, 10) == pytest.approx(5e-3 + 12e-3 + 5.4e-3)
    pair = IndexSetting(1000, 2, sharded=True, dim=100, width=25)
    # Eight queries of each of two ranks arrive as sixteen.
    moved = rates.moving(index_cost.searching(pair, 8))
    assert index_cost.search_seconds(pair, rates, 8) == pytest.approx(0.5 + 16e5 / 1e9 + moved)
    assert index_cost.neighbour_seconds(pair, rates) == pytest.approx(5e-3 + 2e-3 + 2 * (40 + 2**15) / 1e6)


def test_numbers_are_those_of_backend_and_transport() -> None:
    from roma_ds.index import faiss_backend

    assert index_cost.FEW_QUERIES == faiss_backend.FEW_QUERIES
    assert index_cost.ROOM == transport_module.ROOM


def test_a_line_through_two_points_has_no_time_before_its_start() -> None:
    assert Line.through((1.0, 3.0), (3.0, 5.0)) == Line(2.0, 1.0)
    # More work in less time, or more than in proportion: noise, and all of it is rate.
    assert Line.through((1.0, 5.0), (3.0, 3.0)).at(3.0) == pytest.approx(3.0)
    steep = Line.through((1.0, 0.5), (3.0, 3.0))
    assert steep.start == pytest.approx(0.0) and steep.rate == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_list_is_dry_as_often_as_counting_says(share: float) -> None:
    alone = IndexSetting(1000, neighbours=1, candidates=12, member_share=share)
    assert index_cost.dry_share(alone) == pytest.approx((1 - share) ** 12)
    drawn = np.random.default_rng(0).random((40_000, 12)) < share
    setting = IndexSetting(1000, neighbours=3, candidates=12, member_share=share)
    assert index_cost.dry_share(setting) == pytest.approx((drawn.sum(axis=1) < 3).mean(), abs=0.01)
    assert index_cost.dry_share(
        IndexSetting(9, neighbours=3, candidates=2, member_share=share)
    ) == pytest.approx(1)


def test_the_page_shows_what_the_model_says() -> None:
    spec = importlib.util.spec_from_file_location("index_tables", DOCS / "index_tables.py")
    assert spec is not None and spec.loader is not None
    printer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(printer)
    page = (DOCS / "index.md").read_text()
    for table in printer.tables():
        assert table in page, f"docs/index.md lacks what python docs/index_tables.py prints:\n{table}"
