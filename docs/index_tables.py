"""Prints the tables of docs/index.md: `python docs/index_tables.py`; by roma_ds/planner/index_cost.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from roma_ds.planner import index_cost
from roma_ds.planner.index_cost import IndexSetting, Line, Rates

SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
RANKS = (1, 2, 8, 64)
ASSUMED = Rates(
    message=100e-6,
    link=1e9,
    many=Line(0.0, 5e10),
    few=Line(0.0, 1e10),
    digest=2e9,
    neighbours=50e-6,
    apply=Line(200e-6, 1e6),
)
"""Round numbers of no machine in particular."""
EVERY, CHECK_EVERY = 1, 100


def amount(nbytes: float) -> str:
    """Bytes in the unit that fits."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            value = nbytes / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.2g} {unit}"
    return f"{nbytes:.0f} B"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """One table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def memory() -> str:
    """Bytes of a rank by size and ranks."""
    rows = []
    for size in SIZES:
        whole = IndexSetting(size)
        parts = [replace(whole, ranks=ranks, sharded=True) for ranks in RANKS[1:]]
        held = index_cost.held(whole)
        rows.append(
            (
                f"{size:,}",
                *(amount(value) for value in (held.vectors, held.payload, held.numbers, held.total)),
                *(amount(index_cost.held(part).total) for part in parts),
                amount(index_cost.held(replace(parts[-1], backend="torch", payload="bfloat16")).total),
            )
        )
    named = [f"sharded, {ranks} ranks" for ranks in RANKS[1:]]
    return table(
        ("samples", "embeddings", "routing", "numbers", "replicated", *named, "64 ranks, torch, bfloat16"),
        rows,
    )


def files() -> str:
    """Bytes on disk by size."""
    names = list(index_cost.file_bytes(IndexSetting(1)))
    rows = []
    for size in SIZES:
        found = index_cost.file_bytes(IndexSetting(size))
        rows.append((f"{size:,}", *(amount(found[name]) for name in names)))
    return table(("samples", *(f"`{name}`".replace(" and ", "`, `") for name in names[:3]), names[3]), rows)


def traffic() -> str:
    """Messages and bytes of a step by ranks."""
    rows = []
    for ranks in RANKS[1:]:
        row: list[object] = [ranks]
        for sharded in (False, True):
            found = index_cost.a_step(IndexSetting(10**6, ranks, sharded), EVERY, CHECK_EVERY)
            row += [f"{found.messages:.0f}", amount(found.bytes)]
        searched = index_cost.searching(IndexSetting(10**6, ranks, sharded=True), 1)
        rows.append([*row, amount(searched.bytes)])
    head = ("ranks", "replicated: messages", "bytes", "sharded: messages", "bytes")
    return table((*head, "sharded: bytes of a search"), rows)


def seconds() -> str:
    """Seconds at the assumed rates."""
    rows = []
    for size in SIZES:
        for ranks in (1, 64) if size in (10**4, 10**8) else (64,):
            both = [IndexSetting(size, ranks, sharded) for sharded in (False, True)]
            steps = [index_cost.step_seconds(one, ASSUMED, EVERY, 10**9) for one in both]
            checks = [index_cost.check_seconds(one, ASSUMED) for one in both]
            found = index_cost.search_seconds(both[0], ASSUMED, 1)
            rows.append(
                (
                    f"{size:,}",
                    ranks,
                    *(duration(value) for value in (*steps, *checks, found)),
                    duration(index_cost.search_seconds(both[0], ASSUMED, 1024) * -(-size // (1024 * ranks))),
                )
            )
    return table(
        (
            "samples",
            "ranks",
            "step, replicated",
            "step, sharded",
            "check, replicated",
            "check, sharded",
            "one dry list",
            "all candidates",
        ),
        rows,
    )


def dry() -> str:
    """How often a list runs dry."""
    lengths, shares = (64, 128, 256), (0.5, 0.25, 0.1, 0.05, 0.02)
    rows = []
    for length in lengths:
        found = (
            index_cost.dry_share(IndexSetting(10**6, candidates=length, member_share=share))
            for share in shares
        )
        rows.append((length, *(f"{100 * value:.2g}%" if value >= 1e-6 else "0%" for value in found)))
    return table(("candidates", *(f"{100 * share:g}% in S" for share in shares)), rows)


def tables() -> Iterator[str]:
    """All of them."""
    yield from (memory(), files(), traffic(), seconds(), dry())


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables()) + "\n")
