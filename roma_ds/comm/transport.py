"""Rows of arrays between ranks: what a transport promises, and the checks that all of them share.

Every call is one exchange of headers, with room for a small payload, then one of payload where somebody has
more than that for others. The header says what a rank brings (the call, dtype, shape of a row) and how many
rows for whom. As every rank reads all headers, all come to the same verdict: a mistake on one is an error on
every one, never a hang.

Shapes: R ranks; n_r rows of rank r; [...] the shape of one row.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NoReturn, Protocol

import numpy as np
from numpy.typing import ArrayLike

from roma_ds.comm.agreement import OtherRankFailed
from roma_ds.comm.wire import Array, Bytes, Integers, Wire
from roma_ds.comm.world import Operation, World
from roma_ds.errors import RomaError

TransportName = Literal["torch", "mpi"]

_COMBINED_BY = {"sum": np.add, "min": np.minimum, "max": np.maximum}
# A header: did this rank fail, length of its text, digest of its text, then rows for each rank.
_FAILED, _LENGTH, _DIGEST, _COUNTS = range(4)
_LONGEST_TEXT = 2000

ROOM = 1 << 16
"""Bytes of payload that travel with the headers of all ranks together: what is small needs no second
exchange, whose cost is the waiting."""


def room(size: int) -> int:
    """Bytes of payload that each of `size` ranks can send with its header."""
    return ROOM // size // 8 * 8


class RanksDisagree(RomaError):
    """Ranks that should make the same exchange do not: a mistake in the program."""


class Transport(Protocol):
    """Collectives over host arrays of any dtype of fixed size. All ranks make the same calls, in one order.

    What comes back is this rank's own to keep and to change. A call raises on all ranks where one of them
    gives something that cannot be sent, or where they disagree about the call, the dtype or a row's shape.
    """

    @property
    def rank(self) -> int:
        """This process's rank, 0 to size - 1; the same as in the World."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    @property
    def sleeps(self) -> bool:
        """Whether waiting for others leaves the processor to who computes, and a thread may do it."""

    def gather(self, rows: ArrayLike) -> list[Array]:
        """Every rank's rows [n_r, ...] in rank order, on every rank; n_r may differ and be 0."""

    def exchange(self, parts: Sequence[ArrayLike]) -> list[Array]:
        """What each rank sent here, in rank order; `parts`: an array [n, ...] for each rank, any n."""

    def reduce(self, values: ArrayLike, operation: Operation = "sum") -> Array:
        """`values` of all ranks combined element by element, in rank order: the same bits on every rank.

        Every rank sees every rank's values: meant for counters and digests. Integers wrap around.
        """

    def close(self) -> None:
        """Leave. A collective, for when all went well: after an error of one rank, let the process end."""


@dataclass(frozen=True)
class _Offer:
    """What this rank brings to one exchange."""

    text: str
    """Call, dtype and shape of a row, or what went wrong here."""
    parts: list[Array]
    """One for each rank; none after a failure."""
    failure: TypeError | ValueError | None = None


