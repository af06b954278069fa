"""What a forecast is asked: what is to be run, on what, and at which rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from roma_ds.planner.frozen_pass import DISK_RATE, LINK_RATES
from roma_ds.planner.memory import RankBytes, Setting

USABLE = 0.9
"""Of a device's memory: the rest is for libraries and for memory in fragments."""
MOST_DEVICES = 2**14
MATRIX_RATES = {"cpu": 1e11, "cuda": 1e14}
"""Assumed operations a second of one rank, by device."""


@dataclass(frozen=True)
class Subject:
    """The model that is asked about."""

    name: str
    """As the user gave it."""
    family: str
    support: str
    reason: str
    """Why it is not simply supported; may be empty."""
    parameters: dict[str, int]
    """By kind."""
    active: int
    """Parameters that one token goes through."""


@dataclass(frozen=True)
class Rates:
    """What a second brings on one rank."""

    matrix: float
    """Floating-point operations of matrix products."""
    link: float
    """Bytes gathered from other ranks."""
    disk: float
    """Bytes read or written; each rank has this rate for itself."""

    @staticmethod
    def assumed(device: str) -> Rates:
        """The rates that are taken where none are given."""
        return Rates(MATRIX_RATES[device], LINK_RATES[device], DISK_RATE)


@dataclass(frozen=True)
class Question:
    """What is to be run, and on what."""

    setting: Setting
    """Ranks, dtype, device and tokens of a micro-batch; its ZeRO stage does not matter."""
    layers: tuple[int, ...]
    """Whose routers are trained."""
    device_memory: int
    """Bytes of one rank's device."""
    tokens: int
    """Of all training samples together."""
    length: int
    """Tokens of one sample."""
    activation_memory: int
    """Bytes that the stream engine may take for hidden states."""
    rates: Rates
    uncut: str | None = None
    """Why no part of this model can be run alone; None where it can."""
    stored_bytes: int | None = None
    """Of a checkpoint whose weights are stored in codes; None where they are read as they are."""
    in_codes: bool = False
    """Whether training and the zero3 engine hold experts in these codes."""
    shared: bool = False
    """Whether what samples begin with in common is run and stored once; no number here counts on it."""

    @property
    def cacheable(self) -> bool:
        """Whether there can be a prefix cache."""
        return min(self.layers) > 0 and self.uncut is None

    @property
    def micro_batch(self) -> int:
        """Samples of a rank and forward pass."""
        return max(1, self.setting.tokens // self.length)

    @property
    def samples(self) -> int:
        """Training samples."""
        return -(-self.tokens // self.length)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch, without accumulation."""
        return -(-self.samples // (self.micro_batch * self.setting.world_size))

    @property
    def room(self) -> int:
        """Bytes of a device that weights and activations may take."""
        return int(USABLE * self.device_memory)

    def fits(self, memory: RankBytes) -> bool:
        """Whether a rank's memory fits on a device."""
        return memory.peak <= self.room


def smallest(memory_on: Callable[[int], RankBytes], question: Question) -> int | None:
    """The smallest number of ranks on which a rank's memory fits; None where it fits on none.

    memory_on: of a rank, by the number of ranks; it never grows from 2 on.
    """
    if question.fits(memory_on(1)):
        return 1
    if not question.fits(memory_on(MOST_DEVICES)):
        return None
    low, high = 1, MOST_DEVICES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if question.fits(memory_on(middle)) else (middle, high)
    return high
