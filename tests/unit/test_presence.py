"""Ranks that beat to rank 0 over loopback, within one process."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from roma_ds.comm import presence as module
from roma_ds.comm.beats import Guest, Hub
from roma_ds.comm.presence import Presence
from roma_ds.errors import RomaError

HOSTS = ("node0", "node1", "node1")


@dataclass
class Ends:
    """What every rank would have said before it ended."""

    said: dict[int, tuple[str, bool]] = field(default_factory=dict)

    def at(self, rank: int, presence: list[Presence]) -> module.End:
        def end(error: RomaError, tell: bool) -> None:
            self.said[rank] = (str(error), tell)
            presence[rank]._leaving.set()

        return end

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.said) < count and time.monotonic() < deadline:
            time.sleep(0.01)


@contextmanager
def three(after_s: float) -> Iterator[tuple[list[Presence], Hub, list[Guest], Ends]]:
    """Rank 0 on node0, ranks 1 and 2 on node1; the guests beat once they are started."""
    ends = Ends()
    ranks: list[Presence] = []
    ranks += [Presence(rank, HOSTS, after_s, ends.at(rank, ranks)) for rank in range(3)]
    hub = Hub(ranks[0], 3)
    ranks[0].start(hub.run)
    guests = [Guest(ranks[rank], "127.0.0.1", hub.port, hub.token) for rank in (1, 2)]
    try:
        yield ranks, hub, guests, ends
    finally:
        for rank in ranks:
            rank.leave()


def test_silence_is_a_loss_and_all_others_name_rank_and_host() -> None:
    with three(after_s=0.6) as (ranks, _, guests, ends):
        ranks[1].start(guests[0].run)
        ends.wait(2)
    assert set(ends.said) == {0, 1}
    for rank in (0, 1):
        message, tell = ends.said[rank]
        assert "rank 2 (host node1) has not been heard of for 0.6 s; the last saved state is kept" in message
        assert "fix: rerun the same command" in message
        assert tell


def test_a_rank_that_ends_is_a_loss_after_a_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDED_GRACE_S", 0.8)
    with three(after_s=5) as (ranks, _, guests, ends):
        ranks[2].start(guests[1].run)
        ended = time.monotonic()
        guests[0].link.close()
        ends.wait(2)
        assert 0.7 < time.monotonic() - ended < 5
    assert set(ends.said) == {0, 2}
    assert all("rank 1 (host node1) ended unexpectedly" in message for message, _ in ends.said.values())


def test_the_loss_of_rank_0_is_seen_by_all() -> None:
    with three(after_s=0.6) as (ranks, hub, guests, ends):
        hub.presence.look = lambda now, paused: False  # type: ignore[method-assign]
        hub._read = lambda link, guest: True  # type: ignore[method-assign]
        for rank, guest in enumerate(guests, 1):
            ranks[rank].start(guest.run)
        ends.wait(2)
    assert {rank: tell for rank, (_, tell) in ends.said.items()} == {1: True, 2: False}
    assert all("rank 0 (host node0) has not been heard of" in message for message, _ in ends.said.values())


def test_ranks_that_leave_are_not_lost() -> None:
    with three(after_s=0.5) as (ranks, _, guests, ends):
        for rank, guest in enumerate(guests, 1):
            ranks[rank].start(guest.run)
        ranks[1].leave()
        time.sleep(1.2)
        assert not ranks[0].lost() and not ranks[2].lost()
        ranks[0].leave()
        time.sleep(1.2)
        assert not ranks[2].lost()
    assert not ends.said


def test_a_process_that_was_stopped_itself_does_not_judge() -> None:
    ends = Ends()
    rank = Presence(0, HOSTS, 10.0, ends.at(0, []))
    rank.peers = {1: module.Peer(1, heard=0.0)}
    assert not rank.look(now=100.0, paused_s=90.0)
    assert not rank.look(now=109.0, paused_s=1.0)
    assert not rank.lost()
    assert not rank.look(now=111.0, paused_s=1.0)
    assert rank.lost() == {1: "has not been heard of for 10 s"}
    assert rank.look(now=time.monotonic() + 1, paused_s=1.0)


def test_a_stranger_is_no_rank() -> None:
    with three(after_s=5) as (ranks, hub, guests, ends):
        for rank, guest in enumerate(guests, 1):
            ranks[rank].start(guest.run)
        for words in (b'{"rank": 1, "token": "guess"}\n', b"GET / HTTP/1.0\r\n\r\n", b"\xff\n"):
            with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
                stranger.sendall(words)
                stranger.settimeout(5)
                assert stranger.recv(100) == b""
        time.sleep(0.5)
        assert not ranks[0].lost()
    assert not ends.said


def test_a_link_that_is_gone_before_it_is_taken_stops_nothing() -> None:
    hub = Hub(Presence(0, HOSTS, 5.0, lambda error, tell: None), 3)
    with selectors.DefaultSelector() as selector, hub._server:
        hub._accept(selector)
        assert not selector.get_map()


def test_many_losses_are_shown_in_short() -> None:
    rank = Presence(0, tuple(f"node{number}" for number in range(20)), 60.0, lambda error, tell: None)
    error = rank.error(dict.fromkeys(range(1, 20), module.ENDED))
    assert error.message.count("ended unexpectedly") == 8 and "and 11 more" in error.message
    assert rank.speaks({1: module.ENDED})
