"""What the live index costs: memory and files by counting, bytes between ranks, seconds at stated rates.

Counts follow `roma_ds/index/live.py` and `roma_ds/comm/transport.py`; a test holds them to what these move.
Seconds are no better than the rates: whoever asks states them, best measured on the machines in question.

Shapes: n samples, d numbers of an embedding, w of a routing vector, R ranks, k neighbours, C candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

PAYLOAD_BYTES = {"float32": 4, "bfloat16": 2}
NUMBER = 4
"""Bytes of an embedding's number."""
INTEGER = 8
"""Bytes of an id, a prompt group, or a product in float64."""
VECTOR_COPIES = {"faiss": 2, "torch": 1}
"""Copies of the embeddings: ours, from which products are computed anew, and that inside a FAISS index."""
HEADER = 3
"""Integers of a transport's header beside one for each rank."""
ROOM = 1 << 16
"""Bytes of payload that fit beside the headers of all ranks together; the same as in the transport."""
REPORT = 5
"""Integers that a rank reports in a check."""
FEW_QUERIES = 16
"""Below so many queries FAISS does not multiply matrices; the same as in its backend."""


@dataclass(frozen=True)
class IndexSetting:
    """What decides the costs. Defaults: 5 layers of 64 experts."""

    samples: int
    ranks: int = 1
    sharded: bool = False
    dim: int = 384
    width: int = 320
    payload: Literal["float32", "bfloat16"] = "float32"
    backend: Literal["faiss", "torch"] = "faiss"
    neighbours: int = 3
    candidates: int = 64
    micro_batch: int = 8
    """Samples of a rank in a step."""
    member_share: float = 0.5
    """Of the samples, those in S."""

    @property
    def spread(self) -> bool:
        """Whether ranks keep different ids."""
        return self.sharded and self.ranks > 1

    @property
    def own(self) -> int:
        """Samples that the fullest rank keeps."""
        return -(-self.samples // self.ranks) if self.spread else self.samples

    @property
    def row(self) -> int:
        """Bytes of a routing vector."""
        return self.width * PAYLOAD_BYTES[self.payload]


@dataclass(frozen=True)
class Held:
    """Bytes in the memory of one rank."""

    vectors: int
    """Embeddings, in as many copies as the backend makes."""
    payload: int
    """Routing vectors: room for every sample, in S or not."""
    numbers: int
    """Ids and prompt groups, and flags of S and of what training sees."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.vectors + self.payload + self.numbers


def held(setting: IndexSetting) -> Held:
    """Memory of a rank in training, with an exact index. Lists of another index type come on top."""
    own, samples = setting.own, setting.samples
    # By own id: id, group, the group's number and size where all prompts differ, and the flag.
    numbers = own * (4 * INTEGER + 1)
    # By any id: group and three flags (in S, outcome seen, candidate list complete).
    numbers += samples * (INTEGER + 3)
    vectors = own * setting.dim * NUMBER * VECTOR_COPIES[setting.backend]
    return Held(vectors, own * setting.row, numbers)


def members_bytes(setting: IndexSetting) -> int:
    """Bytes of the routing vectors that a rank keeps of members."""
    return round(setting.own * setting.member_share) * setting.row


def check_bytes(setting: IndexSetting) -> int:
    """What a check reads on a rank: those vectors, and the ids in S, which every rank knows all of.

    While it lasts it takes about twice as much memory.
    """
    return members_bytes(setting) + round(setting.samples * setting.member_share) * INTEGER


def dry_share(setting: IndexSetting) -> float:
    """How many candidate lists hold fewer than k members, if membership says nothing about nearness."""
    length, share = setting.candidates, setting.member_share
    return math.fsum(
        math.comb(length, count) * share**count * (1 - share) ** (length - count)
        for count in range(min(setting.neighbours, length + 1))
    )


def file_bytes(setting: IndexSetting) -> dict[str, int]:
    """Bytes of files of a run that the index reads; candidates are mapped, and read a row at a time."""
    pair = 2 * INTEGER * setting.samples
    return {
        "embed/embeddings.npy": setting.samples * setting.dim * NUMBER,
        "index/neighbours.npy and inner_products.npy": pair * setting.neighbours,
        "index/candidates.npy and candidate_products.npy": pair * min(setting.candidates, setting.samples),
        "index of train/state/step-N": round(setting.samples * setting.member_share)
        * (INTEGER + setting.width * NUMBER),
    }


@dataclass(frozen=True)
class Traffic:
    """What one rank sends to others, on average over ranks, and how often all of them meet."""

    messages: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.messages + other.messages, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Traffic:
        return Traffic(self.messages * times, self.bytes * times)


def _moved(ranks: int, nbytes: float, sent: float) -> Traffic:
    """A header to each of the others; `sent` bytes follow where `nbytes` do not fit into it."""
    others = ranks - 1
    if not others:
        return Traffic()
    room = ROOM // ranks // INTEGER * INTEGER
    header = Traffic(1.0, others * (room + (HEADER + ranks) * INTEGER))
    return header if nbytes <= room else header + Traffic(1.0, sent)


def _gather(ranks: int, nbytes: float) -> Traffic:
    """`nbytes` of this rank to each of the others."""
    return _moved(ranks, nbytes, nbytes * (ranks - 1))


def _exchange(ranks: int, nbytes: float) -> Traffic:
    """`nbytes` of this rank dealt out evenly, its own part included, which stays."""
    return _moved(ranks, nbytes, nbytes * (ranks - 1) / ranks)


def fetching(setting: IndexSetting) -> Traffic:
    """A micro-batch's neighbours from lists of which none is dry, with vectors, owners evenly spread."""
    if not setting.spread:
        return Traffic()
    wanted = setting.micro_batch * setting.neighbours
    return _exchange(setting.ranks, wanted * INTEGER) + _exchange(setting.ranks, wanted * setting.row)


def applying(setting: IndexSetting, updates: float, vectors: float | None = None) -> Traffic:
    """`updates` of each rank, of which `vectors` (None: all) carry one, their owners evenly spread.

    Replicated, those without a vector take its room too, and all is one message.
    """
    ranks = setting.ranks
    if ranks == 1:
        return Traffic()
    head, carried = 2 * INTEGER, updates if vectors is None else vectors
    if not setting.sharded:
        return _gather(ranks, (head + setting.row) * updates)
    return _gather(ranks, head * updates) + _exchange(ranks, (head + setting.row) * carried)


def checking(setting: IndexSetting) -> Traffic:
    """A comparison of what ranks hold."""
    return _gather(setting.ranks, REPORT * INTEGER)


def searching(setting: IndexSetting, queries: int) -> Traffic:
    """`queries` of each rank, exact, k answers each."""
    if not setting.spread:
        return Traffic()
    ranks, answers = setting.ranks, queries * setting.neighbours * INTEGER
    asked = _gather(ranks, queries * setting.dim * NUMBER) + _gather(ranks, queries * INTEGER)
    return asked + _gather(ranks, answers) * 2


def search_operations(setting: IndexSetting, queries: int) -> float:
    """Operations of a rank for `queries` of each rank: as many in both placements.

    Sharded, a rank looks at an R-th of the vectors, for the queries of R ranks.
    """
    asking = queries * (setting.ranks if setting.spread else 1)
    return 2.0 * asking * setting.own * setting.dim


def a_step(setting: IndexSetting, every: int = 1, check_every: int = 100) -> Traffic:
    """A training step's mean: neighbours, updates each `every` steps, a check each `check_every`."""
    due = applying(setting, every * setting.micro_batch) * (1 / every)
    return fetching(setting) + due + checking(setting) * (1 / check_every)


@dataclass(frozen=True)
class Line:
    """Seconds that grow with the work: a start, then so much a second."""

    start: float
    rate: float

    def at(self, amount: float) -> float:
        """Seconds for `amount`."""
        return self.start + amount / self.rate

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> Line:
        """From two measured (amount, seconds); no time before the start, and no rate below the larger's."""
        grown = (large[1] - small[1]) / (large[0] - small[0])
        slope = min(max(grown, 1e-18), large[1] / large[0])
        return cls(large[1] - large[0] * slope, 1 / slope)


@dataclass(frozen=True)
class Rates:
    """Of one rank, while the others work as they do in a run."""

    message: float
    """Seconds of an exchange between all ranks, however small."""
    link: float
    """Bytes a second that leave a rank."""
    many: Line
    """Search of many queries at once: operations."""
    few: Line
    """Search of at most `few_queries`."""
    digest: float
    """Bytes a second of routing vectors read for a check."""
    neighbours: float
    """Seconds to walk the lists of a micro-batch and to read routing vectors, without exchange."""
    apply: Line
    """Applying updates, without exchange: updates of all ranks together."""
    few_queries: int = FEW_QUERIES - 1
    """Queries that arrive on a rank for which `few` holds."""

    def moving(self, traffic: Traffic) -> float:
        """Seconds between ranks."""
        return traffic.messages * self.message + traffic.bytes / self.link


def search_seconds(setting: IndexSetting, rates: Rates, queries: int) -> float:
    """All ranks search for `queries` of each."""
    arriving = queries * (setting.ranks if setting.spread else 1)
    line = rates.few if arriving <= rates.few_queries else rates.many
    return line.at(search_operations(setting, queries)) + rates.moving(searching(setting, queries))


def neighbour_seconds(setting: IndexSetting, rates: Rates) -> float:
    """Neighbours of a micro-batch with their routing vectors, no list dry."""
    return rates.neighbours + rates.moving(fetching(setting))


def apply_seconds(setting: IndexSetting, rates: Rates, updates: float, vectors: float | None = None) -> float:
    """`updates` of each rank, `vectors` of them with a routing vector."""
    return rates.apply.at(updates * setting.ranks) + rates.moving(applying(setting, updates, vectors))


def check_seconds(setting: IndexSetting, rates: Rates) -> float:
    """One comparison of the ranks."""
    return check_bytes(setting) / rates.digest + rates.moving(checking(setting))


def step_seconds(setting: IndexSetting, rates: Rates, every: int = 1, check_every: int = 100) -> float:
    """The index's part of a training step, where each sample becomes an update and no list is dry."""
    due = apply_seconds(setting, rates, every * setting.micro_batch) / every
    checked = check_seconds(setting, rates) / check_every
    return neighbour_seconds(setting, rates) + due + checked
