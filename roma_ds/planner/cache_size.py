"""Bytes of a prefix cache on disk."""

from __future__ import annotations

SEQUENCE_BYTES = 13
"""Of each sequence beside its hidden states: its length, its checksum, and whether it is written."""


def cache_bytes(tokens: int, sequences: int, token_bytes: int) -> int:
    """For `token_bytes` of each token (`Entering.token_bytes`), but for a few hundred bytes of headers."""
    return tokens * token_bytes + SEQUENCE_BYTES * sequences
