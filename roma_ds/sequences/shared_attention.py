"""Which queries see which keys where sequences share tokens: calls of attention over chunks of their tree.

A chunk is a part of the tree in one piece: whole subtrees under one segment, or a segment alone whose
branches are chunks of their own. Its queries are its own tokens, its keys these and the tokens before them.
No key is laid out twice in a chunk, so that a long beginning with many branches takes little memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from roma_ds.sequences.token_tree import TokenTree

WHOLE = 128
"""Tokens of a tree that is one chunk, whatever it is made of."""
BESIDE = 64
"""Tokens of branches that are one chunk, where what they follow is shorter than that."""
AREA = 2**16
"""Products of a query and a key, for each head, in one call on a CPU; a chunk may have more."""
WASTE = 1.2
"""Times as many products as needed that padding may cost a call on a CPU."""
DEVICE_AREA, DEVICE_WASTE = 2**22, 4.0
"""The same elsewhere, where calls cost more and a mask of so many products is still small."""


@dataclass(frozen=True)
class Chunk:
    """Tokens `first` to `stop` of T, and what is before them."""

    first: int
    stop: int
    earlier: torch.Tensor
    """int64 [n], places in T of the tokens that all of the chunk follows"""
    chain: bool
    """One sequence's, from its beginning."""


@dataclass(frozen=True)
class Call:
    """n chunks, padded to Q queries and K keys each."""

    queries: torch.Tensor
    """int64 [n * Q], indices into T, or into R where only needed rows are asked for"""
    keys: torch.Tensor
    """int64 [n * K], indices into T"""
    mask: torch.Tensor | None
    """bool [n, 1, Q, K], which keys a query sees; None: its own and those before it"""
    query_positions: torch.Tensor
    """int64 [n, Q], places in their sequences"""
    key_positions: torch.Tensor
    """int64 [n, K]"""
    count: int
    real: torch.Tensor | None
    """int64, indices into n * Q of what is no padding; None: all"""

    def to(self, device: torch.device) -> Call:
        """The same on `device`."""
        names = ("queries", "keys", "mask", "query_positions", "key_positions", "real")
        found = {name: getattr(self, name) for name in names}
        return replace(self, **{name: one.to(device) for name, one in found.items() if one is not None})


@dataclass
class Sharing:
    """The calls of attention over one tree."""

    tree: TokenTree
    rows: torch.Tensor
    """int64 [R], ascending, the tokens that are needed after the last layer"""
    _calls: dict[tuple[torch.device, bool], tuple[list[Call], torch.Tensor]] = field(default_factory=dict)

    def calls(self, rows_only: bool, device: torch.device) -> tuple[list[Call], torch.Tensor]:
        """Calls, and int64 [T or R]: where in what they give, one after the other, a query's output is.

        rows_only: for the needed rows alone.
        """
        key = device, rows_only
        if key not in self._calls:
            self._calls[key] = self._made(rows_only, device)
        return self._calls[key]

    def _made(self, rows_only: bool, device: torch.device) -> tuple[list[Call], torch.Tensor]:
        asked = self.rows if rows_only else torch.arange(len(self.tree.ids))
        chunks = [(chunk, _within(asked, chunk)) for chunk in chunks_of(self.tree)]
        chunks = [(chunk, queries) for chunk, queries in chunks if len(queries)]
        sizes = [(len(queries), len(chunk.earlier) + chunk.stop - chunk.first) for chunk, queries in chunks]
        positions, stops = self.tree.positions(), _stops_of_tokens(self.tree)
        calls, order = [], []
        most = (AREA, WASTE) if device.type == "cpu" else (DEVICE_AREA, DEVICE_WASTE)
        for numbers in batched(sizes, *most):
            call = _call([chunks[number] for number in numbers], asked, positions, stops)
            order.append(call.queries if call.real is None else call.queries[call.real])
            calls.append(call.to(device))
        place = torch.empty(len(asked), dtype=torch.long)
        place[torch.cat(order)] = torch.arange(len(asked))
        return calls, place.to(device)


