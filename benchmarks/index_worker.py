"""The live index, or a plain search, timed on the ranks that `index_speed.py` starts; writes rank-N.json.

deepspeed --num_accelerators 2 benchmarks/index_worker.py --out FOLDER --points FOLDER --case JSON
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measured import Record, resident_bytes

MOST_CALLS = 300
BLOCK = 2**16
"""Points that are drawn at once."""
REFERENCES = (4096, 16384)
"""Sizes of the indexes at which rates are measured, whatever the size of the case."""
FEW, OFTEN = 4, 64
"""Updates at which the time of applying some is measured."""
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One measurement: a size, and what is searched how. With `plain` no index of ours, on one rank."""

    samples: int
    plain: bool = False
    sharded: bool = False
    dim: int = 384
    width: int = 320
    """Numbers of a routing vector: 5 layers of 64 experts."""
    payload: str = "float32"
    backend: str = "faiss"
    neighbours: int = 3
    candidates: int = 64
    micro_batch: int = 8
    """Samples that each rank asks for in a step."""
    updates: int = 16
    """In a step, of all ranks together."""
    queries: int = 256
    """In a call of a search, of all ranks together."""
    seconds: float = 2.0
    """About how long each measurement goes on."""
    seed: int = 0


def write_points(folder: Path, samples: int, dim: int, seed: int) -> Path:
    """Unit vectors of random directions, embeddings.npy in `folder`, unless they are there already."""
    import numpy as np

    path = folder / f"points-{samples}-{dim}-{seed}" / "embeddings.npy"
    if path.exists():
        return path.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("unfinished.npy")
    points = np.lib.format.open_memmap(temporary, "w+", np.float32, (samples, dim))
    source = np.random.default_rng(seed)
    for start in range(0, samples, BLOCK):
        block = source.standard_normal((min(BLOCK, samples - start), dim), dtype=np.float32)
        points[start : start + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    points.flush()
    temporary.rename(path)
    return path.parent


def repeated(
    world: Any,
    call: Callable[[Any], Any],
    seconds: float,
    prepare: Callable[[int], Any] = lambda turn: turn,
) -> list[float]:
    """Seconds of each call after two to warm up; ranks begin each together, and make equally many.

    prepare: gives what the call of a turn gets, outside the time.
    """
    taken: list[float] = []
    count = 2
    for turn in range(MOST_CALLS + 2):
        if turn == count:
            break
        given = prepare(turn)
        world.barrier()
        begun = time.perf_counter()
        call(given)
        taken.append(time.perf_counter() - begun)
        if turn == 1:
            count = 2 + world.from_first(max(5, min(MOST_CALLS, round(seconds / max(taken[1], 1e-9)))))
    return taken[2:]


def median(values: list[float]) -> float:
    """Of what one rank measured."""
    return sorted(values)[len(values) // 2]


def held_now() -> int:
    """Bytes of this process that no file backs, freed ones given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes("RssAnon")


class Plain:
    """What a user would write in one process: the members alone, one more neighbour for the query itself."""

    def __init__(self, case: Case, points: Any, members: Any) -> None:
        import faiss
        import numpy as np
        import torch

        self.count = case.neighbours + 1
        chosen = np.ascontiguousarray(points[members])
        self._index = faiss.IndexFlatIP(case.dim)
        self._index.add(chosen)
        self._vectors = torch.from_numpy(chosen)

    def faiss(self, queries: Any) -> Any:
        """An exact index with the library's own settings."""
        return self._index.search(queries, self.count)

    def torch(self, queries: Any) -> Any:
        """All products, then the best."""
        import torch

        return (torch.from_numpy(queries) @ self._vectors.T).topk(self.count, dim=1)


def plain(case: Case, world: Any, points: Any, members: Any) -> dict[str, Any]:
    """Seconds of searches without our index."""
    import numpy as np

    baseline = Plain(case, points, members)
    source = np.random.default_rng(case.seed + 2)
    found: dict[str, Any] = {}
    for name, count in (("many", case.queries), ("few", case.micro_batch)):

        def asked(turn: int, count: int = count) -> Any:
            return np.ascontiguousarray(points[np.sort(source.choice(case.samples, count, replace=False))])

        for library in ("faiss", "torch"):
            search = getattr(baseline, library)
            found[f"{library} {name}"] = repeated(world, search, case.seconds, asked)
    return found


def draw_updates(case: Case, index: Any, rank: int, ranks: int, turn: int, total: int) -> Any:
    """This rank's share of `total` updates: members are refreshed or go, others come."""
    import numpy as np

    from roma_ds.index.updates import ADD, REFRESH, REMOVE, Updates

    source = np.random.default_rng([case.seed, turn, total])
    ids = np.sort(source.choice(len(index.members), min(total, len(index.members)), replace=False))[
        rank::ranks
    ]
    inside = index.members[ids]
    going = np.arange(len(ids)) % 2 == 1
    ops = np.where(inside, np.where(going, REMOVE, REFRESH), ADD).astype(np.uint8)
    vectors = source.random((int((ops != REMOVE).sum()), case.width), dtype=np.float32)
    return Updates(ids.astype(np.int64), ops, vectors)


def opened(case: Case, world: Any, transport: Any, points: Any, members: Any, sharded: bool) -> Any:
    """A loaded index; every member has the same routing vector."""
    import numpy as np

    from roma_ds.index.live import LiveIndex, Snapshot

    index = LiveIndex(
        world,
        transport,
        points,
        np.arange(len(points), dtype=np.int64),
        case.width,
        sharded,
        case.backend,
        payload=case.payload,  # type: ignore[arg-type]
        refreshed=True,
    )
    ids = np.flatnonzero(members)
    vector = np.full(case.width, 1 / case.width, np.float32)
    index.load(Snapshot(0, ids, np.broadcast_to(vector, (len(ids), case.width))))
    return index


def walker(case: Case, index: Any, points: Any, count: int) -> tuple[Any, Any]:
    """Neighbours by walking, for the first `count` samples, and their groups. A collective if sharded."""
    import numpy as np

    from roma_ds.index.candidates import Candidates
    from roma_ds.index.live_neighbours import LiveNeighbours

    groups = np.arange(len(points), dtype=np.int64)
    rows = groups[: min(count, len(points))]
    kept = index.shard.members.copy()
    index.shard.members[:] = True
    width = min(case.candidates, len(points))
    found = index.nearest(np.ascontiguousarray(points[rows]), groups[rows], width)
    index.shard.members[:] = kept
    lists = Candidates.of(found, np.full(len(rows), len(points) - 1))
    return LiveNeighbours(index, lists, points, groups, case.neighbours), rows


def measure(case: Case, world: Any, transport: Any, points: Any, members: Any) -> dict[str, Any]:
    """Seconds of what training asks of the index, on this rank, and the memory that it takes."""
    import numpy as np

    from roma_ds.index.replicas import check_replicas

    bare = held_now()
    begun = time.perf_counter()
    index = opened(case, world, transport, points, members, case.sharded)
    found: dict[str, Any] = {"built": time.perf_counter() - begun, "memory": held_now() - bare}
    source = np.random.default_rng([case.seed + 2, world.rank])

    def asked(count: int) -> Callable[[int], Any]:
        def draw(turn: int) -> Any:
            rows = np.sort(source.choice(case.samples, count, replace=False))
            return np.ascontiguousarray(points[rows]), rows.astype(np.int64)

        return draw

    def search(given: Any) -> Any:
        return index.nearest(*given, case.neighbours)

    found["many"] = repeated(world, search, case.seconds, asked(max(1, case.queries // world.size)))
    found["few"] = repeated(world, search, case.seconds, asked(case.micro_batch))
    neighbours, rows = walker(case, index, points, 512)

    def some(turn: int) -> Any:
        return source.choice(rows, min(case.micro_batch, len(rows)), replace=False)

    found["neighbours"] = repeated(world, neighbours.of, case.seconds, some)
    found["dry"] = neighbours.searched

    def told(turn: int) -> Any:
        return draw_updates(case, index, world.rank, world.size, turn, case.updates)

    found["apply"] = repeated(world, index.apply, case.seconds, told)
    found["check"] = repeated(world, lambda turn: check_replicas(index), case.seconds)
    found["members"] = index.size
    return found


def rates(case: Case, world: Any, transport: Any, points: Any) -> dict[str, Any]:
    """What the cost model is told: measured on small indexes of one rank's own, all ranks at work."""
    import numpy as np

    from roma_ds.comm import World, open_transport
    from roma_ds.comm.ranks import Ranks
    from roma_ds.index.shard import Shard

    part = min(0.5, case.seconds)
    found: dict[str, Any] = {"many": [], "few": [], "apply": []}
    nothing = np.empty(0, np.uint8)
    found["message"] = median(repeated(world, lambda turn: transport.gather(nothing), part))
    block = np.zeros(MIB, np.uint8)
    moved = median(repeated(world, lambda turn: transport.gather(block), part))
    found["link"] = (world.size - 1) * MIB / max(moved - 2 * found["message"], 1e-9)
    arriving = world.size if case.sharded else 1
    source = np.random.default_rng(case.seed + 3)
    for size in REFERENCES:
        vectors = source.standard_normal((size, case.dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = np.arange(size, dtype=np.int64)
        inside = source.random(size) < 0.5
        shard = Shard(ids, vectors, ids, case.backend, members=inside, refreshed=True)
        for name, asking in (
            ("many", max(1, case.queries // world.size) * arriving),
            ("few", case.micro_batch * arriving),
        ):
            taken = repeated(
                world,
                lambda turn, shard=shard, vectors=vectors, ids=ids, asking=asking: shard.nearest(
                    vectors[:asking], ids[:asking], case.neighbours
                ),
                part,
            )
            found[name].append((2.0 * asking * size * case.dim, median(taken)))
    alone = World(Ranks(), world.device)
    own = open_transport(alone, "torch")
    small = vectors[: REFERENCES[0]]
    index = opened(case, alone, own, small, inside[: len(small)], False)
    neighbours, rows = walker(case, index, small, 512)

    def some(turn: int) -> Any:
        return source.choice(rows, case.micro_batch, replace=False)

    found["neighbours"] = median(repeated(world, neighbours.of, part, some))
    for total in (FEW, OFTEN):

        def told(turn: int, total: int = total) -> Any:
            return draw_updates(case, index, 0, 1, turn, total)

        found["apply"].append((float(total), median(repeated(world, index.apply, part, told))))
    ids = np.flatnonzero(index.members)
    read = median(repeated(world, lambda turn: index.digest_held(), part))
    found["digest"] = len(ids) * index.payload.rows.itemsize * index.payload.width / read
    return found


def main() -> None:
    """Measure a case on this rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--points", type=Path, required=True)
    parser.add_argument("--case", type=json.loads, required=True, help="fields of Case")
    options, _ = parser.parse_known_args()
    case = Case(**options.case)
    import numpy as np
    import torch

    from roma_ds.comm import open_transport, start_world

    world = start_world()
    points = np.load(options.points / "embeddings.npy", mmap_mode="r")
    members = np.random.default_rng(case.seed + 1).random(case.samples) < 0.5
    record = Record(world.rank)
    record.facts["threads"] = torch.get_num_threads()
    if case.plain:
        record.facts |= plain(case, world, points, members)
    else:
        transport = open_transport(world, "torch")
        record.facts["rates"] = rates(case, world, transport, points)
        record.facts |= measure(case, world, transport, points, members)
        transport.close()
    record.write(options.out)
    world.close()


if __name__ == "__main__":
    main()
