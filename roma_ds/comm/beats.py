"""The connections over which ranks know of each other: each beats to rank 0, which answers all of them."""

from __future__ import annotations

import contextlib
import json
import secrets
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any

from roma_ds.comm.presence import ENDED, Peer, Presence

CONNECT_S = 60.0


class Hub:
    """Rank 0's side: takes the beats of all others and answers each with who is lost."""

    def __init__(self, presence: Presence, size: int) -> None:
        self.presence = presence
        self.token = secrets.token_hex(8)
        both = socket.has_dualstack_ipv6()
        self._server = socket.create_server(
            ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, backlog=size, dualstack_ipv6=both
        )
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        now = time.monotonic()
        presence.peers = {rank: Peer(rank, now) for rank in range(1, size)}
        self._links: dict[int, socket.socket] = {}

    def run(self) -> None:
        """Until this rank leaves."""
        with selectors.DefaultSelector() as selector, self._server:
            selector.register(self._server, selectors.EVENT_READ)
            last = time.monotonic()
            while not self.presence.leaving:
                for key, _ in selector.select(self.presence.beat_s):
                    if key.fileobj is self._server:
                        self._accept(selector)
                    elif not self._read(key.fileobj, key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if self.presence.look(now, now - last):
                    self._tell({"lost": self.presence.lost()})
                    self.presence.stop()
                last = now
            self._tell({"left": True})
        for link in self._links.values():
            link.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        """Take a link, of a rank or of a stranger; one that is gone again is no reason to stop."""
        with contextlib.suppress(OSError):
            link, _ = self._server.accept()
            link.setblocking(False)
            selector.register(link, selectors.EVENT_READ, Peer(-1, time.monotonic()))

    def _read(self, link: Any, guest: Peer) -> bool:
        """Take what came over a link; False once it is closed."""
        try:
            found = link.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            found = b""
        peer = self.presence.peers.get(guest.rank)
        if not found:
            if peer is not None:
                self._links.pop(peer.rank, None)
                self.presence.note(peer, ENDED)
            link.close()
            return False
        lines = (guest.buffer + found).split(b"\n")
        guest.buffer = lines.pop()
        for line in lines:
            said = _message(line)
            if peer is None:
                if said.get("token") != self.token or said.get("rank") not in self.presence.peers:
                    link.close()
                    return False
                guest.rank = said["rank"]
                peer = self.presence.peers[guest.rank]
                self._links[guest.rank] = link
            peer.heard = time.monotonic()
            peer.left = peer.left or bool(said.get("left"))
            _send(link, {"lost": self.presence.lost()})
        return True

    def _tell(self, said: Mapping[str, Any]) -> None:
        for link in self._links.values():
            _send(link, said)


class Guest:
    """Another rank's side: beats to rank 0 and reads its answers."""

    def __init__(self, presence: Presence, address: str, port: int, token: str) -> None:
        self.presence = presence
        self.link = socket.create_connection((address, port), timeout=CONNECT_S)
        self.first = Peer(0, time.monotonic())
        presence.peers = {0: self.first}
        _send(self.link, {"rank": presence.rank, "token": token})

    def run(self) -> None:
        """Until this rank leaves."""
        beat_s = self.presence.beat_s
        self.link.settimeout(beat_s)
        last = time.monotonic()
        with self.link:
            while not self.presence.leaving:
                started = time.monotonic()
                _send(self.link, {})
                self._read()
                now = time.monotonic()
                if self.presence.look(now, now - last):
                    self.presence.stop()
                last = now
                self.presence._leaving.wait(max(0.0, started + beat_s - now))
            _send(self.link, {"left": True})

    def _read(self) -> None:
        """Take rank 0's answers."""
        try:
            found = self.link.recv(65536)
        except TimeoutError:
            return
        except OSError:
            found = b""
        if not found:
            self.presence.note(self.first, ENDED)
            return
        self.first.heard = time.monotonic()
        lines = (self.first.buffer + found).split(b"\n")
        self.first.buffer = lines.pop()
        for said in map(_message, lines):
            self.first.left = self.first.left or bool(said.get("left"))
            for rank, why in said.get("lost", {}).items():
                if int(rank) != self.presence.rank:
                    peer = self.presence.peers.setdefault(int(rank), Peer(int(rank), time.monotonic()))
                    self.presence.note(peer, str(why))


def _send(link: socket.socket, said: Mapping[str, Any]) -> None:
    """What does not go out is no loss: the reader judges by what arrives."""
    try:
        link.sendall(json.dumps(said).encode() + b"\n")
    except OSError:
        return


def _message(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
