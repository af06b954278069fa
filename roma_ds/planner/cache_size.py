"""Bytes of a prefix cache on disk."""

from __future__ import annotations

SEQUENCE_BYTES = 13
"""Of each sequence beside its hidden states: its length, its checksum, and whether it is written."""


def cache_bytes(tokens: int, sequences: int, hidden: int, itemsize: int) -> int:
    """For hidden states of `hidden` numbers of `itemsize` bytes, but for a few hundred bytes of headers."""
    return tokens * hidden * itemsize + SEQUENCE_BYTES * sequences
