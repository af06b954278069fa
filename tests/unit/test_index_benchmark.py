"""The instruments of the index's benchmark, on threads for ranks and tiny sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thread_worlds import ThreadWorld

from roma_ds.comm.transport import Exchange
from roma_ds.index.updates import REMOVE
from roma_ds.testing.thread_ranks import on_threads

ALONE = ThreadWorld.of(Exchange(0, 1, None))
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def tiny(**changes: Any) -> Any:
    from index_worker import Case

    case = Case(120, dim=8, width=6, candidates=16, micro_batch=4, updates=6, queries=20, seconds=1e-3)
    return replace(case, **changes)


def test_points_are_unit_vectors_and_written_once(tmp_path: Path) -> None:
    from index_worker import write_points

    folder = write_points(tmp_path, 70, 8, 3)
    points = np.load(folder / "embeddings.npy")
    assert points.shape == (70, 8) and points.dtype == np.float32
    assert np.allclose(np.linalg.norm(points, axis=1), 1)
    before = (folder / "embeddings.npy").stat().st_mtime_ns
    assert write_points(tmp_path, 70, 8, 3) == folder
    assert (folder / "embeddings.npy").stat().st_mtime_ns == before
    assert write_points(tmp_path, 70, 8, 4) != folder


@pytest.mark.parametrize(("ranks", "sharded"), [(1, False), (2, False), (2, True), (3, True)])
def test_a_case_is_measured_and_predicted_on_any_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, sharded: bool
) -> None:
    import index_worker
    from index_speed import compared, measured, predicted, rates_of, show_case

    monkeypatch.setattr(index_worker, "REFERENCES", (64, 128))
    case = tiny(sharded=sharded)
    points = np.load(index_worker.write_points(tmp_path, case.samples, case.dim, 0) / "embeddings.npy")
    members = np.arange(case.samples) % 2 == 0

    def body(transport: Any) -> dict[str, Any]:
        world = ThreadWorld.of(transport)
        rates = index_worker.rates(case, world, transport, points)
        return {"rates": rates, **index_worker.measure(case, world, transport, points, members)}

    records = on_threads(ranks, body)
    assert len({record["members"] for record in records}) == 1
    assert all(record["dry"] == 0 for record in records)
    found, said = measured(case, ranks, records), predicted(case, ranks, rates_of(case, records))
    assert list(found) != [] and set(found) == set(said)
    assert all(np.isfinite(value) and value > 0 for value in said.values())
    plain = index_worker.plain(case, ALONE, points, members)
    seconds = {name: float(np.median(values)) for name, values in plain.items()}
    turn = {"measured": {**found, "memory": 1.0}, "predicted": said, "rates": {}, "built": 1.0, "dry": 0}
    result = compared(case, ranks, [turn, turn], [seconds, seconds])
    show_case(case.samples, ranks, "any", result)
    ratio = result["queries_per_second_ratio"]["few queries, over faiss"]["median"]
    assert ratio == pytest.approx(ranks * seconds["faiss few"] / found["few"])


def test_the_plain_search_finds_what_ours_finds(tmp_path: Path) -> None:
    from index_worker import Plain, opened, write_points

    case = tiny()
    points = np.load(write_points(tmp_path, case.samples, case.dim, 0) / "embeddings.npy")
    members = np.arange(case.samples) % 3 == 0
    index = opened(case, ALONE, Exchange(0, 1, None), points, members, False)
    outside = np.flatnonzero(~members)[:10]
    ours = index.nearest(points[outside], outside, case.neighbours).ids
    plain = Plain(case, points, members)
    places = np.flatnonzero(members)
    for found in (plain.faiss(points[outside])[1], plain.torch(points[outside]).indices.numpy()):
        assert (places[found[:, : case.neighbours]] == ours).all()


def test_updates_are_the_same_draw_dealt_to_ranks(tmp_path: Path) -> None:
    from index_worker import draw_updates

    case = tiny()

    class Index:
        members = np.arange(120) % 2 == 0

    parts = [draw_updates(case, Index, rank, 3, 7, case.updates) for rank in range(3)]
    whole = draw_updates(case, Index, 0, 1, 7, case.updates)
    assert sorted(np.concatenate([part.ids for part in parts])) == whole.ids.tolist()
    for part in (*parts, whole):
        part.check(Index.members, case.width)
        assert len(part.vectors) == (part.ops != REMOVE).sum()
    assert draw_updates(case, Index, 0, 1, 8, case.updates).ids.tolist() != whole.ids.tolist()


def test_ranks_make_as_many_calls_as_the_first_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import index_worker

    def body(transport: Any) -> tuple[list[int], int]:
        world, turns = ThreadWorld.of(transport), []
        taken = index_worker.repeated(world, turns.append, 1e-9 if transport.rank else 1e9)
        return turns, len(taken)

    for turns, count in on_threads(2, body):
        assert count == index_worker.MOST_CALLS and turns == list(range(count + 2))


def test_the_share_of_a_step_leaves_out_warm_up_and_log_lines() -> None:
    from index_share import shares_of

    # Sums behind each step of 2 s: 0.1 s neighbours, 0.05 outcomes, 0.25 updates, and 0.3 s in the thread
    # of the index. The fifth step is logged and takes ten times as long, as do the first two.
    slow = (10, 10, 1, 1, 10, 1, 1)
    rows, total = [], 0.0
    for turn, times in enumerate(slow):
        total += times
        rows.append(
            {
                "neighbours": 0.1 * total, "outcomes": 0.05 * total, "updates and checks": 0.25 * total,
                "processor time beside the training": 0.3 * total,
                "clock": 2 * total, "successful": turn,
            }
        )  # fmt: skip
    record = {
        "step_ends": [0.0, *np.cumsum(slow).tolist()],
        "logged": [turn == 4 for turn in range(len(slow))],
        "by_step": rows,
        "searched": 3,
        "memory": 5,
    }
    found = shares_of([record, record])
    assert found["steps"] == 3
    assert found["share"] == pytest.approx(0.4 / 2)
    assert found["shares"]["updates and checks"] == pytest.approx(0.25 / 2)
    assert found["shares"]["processor time beside the training"] == pytest.approx(0.3 / 2)
    assert found["step"]["median"] == pytest.approx(2) and found["successful"] == [0, 6]


def test_a_training_is_cut_off_and_no_longer_than_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from index_share_worker import cut_off

    from roma_ds.training.batch_order import BatchOrder

    monkeypatch.setattr(BatchOrder, "steps", BatchOrder.steps)
    cut_off(5)
    assert BatchOrder(100, 1, 10, 0).steps == 5
    assert BatchOrder(100, 1, 50, 0).steps == 2


def test_one_rank_is_measured_in_one_placement() -> None:
    from index_speed import places

    assert places([1, 2]) == [(1, False), (2, False), (2, True)]
