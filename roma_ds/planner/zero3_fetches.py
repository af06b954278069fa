"""Which weights ZeRO-3 brings together in one micro-batch, and how many it holds at once.

Follows the rules by which DeepSpeed 0.19 fetches, prefetches and releases weights once it has seen a pass
(`runtime/zero/partitioned_param_coordinator.py`):

- before a module runs, what it lacks of its own weights is gathered, in one call;
- after that, up to `prefetch` values of what the following modules need, while fewer than `live` are there;
- after it ran, its weights go, unless they are needed again within `reuse` values, or were passed over by
  the prefetch because they were there;
- weights of at most `persistence` values stay on every rank; they are gathered once an optimizer step.

A call for several weights receives them in one buffer and copies them out, so that for a while they are there
twice. On one rank nothing is gathered: a weight is its own share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise
from operator import mul

from roma_ds.config.deepspeed_keys import AUTO
from roma_ds.planner.model_sizes import ModelSizes, Module

_ZERO = "zero_optimization."


@dataclass(frozen=True)
class Zero3Limits:
    """The numbers of a DeepSpeed JSON that decide it, in values; the defaults are those of `auto`."""

    persistence: int = AUTO[_ZERO + "stage3_param_persistence_threshold"]
    prefetch: int = AUTO[_ZERO + "stage3_prefetch_bucket_size"]
    reuse: int = AUTO[_ZERO + "stage3_max_reuse_distance"]
    live: int = AUTO[_ZERO + "stage3_max_live_parameters"]


@dataclass(frozen=True)
class Fetches:
    """What one micro-batch gathers on a rank, in values, padding included."""

    gathered: int
    """Of weights that are not persistent; in a micro-batch"""
    persistent: int
    """Of those that are; in an optimizer step"""
    peak: int
    """Most values of weights that are not persistent, whole on this rank at one time"""
    arriving: int
    """Most values of two calls, one after the other"""


def held(sizes: ModelSizes, limits: Zero3Limits, world_size: int) -> tuple[int, int]:
    """(values of this rank's shares, of the persistent weights that it holds whole besides)."""
    shares = sum(-(-weight.held // world_size) for weight in sizes.weights)
    if world_size == 1:
        return shares, 0
    return shares, sum(weight.held for weight in sizes.weights if weight.numbers <= limits.persistence)


def fetches(sizes: ModelSizes, limits: Zero3Limits, world_size: int, backward: bool) -> Fetches:
    """What a micro-batch through this part of a model fetches; without `backward`, a frozen pass."""
    if world_size == 1:
        return Fetches(0, 0, 0, 0)
    times, peak, arriving = _simulated(sizes, limits, backward)
    padded = [-(-weight.held // world_size) * world_size for weight in sizes.weights]
    persistent = sum(
        size
        for size, weight in zip(padded, sizes.weights, strict=True)
        if weight.numbers <= limits.persistence
    )
    return Fetches(sum(map(mul, times, padded)), persistent, peak, arriving)


@cache
def _simulated(sizes: ModelSizes, limits: Zero3Limits, backward: bool) -> tuple[tuple[int, ...], int, int]:
    """(by weight, how often it is gathered; `peak`; `arriving`): the same for all numbers of ranks from 2."""
    coordinator = _Coordinator(sizes, limits)
    coordinator.run([*forward_visits(sizes), *(backward_visits(sizes) if backward else [])])
    arriving = max(map(sum, pairwise([0, *coordinator.calls])), default=0)
    return tuple(coordinator.times), coordinator.peak, arriving


def forward_visits(sizes: ModelSizes) -> list[Module]:
    """The modules in the order in which a forward pass calls them."""
    return list(sizes.modules)


def backward_visits(sizes: ModelSizes) -> list[Module]:
    """The modules whose output has a gradient, in the order in which a backward pass enters them.

    In the first trained layer that is the way from its end to its router: the router itself, and the routed
    experts, whose result the router's scores weigh.
    """
    trained = [module.layer for module in sizes.modules if any(weight.trained for weight in module.weights)]
    first = min(layer for layer in trained if layer is not None)
    routers = {module.path for module in sizes.modules if any(w.kind == "router" for w in module.weights)}

    def entered(module: Module) -> bool:
        if module.layer is None:
            return all(weight.kind != "embedding" for weight in module.weights) or sizes.tied
        if module.layer > first:
            return True
        if module.layer < first:
            return False
        inside = [other for other in sizes.modules if f"{other.path}.".startswith(f"{module.path}.")]
        routed = any(weight.kind == "routed experts" for other in inside for weight in other.weights)
        return routed or module.path in routers

    wanted = [module for module in sizes.modules if entered(module)]
    places: dict[str, int] = {}
    for place, module in enumerate(wanted):
        for path in _chain(module.path):
            places.setdefault(path, place)
    # A module comes before what lies in it, and later siblings before earlier ones.
    return sorted(wanted, key=lambda module: [-places[path] for path in _chain(module.path)])


def _chain(path: str) -> list[str]:
    """The paths of what a module lies in, from the outermost one to itself."""
    return list(accumulate(path.split("."), lambda outer, inner: f"{outer}.{inner}")) if path else []


@dataclass(eq=False)
class _Call:
    """One collective for some weights."""

    weights: list[int]
    waiting: set[int]
    """Weights that no module has asked for yet; the buffer is there as long as there are any."""
    arrived: bool = False


@dataclass
class _Coordinator:
    sizes: ModelSizes
    limits: Zero3Limits
    times: list[int] = field(default_factory=list)
    """By weight, how often it was gathered."""
    peak: int = 0
    calls: list[int] = field(default_factory=list)
    """Values of each call."""
    _numel: list[int] = field(default_factory=list)
    """As DeepSpeed counts, by weight."""
    _held: list[int] = field(default_factory=list)
    """Values of the network's type that take as much memory, by weight."""
    _before: list[int] = field(default_factory=list)
    """By step, values of the weights that the steps before it use."""
    _there: set[int] = field(default_factory=set)
    _calls: dict[int, _Call] = field(default_factory=dict)
    _fetched_for: dict[int, int] = field(default_factory=dict)
    _available: int = 0

    def run(self, visits: Sequence[Module]) -> None:
        self._numel = [weight.numbers for weight in self.sizes.weights]
        self._held = [weight.held for weight in self.sizes.weights]
        self.times = [0] * len(self._numel)
        numbers: dict[str, list[int]] = {}
        count = 0
        for module in self.sizes.modules:
            numbers[module.path] = list(range(count, count + len(module.weights)))
            count += len(module.weights)
        order = [numbers[module.path] for module in visits]
        self._there = {number for number, size in enumerate(self._numel) if self._persists(size)}
        queue = deque((number, step) for step, own in enumerate(order) for number in own)
        sums = accumulate((sum(self._numel[number] for number in own) for own in order), initial=0)
        self._before = list(sums)
        uses: list[list[int]] = [[] for _ in self._numel]
        for step, own in enumerate(order):
            for number in own:
                uses[number].append(step)
        for step, own in enumerate(order):
            self._gather(number for number in own if not self._is_coming(number))
            for number in own:
                self._wait(number)
            self._prefetch(queue, own, step)
            for number in own:
                self._release(number, step + 1, uses[number])

    def _persists(self, numel: int) -> bool:
        return numel <= self.limits.persistence

    def _is_coming(self, number: int) -> bool:
        return number in self._there or number in self._calls

    def _gather(self, wanted: Iterable[int]) -> None:
        weights = list(wanted)
        if not weights:
            return
        call = _Call(weights, set(weights))
        self._calls.update(dict.fromkeys(weights, call))
        self.calls.append(sum(self._held[number] for number in weights))
        for number in weights:
            self._available += self._numel[number]
            self.times[number] += 1
        self._note()

    def _wait(self, number: int) -> None:
        call = self._calls.pop(number, None)
        if call is None:
            return
        call.arrived = True
        self._there.add(number)
        self._note(call)
        call.waiting.discard(number)

    def _prefetch(self, queue: deque[tuple[int, int]], own: Sequence[int], step: int) -> None:
        lacking = sum(self._fetched_for.get(number, -1) < step for number in own)
        for _ in range(lacking):
            number, used = queue.popleft()
            self._fetched_for[number] = used
        most = min(self.limits.live - self._available, self.limits.prefetch)
        ahead: list[int] = []
        size = 0
        while queue and size < most:
            number, used = queue.popleft()
            self._fetched_for[number] = max(self._fetched_for.get(number, -1), used)
            if not self._is_coming(number) and number not in ahead:
                ahead.append(number)
                size += self._numel[number]
        self._gather(ahead)

    def _release(self, number: int, step: int, uses: Sequence[int]) -> None:
        """uses: the steps that need it."""
        if self._persists(self._numel[number]) or number not in self._there:
            return
        if self._fetched_for.get(number, -1) > step:
            return
        # DeepSpeed looks through the following steps until it has seen `reuse` values.
        reach = self._before[step] + self.limits.reuse
        if any(use >= step and self._before[use] < reach for use in uses):
            return
        self._there.discard(number)
        self._available -= self._numel[number]

    def _note(self, arriving: _Call | None = None) -> None:
        there = sum(self._held[number] for number in self._there if not self._persists(self._numel[number]))
        calls = {id(call): call for call in self._calls.values()}
        if arriving is not None:
            calls[id(arriving)] = arriving
        for call in calls.values():
            whole = sum(self._held[number] for number in call.weights)
            # What no module has asked for yet has been copied out as well, once the call has arrived.
            copied = sum(self._held[number] for number in call.waiting if number not in self._there)
            if len(call.weights) > 1:
                there += whole + (copied if call.arrived else 0)
            elif not call.arrived:
                there += whole
        self.peak = max(self.peak, there)