def chunks_of(tree: TokenTree) -> list[Chunk]:
    """Chunks that cover a tree, in its order."""
    found: list[Chunk] = []
    roots = [number for number, segment in enumerate(tree.segments) if segment.parent < 0]
    waiting = [([root], -1) for root in reversed(roots)]
    while waiting:
        siblings, parent = waiting.pop()
        earlier = tree.path(parent)
        most = max(BESIDE, len(earlier)) if parent >= 0 else WHOLE
        first, stop = tree.segments[siblings[0]].first, tree.stops[siblings[-1]]
        if stop - first <= most:
            chain = parent < 0 and not tree.children[siblings[0]]
            found.append(Chunk(first, stop, earlier, chain))
        elif len(siblings) > 1:
            waiting.extend((part, parent) for part in reversed(list(_parts(tree, siblings, most))))
        else:
            (alone,) = siblings
            below = tree.children[alone]
            found.append(Chunk(first, tree.segments[alone].stop, earlier, parent < 0))
            if below:
                waiting.append((list(below), alone))
    return found


def _parts(tree: TokenTree, siblings: Sequence[int], most: int) -> Iterator[list[int]]:
    """Siblings in parts of at most `most` tokens with what is below them, larger ones alone."""
    part: list[int] = []
    room = most
    for sibling in siblings:
        tokens = tree.stops[sibling] - tree.segments[sibling].first
        if part and tokens > room:
            yield part
            part, room = [], most
        part.append(sibling)
        room -= tokens
    yield part


def _stops_of_tokens(tree: TokenTree) -> torch.Tensor:
    """int64 [T], the place behind the last token that follows a token"""
    stops = torch.tensor(tree.stops, dtype=torch.long)
    return stops.repeat_interleave(torch.tensor([one.stop - one.first for one in tree.segments]))


def _within(asked: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """Indices into `asked`, int64 [n] ascending places in T, of those in a chunk."""
    low, high = torch.searchsorted(asked, torch.tensor([chunk.first, chunk.stop])).tolist()
    return torch.arange(low, high)


def batched(sizes: Sequence[tuple[int, int]], area: int, waste: float) -> Iterator[list[int]]:
    """Numbers of (queries, keys) by call, of at most `area` products and `waste` times those that are needed.

    One alone may have more.
    """
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    call: list[int] = []
    needed = widest = longest = 0
    for number in order:
        queries, keys = sizes[number]
        wide, long = max(widest, queries), max(longest, keys)
        padded, own = (len(call) + 1) * wide * long, needed + queries * keys
        if call and (padded > area or padded > waste * own):
            yield call
            call, needed, wide, long, own = [], 0, queries, keys, queries * keys
        call.append(number)
        needed, widest, longest = own, wide, long
    if call:
        yield call


def _call(
    chunks: Sequence[tuple[Chunk, torch.Tensor]],
    asked: torch.Tensor,
    positions: torch.Tensor,
    stops: torch.Tensor,
) -> Call:
    every = [torch.cat((chunk.earlier, torch.arange(chunk.first, chunk.stop))) for chunk, _ in chunks]
    counts = [len(queries) for _, queries in chunks]
    wide, long = max(counts), max(map(len, every))
    queries = torch.stack([_padded(queries, wide) for _, queries in chunks])
    keys = torch.stack([_padded(own, long) for own in every])
    there = torch.arange(long) < torch.tensor([len(own) for own in every])[:, None]
    places = asked[queries]
    mask = None
    if min(counts) < long or not all(chunk.chain for chunk, _ in chunks):
        asking = places[:, :, None]
        mask = there[:, None] & (keys[:, None] <= asking) & (asking < stops[keys][:, None])
    real = None
    if min(counts) < wide:
        real = (torch.arange(wide) < torch.tensor(counts)[:, None]).flatten().nonzero()[:, 0]
    return Call(
        queries.flatten(),
        keys.flatten(),
        None if mask is None else mask[:, None],
        positions[places],
        positions[keys],
        len(chunks),
        real,
    )


def _padded(places: torch.Tensor, size: int) -> torch.Tensor:
    """Places, then the first again: a query there sees what the first one does, a key there is never seen."""
    return torch.cat((places, places[:1].expand(size - len(places))))
