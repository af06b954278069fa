"""The index over S while S changes: neighbours, routing vectors and updates, the same on every rank.

Embeddings never change, so nothing is ever removed from a search structure: S is a flag by id, known on every
rank, and an update carries a routing vector alone. Replicated, a rank keeps all vectors and searches alone;
sharded, it keeps those of every size-th id, queries travel and routing vectors come back.

Shapes: n samples, q queries, d numbers of an embedding, k neighbours, w numbers of a routing vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roma_ds.comm import Transport, World, agreement
from roma_ds.index import digest
from roma_ds.index.neighbourhood import ABSENT, Neighbourhood
from roma_ds.index.payload import Payload, PayloadType, Placement
from roma_ds.index.shard import Shard
from roma_ds.index.updates import ADD, REFRESH, REFUSED, REMOVE, UpdateError, Updates, merged

_Letters = NDArray[np.void]

BLOCK = 1 << 10
"""Rows that are read at once for a digest: few enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Snapshot:
    """S and the routing vectors of its members, whatever the placement and the number of ranks."""

    epoch: int
    ids: NDArray[np.int64]
    """[m], ascending"""
    vectors: NDArray[np.float32]
    """[m, w]; exact, since both types of a payload are exact in float32"""


@dataclass(frozen=True)
class Delivery:
    """What all ranks told each other, as it arrived: nothing of it is applied yet."""

    refusal: UpdateError | None
    """Why this rank's own updates cannot be applied."""
    heads: Sequence[NDArray[np.int64]]
    """By rank [u, 2], id and operation of every update."""
    letters: Sequence[_Letters]
    """By rank, updates with their routing vectors: at least those of ids that are kept here."""


