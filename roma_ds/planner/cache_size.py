"""Bytes of a prefix cache on disk."""

from __future__ import annotations

SEGMENT_BYTES = 13
"""Of each segment beside its hidden states: its length, its checksum, and whether it is written."""
LINK_BYTES = 4
"""Of each number that says which segment follows which, and in which one a sequence ends."""


def cache_bytes(tokens: int, segments: int, token_bytes: int, links: int = 0) -> int:
    """For `token_bytes` of each token (`Entering.token_bytes`), but for a few hundred bytes of headers.

    segments: one for each sequence where they share no tokens, and then without links.
    """
    return tokens * token_bytes + SEGMENT_BYTES * segments + LINK_BYTES * links
