"""What the manifold term pulls to while S and its routing weights follow training.

Shapes: B samples, M chosen layers, E experts, w = M E.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.index import Neighbourhood
from roma_ds.index.courier import Courier
from roma_ds.index.live import Delivery, LiveIndex, Snapshot
from roma_ds.index.live_neighbours import LiveNeighbours
from roma_ds.index.replicas import check_replicas
from roma_ds.index.updates import ADD, REFRESH, REMOVE, Updates
from roma_ds.manifold.kernel import similarity
from roma_ds.manifold.weights import row_weights
from roma_ds.training.targets import BatchTargets, pulled


class Outcomes:
    """What this rank's samples showed since the index was last brought up to date."""

    def __init__(self, layers: int, experts: int) -> None:
        self._width = layers * experts
        self._seen: dict[int, tuple[bool, NDArray[np.float32]]] = {}

    def add(self, row: int, right: bool, vector: NDArray[np.float32]) -> None:
        """The outcome and routing weights [w] of a sample; a later one takes the place of an earlier one."""
        self._seen[row] = (right, vector)

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32]]:
        """ids ascending, outcomes, routing weights [u, w]."""
        ids = sorted(self._seen)
        vectors = [self._seen[row][1] for row in ids]
        return (
            np.array(ids, np.int64),
            np.array([self._seen[row][0] for row in ids], np.bool_),
            np.stack(vectors) if vectors else np.empty((0, self._width), np.float32),
        )

    def updates(self, members: NDArray[np.bool_]) -> Updates:
        """What S [samples] must learn: who is right now comes or stays, who is wrong goes."""
        ids, right, vectors = self.arrays()
        ops = np.where(right, np.where(members[ids], REFRESH, ADD), REMOVE).astype(np.uint8)
        told = right | members[ids]
        return Updates(ids[told], ops[told], vectors[right])

    def clear(self) -> None:
        """Forget all."""
        self._seen.clear()


class LiveTargets:
    """Neighbours among the present members of S, with the routing weights they had when last trained on.

    At step t these are what steps before t left behind: outcomes of a window of steps are applied together,
    at its end and at the latest at an epoch's end, so a window never sees a sample twice. Exchanges run
    beside the forward and the backward pass; only `after_step` changes the index, when none is under way.
    """

    def __init__(
        self,
        neighbours: LiveNeighbours,
        layers: int,
        experts: int,
        sigma: float,
        seen: NDArray[np.bool_],
        every: int | None,
        steps_per_epoch: int,
        check_every: int,
        repair: bool,
        say: Callable[[str], None],
    ) -> None:
        """every: steps of a window, None for an epoch. seen: bool [samples], whose outcome training shows."""
        self.neighbours = neighbours
        self.index: LiveIndex = neighbours.index
        self.shape = (layers, experts)
        self.sigma = sigma
        self.seen = seen
        self.every = every
        self.steps_per_epoch = steps_per_epoch
        self.check_every = check_every
        self.repair = repair
        self.say = say
        self.outcomes = Outcomes(layers, experts)
        self.courier = Courier(self.index.transport.sleeps)
        self._delivery: Callable[[], Delivery] | None = None
        """Waits for the updates of the step that is under way."""

    @property
    def successful(self) -> int:
        """Size of S now."""
        return self.index.size

    @property
    def epoch(self) -> int:
        """How often updates were applied."""
        return self.index.epoch

    def ask(self, rows: Sequence[int], device: torch.device) -> Callable[[], BatchTargets]:
        """Begin to find the targets of samples `rows`, beside what the training does meanwhile."""
        wait = self.courier.send(lambda: self._found(rows))
        return lambda: pulled(*wait(), device)

    def _found(
        self, rows: Sequence[int]
    ) -> tuple[Neighbourhood, NDArray[np.float64], NDArray[np.floating[Any]]]:
        found, vectors = self.neighbours.of(rows)
        weights = row_weights(similarity(found.inner_products, self.sigma), found.present)
        return found, weights, vectors.reshape(*found.ids.shape, *self.shape)

    def observe(self, rows: Sequence[int], right: Sequence[bool], routing: torch.Tensor) -> None:
        """Remember outcomes and routing weights [B, M, E]; a sample without an outcome stays where it is."""
        vectors = routing.detach().float().cpu().numpy().reshape(len(rows), -1)
        for row, outcome, vector in zip(rows, right, vectors, strict=True):
            known = outcome if self.seen[row] else bool(self.index.members[row])
            self.outcomes.add(row, known, vector)

    def observed(self, step: int) -> None:
        """Begin to tell the other ranks, where the window of steps ends with this one."""
        ends_epoch = step % self.steps_per_epoch == 0
        if ends_epoch or (self.every is not None and step % self.every == 0):
            updates = self.outcomes.updates(self.index.members)
            self._delivery = self.courier.send(lambda: self.index.deliver(updates))
            self.outcomes.clear()

    def after_step(self, done: int) -> None:
        """Bring the index up to date where it is due, and compare the ranks where that is. A collective."""
        if self._delivery is not None:
            self.index.take(self._delivery())
            self._delivery = None
        if done % self.check_every == 0:
            for damage in check_replicas(self.index, self.repair):
                self.say(f"index: rank {damage.rank} {damage.what}; repaired after step {done}")

    def state(self) -> Mapping[str, torch.Tensor]:
        """S, its routing weights, and the outcomes that wait; on rank 0. A collective."""
        snapshot = self.index.snapshot()
        parts = self.index.world.gather_to_first(self.outcomes.arrays())
        if snapshot is None or parts is None:
            return {}
        ids, right, vectors = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        arrays = {
            "epoch": np.array([snapshot.epoch], np.int64),
            "ids": snapshot.ids,
            "vectors": snapshot.vectors,
            "waiting_ids": ids,
            "waiting_right": right,
            "waiting_vectors": vectors,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state`, the same on every rank, however many there were."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        self.index.load(Snapshot(int(arrays["epoch"][0]), arrays["ids"], arrays["vectors"]))
        self.outcomes.clear()
        # Whoever holds what waits: it is gathered from all ranks anyway.
        if self.index.world.is_first:
            waiting = (arrays[f"waiting_{name}"] for name in ("ids", "right", "vectors"))
            for row, right, vector in zip(*waiting, strict=True):
                self.outcomes.add(int(row), bool(right), vector)

    def close(self) -> None:
        """Leave the index's own transport. A collective."""
        self.courier.close()
        self.index.transport.close()