class LiveIndex:
    """Methods are collectives, but for `load` and what only looks at this rank."""

    def __init__(
        self,
        world: World,
        transport: Transport,
        embeddings: NDArray[np.float32],
        groups: NDArray[np.int64],
        width: int,
        sharded: bool = False,
        backend: str = "faiss",
        factory: str = "Flat",
        payload: PayloadType = "float32",
        refreshed: bool = False,
    ) -> None:
        """embeddings [n, d] and groups [n] of all samples; they may be memory-mapped. S is empty.

        refreshed: S will change, which not every index type of FAISS can follow.
        """
        self.world = world
        self.transport = transport
        self.placement = Placement(transport.rank, transport.size, sharded)
        own = self.placement.own(len(embeddings))
        vectors = np.ascontiguousarray(embeddings[own] if sharded else embeddings, np.float32)
        nobody = np.zeros(len(own), np.bool_)
        self.shard = Shard(own, vectors, groups[own], backend, factory, members=nobody, refreshed=refreshed)
        self.payload = Payload(self.placement, len(embeddings), width, payload)
        self.members: NDArray[np.bool_] = np.zeros(len(embeddings), np.bool_)
        """[n], S; only `apply` and `load` change it"""
        self.epoch = 0
        """Number of `apply` calls so far."""
        self.flags_digest = 0
        """Of the ids in S, kept up to date by what was applied."""
        self.rows_digest = 0
        """Of the routing vectors that this rank keeps of members, kept up to date likewise."""

    @property
    def sharded(self) -> bool:
        """Whether ranks keep different ids."""
        return self.placement.sharded and self.placement.size > 1

    @property
    def size(self) -> int:
        """Number of members of S."""
        return int(np.count_nonzero(self.members))

    def load(self, snapshot: Snapshot) -> None:
        """Take S and routing vectors from a snapshot, the same on every rank. Not a collective."""
        self.members[:] = False
        self.members[snapshot.ids] = True
        own = self.placement.own(len(self.members))
        self.shard.set_members(own, self.members[own])
        mine = self.placement.mine(snapshot.ids)
        rows = self.payload.encoded(snapshot.vectors[mine])
        self.payload.write(snapshot.ids[mine], rows)
        self.epoch = snapshot.epoch
        self.flags_digest = digest.of_ids(snapshot.ids)
        self.rows_digest = self.digest_held()

    def snapshot(self) -> Snapshot | None:
        """S and its routing vectors on rank 0, None elsewhere."""
        if not self.sharded and not self.world.is_first:
            return None
        mine = self._my_members()
        part = (mine, self.payload.decoded(self.payload.read(mine)))
        parts = self.world.gather_to_first(part) if self.sharded else [part]
        if parts is None:
            return None
        ids, vectors = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.argsort(ids)
        return Snapshot(self.epoch, ids[order], vectors[order])

    def _my_members(self) -> NDArray[np.int64]:
        ids = np.flatnonzero(self.members)
        return ids[self.placement.mine(ids)]

    def digest_held(self) -> int:
        """Of the routing vectors that this rank holds of members, read anew. Not a collective."""
        mine = self._my_members()
        blocks = (mine[start : start + BLOCK] for start in range(0, len(mine), BLOCK))
        return sum(digest.of_rows(block, self.payload.read(block)) for block in blocks) & digest.MASK

    def apply(self, updates: Updates) -> None:
        """Apply the updates of all ranks, or on a refusal none of them.

        Raises UpdateError on every rank, with the id, for what `Updates.check` and `merged` refuse.
        """
        self.take(self.deliver(updates))

    def deliver(self, updates: Updates) -> Delivery:
        """Tell all ranks of this rank's updates, and hear of theirs.

        Changes nothing here, so it may run beside what only reads.
        """
        refusal = updates.refusal(self.members, self.payload.width)
        letters = self._letters(updates, refusal)
        if not self.sharded:
            arrived = self.transport.gather(letters)
            return Delivery(refusal, [_heads(part) for part in arrived], arrived)
        heads = self.transport.gather(_heads(letters))
        owner = self.placement.owner(letters["id"])
        carried = ~np.isin(letters["op"], (REMOVE, REFUSED))
        ranks = range(self.placement.size)
        return Delivery(
            refusal, heads, self.transport.exchange([letters[carried & (owner == rank)] for rank in ranks])
        )

    def take(self, delivery: Delivery) -> None:
        """Apply what was delivered, or on a refusal nothing; raises as `apply` does."""
        ids, ops = self._agreed(delivery)
        rows = self._rows(delivery.letters)
        changed, carried = ids[ops != ADD], ids[ops != REMOVE]
        self.flags_digest += digest.of_ids(ids[ops == ADD]) - digest.of_ids(ids[ops == REMOVE])
        old, new = (part[self.placement.mine(part)] for part in (changed, carried))
        self.rows_digest -= digest.of_rows(old, self.payload.read(old))
        self.payload.write(new, rows)
        self.rows_digest += digest.of_rows(new, rows)
        self.flags_digest &= digest.MASK
        self.rows_digest &= digest.MASK
        self.members[ids] = ops != REMOVE
        flipped = ids[ops != REFRESH]
        flipped = flipped[self.placement.mine(flipped)]
        self.shard.set_members(flipped, self.members[flipped])
        self.epoch += 1

    def _letters(self, updates: Updates, refusal: UpdateError | None) -> _Letters:
        """[u], id, operation and row of each update, or one that says they are refused."""
        row = (self.payload.rows.dtype, (self.payload.width,))
        fields = np.dtype([("id", np.int64), ("op", np.int64), ("row", *row)])
        if refusal is not None:
            return np.array([(-1, REFUSED, 0)], fields)
        letters = np.zeros(len(updates.ids), fields)
        letters["id"], letters["op"] = updates.ids, updates.ops
        letters["row"][updates.carries] = self.payload.encoded(updates.vectors)
        return letters

    def _agreed(self, delivery: Delivery) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Ids and operations of all ranks' updates, by id ascending; raises what any rank refuses."""
        if any((part[:, 1] == REFUSED).any() for part in delivery.heads):
            with agreement(self.world):
                if delivery.refusal is not None:
                    raise delivery.refusal
        try:
            return merged(delivery.heads)
        except UpdateError as error:
            error.agreed = True
            raise

    def _rows(self, letters: Sequence[_Letters]) -> NDArray[np.generic]:
        """[.., w], the rows that this rank keeps, by id ascending."""
        kept = np.concatenate(letters)
        kept = kept[kept["op"] != REMOVE]
        rows: NDArray[np.generic] = kept["row"][np.argsort(kept["id"])]
        return rows

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [.., w], the routing vectors of `ids` [..]; any numbers where an id is ABSENT."""
        found = self.vectors_unless(False, ids)
        assert found is not None
        return found

    def vectors_unless(self, unsure: bool, ids: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """As `vectors`, but None on all ranks that exchange rows where any of them is `unsure` of its ids."""
        flat = np.maximum(ids.reshape(-1), 0)
        if not self.sharded:
            if unsure:
                return None
            rows = self.payload.read(flat)
        else:
            owner, ranks = self.placement.owner(flat), range(self.placement.size)
            mark = np.full(int(unsure), ABSENT)
            asked = self.transport.exchange([np.append(flat[owner == rank], mark) for rank in ranks])
            if any((wanted == ABSENT).any() for wanted in asked):
                return None
            answers = self.transport.exchange([self.payload.read(wanted) for wanted in asked])
            rows = np.empty((len(flat), self.payload.width), self.payload.rows.dtype)
            rows[np.argsort(owner, kind="stable")] = np.concatenate(answers)
        return self.payload.decoded(rows).reshape(*ids.shape, self.payload.width)

    def nearest(self, queries: NDArray[np.float32], groups: NDArray[np.int64], k: int) -> Neighbourhood:
        """The k members nearest to each query [q, d], without those of its own group [q].

        Inner product descending, then id ascending; fewer where S has no more.
        """
        if not self.sharded:
            return self.shard.nearest(queries, groups, k)
        return self._together(queries, groups, k, lambda part, own: self.shard.nearest(part, own, k))

    def within(
        self, queries: NDArray[np.float32], groups: NDArray[np.int64], least: float, cap: int
    ) -> Neighbourhood:
        """Members whose inner product with a query is at least `least`, at most the `cap` best of them."""
        if not self.sharded:
            return self.shard.within(queries, groups, least, cap)
        # One more than the cap from every rank: so it shows where together they exceed it.
        found = self._together(
            queries, groups, cap + 1, lambda part, own: self.shard.within(part, own, least, cap + 1)
        )
        capped = int((found.ids[:, cap] != ABSENT).sum())
        return Neighbourhood(found.ids[:, :cap], found.inner_products[:, :cap], capped)

    def _together(
        self,
        queries: NDArray[np.float32],
        groups: NDArray[np.int64],
        width: int,
        search: Callable[[NDArray[np.float32], NDArray[np.int64]], Neighbourhood],
    ) -> Neighbourhood:
        """Every rank searches its part for all ranks' queries; the best `width` of each."""
        all_queries, all_groups = self.transport.gather(queries), self.transport.gather(groups)
        found = search(np.concatenate(all_queries), np.concatenate(all_groups))
        cuts = np.cumsum([len(part) for part in all_groups])[:-1]
        ids = self.transport.exchange(np.split(found.ids, cuts))
        products = self.transport.exchange(np.split(found.inner_products, cuts))
        return best_of(np.concatenate(ids, axis=1), np.concatenate(products, axis=1), width)


def _heads(letters: _Letters) -> NDArray[np.int64]:
    """[u, 2], id and operation."""
    return np.stack([letters["id"], letters["op"]], axis=1)


def best_of(ids: NDArray[np.int64], products: NDArray[np.float64], width: int) -> Neighbourhood:
    """Of candidates [q, c] the best `width` a row: present ones, inner product descending, id ascending."""
    order = np.lexsort((ids, -products, ids == ABSENT), axis=1)[:, :width]
    return Neighbourhood(np.take_along_axis(ids, order, 1), np.take_along_axis(products, order, 1))
