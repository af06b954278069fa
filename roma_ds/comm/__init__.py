"""Ranks, the one door to collectives, and errors that every rank agrees on."""

from roma_ds.comm.agreement import agreement
from roma_ds.comm.transport import Transport, open_transport
from roma_ds.comm.world import World, start_world

__all__ = ["Transport", "World", "agreement", "open_transport", "start_world"]
