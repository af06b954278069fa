"""Random programs of updates and queries, run on an index of real ranks and on a plain dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from roma_ds.comm import Transport, World
from roma_ds.index.live import LiveIndex
from roma_ds.index.neighbourhood import ABSENT, Neighbourhood
from roma_ds.index.replicas import check_replicas
from roma_ds.index.updates import ADD, REFRESH, REMOVE, Updates

WIDTH = 3


@dataclass(frozen=True)
class Problem:
    """Samples, and what the draws of a program come from."""

    seed: int
    samples: int
    dim: int
    groups: int
    """Prompt groups; as many as samples where no prompt is there twice."""
    tied: bool
    """Vectors of small whole numbers: many equal products."""
    steps: int
    density: float
    """Share of the samples that a step updates."""
    k: int
    payload: str


problems = st.builds(
    Problem,
    seed=st.integers(0, 2**32),
    samples=st.integers(1, 40),
    dim=st.integers(1, 5),
    groups=st.sampled_from([1, 3, 40]),
    tied=st.booleans(),
    steps=st.integers(0, 4),
    density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    k=st.integers(1, 8),
    payload=st.sampled_from(["float32", "bfloat16"]),
)


@dataclass
class Plain:
    """S in one process: a dictionary, searched by looking at everyone."""

    embeddings: NDArray[np.float32]
    groups: NDArray[np.int64]
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def apply(self, updates: Updates) -> None:
        carried = iter(updates.vectors)
        for identity, operation in zip(updates.ids.tolist(), updates.ops.tolist(), strict=True):
            if operation == REMOVE:
                del self.vectors[identity]
            else:
                assert (identity in self.vectors) == (operation == REFRESH)
                self.vectors[identity] = next(carried)

    def ranked(self, row: int) -> list[tuple[float, int]]:
        """(product, id) of the members that are no copies of `row`, best first."""
        query = self.embeddings[row].astype(np.float64)
        found = [
            (float((self.embeddings[other].astype(np.float64) * query).sum()), other)
            for other in self.vectors
            if self.groups[other] != self.groups[row]
        ]
        return sorted(found, key=lambda item: (-item[0], item[1]))


def draw_updates(source: np.random.Generator, plain: Plain, density: float) -> Updates:
    """Any of the three operations for some samples, where it is allowed."""
    chosen = np.flatnonzero(source.random(len(plain.groups)) < density)
    inside = np.array([identity in plain.vectors for identity in chosen.tolist()], np.bool_)
    ops = np.where(inside, np.where(source.random(len(chosen)) < 0.5, REMOVE, REFRESH), ADD)
    # Numbers that bfloat16 holds exactly.
    vectors = source.integers(-128, 129, (int((ops != REMOVE).sum()), WIDTH)) / 64
    return Updates(chosen.astype(np.int64), ops.astype(np.uint8), vectors.astype(np.float32))


def share_of(updates: Updates, source: np.random.Generator, rank: int, size: int) -> Updates:
    """The part that `rank` tells: updates are dealt at random, in no order, some ranks have none."""
    talkers = source.integers(0, source.integers(1, size + 1), len(updates.ids))
    order = source.permutation(np.flatnonzero(talkers == rank))
    place = np.cumsum(updates.carries) - 1
    carried = place[order[updates.carries[order]]]
    return Updates(updates.ids[order], updates.ops[order], updates.vectors[carried])


def same(found: Neighbourhood, wanted: list[list[tuple[float, int]]], width: int) -> list[str]:
    """What differs between an answer and the first `width` of each ranked list."""
    wrong = []
    for row, ranked in enumerate(wanted):
        ids = [identity for _, identity in ranked[:width]]
        if found.ids[row].tolist() != ids + [ABSENT] * (width - len(ids)):
            wrong.append(f"query {row}: {found.ids[row].tolist()} for {ids}")
        products = [product for product, _ in ranked[:width]]
        if not np.allclose(found.inner_products[row, : len(ids)], products, rtol=0, atol=1e-12):
            wrong.append(f"query {row}: {found.inner_products[row].tolist()} for {products}")
    return wrong


def run_program(world: World, transport: Transport, problem: Problem, backend: str) -> list[str]:
    """Differences seen by this rank; every rank draws the same program from its seed."""
    source = np.random.default_rng(problem.seed)
    shape = (problem.samples, problem.dim)
    drawn = source.integers(-2, 3, shape) if problem.tied else source.standard_normal(shape)
    embeddings = drawn.astype(np.float32)
    groups = np.arange(problem.samples) % problem.groups
    plain = Plain(embeddings, groups)
    indexes = {
        placement: LiveIndex(
            world, transport, embeddings, groups, WIDTH, placement == "sharded", backend,
            payload=problem.payload, refreshed=True,  # type: ignore[arg-type]
        )
        for placement in ("replicated", "sharded")
    }  # fmt: skip
    wrong = []
    for step in range(problem.steps + 1):
        if step:
            updates = draw_updates(source, plain, problem.density)
            mine = share_of(updates, np.random.default_rng([problem.seed, step]), world.rank, world.size)
            plain.apply(updates)
            for index in indexes.values():
                index.apply(mine)
        own = np.random.default_rng([problem.seed, step, world.rank])
        rows = own.integers(0, problem.samples, own.integers(0, 6))
        ranked = [plain.ranked(row) for row in rows]
        least = float(own.choice([-1.0, 0.0, 1.0, 2.0])) if world.size == 1 else float(step % 3 - 1)
        for placement, index in indexes.items():
            at = f"{placement}, step {step}: "
            found = index.nearest(embeddings[rows], groups[rows], problem.k)
            wrong += [at + text for text in same(found, ranked, problem.k)]
            ball = [[item for item in one if item[0] >= least] for one in ranked]
            inside = index.within(embeddings[rows], groups[rows], least, problem.k)
            wrong += [at + text for text in same(inside, ball, problem.k)]
            if inside.capped != sum(len(one) > problem.k for one in ball):
                wrong.append(f"{at}{inside.capped} capped")
            vectors = index.vectors(found.ids)
            for place, identity in np.ndenumerate(found.ids):
                if identity != ABSENT and (vectors[place] != plain.vectors[int(identity)]).any():
                    wrong.append(f"{at}vector of {identity}: {vectors[place]}")
            if index.size != len(plain.vectors) or index.epoch != step:
                wrong.append(f"{at}size {index.size}, epoch {index.epoch}")
            check_replicas(index)
            wrong += [at + text for text in check_snapshot(index, plain)]
    return wrong


def check_snapshot(index: LiveIndex, plain: Plain) -> list[str]:
    """What differs between the snapshot on rank 0 and S."""
    snapshot = index.snapshot()
    if snapshot is None:
        return [] if not index.world.is_first else ["no snapshot on rank 0"]
    if snapshot.ids.tolist() != sorted(plain.vectors):
        return [f"snapshot of {snapshot.ids.tolist()}"]
    kept = np.array([plain.vectors[identity] for identity in snapshot.ids.tolist()])
    return (
        [] if np.array_equal(snapshot.vectors, kept.reshape(-1, WIDTH)) else ["other vectors in the snapshot"]
    )