class Exchange:
    """The Transport of a process on its own (no wire), or of ranks that a wire connects."""

    def __init__(self, rank: int, size: int, wire: Wire | None) -> None:
        self.rank = rank
        self.size = size
        self._wire = wire
        self._closed = False
        self.sleeps = wire is not None and wire.sleeps

    def gather(self, rows: ArrayLike) -> list[Array]:
        """See Transport."""
        return self._exchange("gather", lambda: [np.asarray(rows)] * self.size, same=True)

    def exchange(self, parts: Sequence[ArrayLike]) -> list[Array]:
        """See Transport."""
        return self._exchange("exchange", lambda: [np.asarray(part) for part in parts], same=False)

    def reduce(self, values: ArrayLike, operation: Operation = "sum") -> Array:
        """See Transport."""

        def prepare() -> list[Array]:
            array = np.asarray(values)
            if operation not in _COMBINED_BY:
                raise ValueError(f"no such operation: {operation}")
            if array.dtype.kind not in "iufb" or (array.dtype.kind == "b" and operation == "sum"):
                raise TypeError(f"{array.dtype} values have no {operation}")
            return [array[None]] * self.size

        first, *others = self._exchange(f"reduce by {operation}", prepare, same=True)
        total = first[0, ...]
        for other in others:
            _COMBINED_BY[operation](total, other[0], out=total)
        return total

    def close(self) -> None:
        """See Transport."""
        if self._wire is not None and not self._closed:
            self._wire.close()
        self._closed = True

    def _exchange(self, call: str, prepare: Callable[[], list[Array]], same: bool) -> list[Array]:
        """Send the prepared parts, of which all are one array where `same`; returns what came, by rank."""
        if self._closed:
            raise RuntimeError("this transport is closed")
        offer = _offer(call, prepare, self.size)
        with self._waiting(offer):
            headers = self._headers(offer, same)
            if headers[:, _FAILED].any() or (headers[:, _DIGEST] != headers[0, _DIGEST]).any():
                self._refuse(offer, headers)
            counts = headers[:, _COUNTS : _COUNTS + self.size]
            self._check_room(counts, same)
            letters = headers[:, _COUNTS + self.size :].view(np.uint8)
            return self._payload(offer.parts, counts, letters, same)

    def _headers(self, offer: _Offer, same: bool) -> Integers:
        """int64 [R, _COUNTS + R + room / 8], every rank's header, numbers of rows and small payload."""
        text = offer.text.encode()
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
        mine = np.zeros(_COUNTS + self.size + room(self.size) // 8, np.int64)
        mine[:_COUNTS] = offer.failure is not None, min(len(text), _LONGEST_TEXT), digest
        if offer.failure is None:
            mine[_COUNTS : _COUNTS + self.size] = [len(part) for part in offer.parts]
        if self._wire is None:
            return mine[None]
        letter, start = mine[_COUNTS + self.size :].view(np.uint8), 0
        parts = offer.parts[:1] if same else offer.parts
        if sum(part.nbytes for part in parts) <= len(letter):
            for part in parts:
                letter[start : start + part.nbytes] = _bytes(part)
                start += part.nbytes
        return self._wire.headers(mine)

    def _payload(self, parts: list[Array], counts: Integers, letters: Bytes, same: bool) -> list[Array]:
        """letters: uint8 [R, room], the payload of each rank where it is no longer than that."""
        own, incoming = parts[self.rank], counts[:, self.rank]
        row = own.shape[1:]
        width = own.dtype.itemsize * math.prod(row)
        received = np.empty((int(incoming.sum()), *row), own.dtype)
        if width and (self._wire is None or counts.sum() == np.trace(counts)):
            received[...] = own
        elif width and int((incoming if same else counts.sum(axis=1)).max()) * width <= letters.shape[1]:
            before = np.zeros_like(incoming) if same else counts[:, : self.rank].sum(axis=1)
            found = zip(letters, before * width, (before + incoming) * width, strict=True)
            _bytes(received)[:] = np.concatenate([letter[start:end] for letter, start, end in found])
        elif width and self._wire is not None:
            if same:
                self._wire.all_gather(_bytes(own), _bytes(received), incoming, width)
            else:
                sent = np.concatenate([_bytes(part) for part in parts])
                self._wire.all_to_all(sent, _bytes(received), counts, width)
        return np.split(received, np.cumsum(incoming)[:-1])

    def _check_room(self, counts: Integers, same: bool) -> None:
        most = int(counts.sum(axis=0).max())
        if not same:
            most = max(most, int(counts.sum(axis=1).max()))
        if self._wire is not None and most > self._wire.most_rows:
            error = RomaError(
                f"{most} rows in one exchange; this transport counts up to {self._wire.most_rows}",
                "set index.transport=torch, or use more ranks",
            )
            error.agreed = True
            raise error

    def _refuse(self, offer: _Offer, headers: Integers) -> NoReturn:
        """Tell all ranks what each of them brought, and raise."""
        texts = [offer.text]
        if self._wire is not None:
            lengths = headers[:, _LENGTH]
            received = np.empty(int(lengths.sum()), np.uint8)
            mine = np.frombuffer(offer.text.encode()[:_LONGEST_TEXT], np.uint8)
            self._wire.all_gather(mine, received, lengths, 1)
            pieces = np.split(received, np.cumsum(lengths)[:-1])
            texts = [piece.tobytes().decode(errors="replace") for piece in pieces]
        if offer.failure is not None:
            raise offer.failure
        shared: RomaError
        failed = np.flatnonzero(headers[:, _FAILED])
        if failed.size:
            shared = OtherRankFailed(f"rank {failed[0]} failed: {texts[failed[0]]}")
        else:
            shared = RanksDisagree(f"the ranks do not make the same exchange: {_by_text(texts)}")
        shared.agreed = True
        raise shared

    @contextlib.contextmanager
    def _waiting(self, offer: _Offer) -> Iterator[None]:
        """Libraries say that a peer is gone, but not what for: the note says where this rank was."""
        try:
            yield
        except RuntimeError as error:
            error.add_note(f"rank {self.rank} waited for the other {self.size - 1} in: {offer.text}")
            raise


def _offer(call: str, prepare: Callable[[], list[Array]], size: int) -> _Offer:
    try:
        parts = prepare()
        if len(parts) != size:
            raise ValueError(f"{call} takes one part for each of the {size} ranks, not {len(parts)}")
        if parts[0].dtype.hasobject:
            raise TypeError(f"{call} cannot send Python objects ({parts[0].dtype})")
        texts = [_row_text(part) for part in parts]
        for rank, text in enumerate(texts):
            if text != texts[0]:
                raise ValueError(f"{call}: part 0 is {texts[0]}, part {rank} is {text}")
    except (TypeError, ValueError) as error:
        return _Offer(f"{type(error).__name__}: {error}", [], error)
    return _Offer(f"{call} of {texts[0]}", [np.ascontiguousarray(part) for part in parts])


def _row_text(part: Array) -> str:
    if part.ndim == 0:
        raise ValueError("rows are counted along the first dimension; this array has none")
    return f"{part.dtype} [{', '.join(['*', *map(str, part.shape[1:])])}]"


def _by_text(texts: Sequence[str]) -> str:
    ranks: dict[str, list[str]] = {}
    for rank, text in enumerate(texts):
        ranks.setdefault(text, []).append(str(rank))
    return "; ".join(
        f"{'ranks' if len(who) > 1 else 'rank'} {', '.join(who)}: {text}" for text, who in ranks.items()
    )


def _bytes(array: Array) -> Bytes:
    """A contiguous array's memory, without a copy."""
    return array.reshape(-1).view(np.uint8)


def open_transport(world: World, name: TransportName, timeout: timedelta | None = None) -> Transport:
    """Open a transport over the ranks of `world`; a process on its own gets one without any exchange.

    timeout: how long a rank waits for the others (torch only; None is torch's default). A collective. Raises
    EnvironmentFault on all ranks where mpi4py is missing or MPI's ranks are not the world's.
    """
    wire: Wire | None = None
    if name == "mpi":
        from roma_ds.comm.mpi_transport import check_alone, open_mpi

        if world.size > 1:
            wire = open_mpi(world)
        else:
            check_alone()
    elif world.size > 1:
        from roma_ds.comm.torch_transport import open_gloo

        wire = open_gloo(world, timeout)
    return Exchange(world.rank, world.size, wire)
