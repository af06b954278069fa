"""What became of the rows of each dataset: entries of the manifest, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any

from roma_ds.data.decontamination import reasons
from roma_ds.data.rows import FileAccount

SHOWN = 3
"""Dropped samples of a file that are shown, and malformed rows."""


@dataclass(frozen=True)
class Example:
    """A dropped sample: its id, that of the evaluation sample it gives away, and the words they share."""

    sample: str
    evaluation: str
    words: str


@dataclass(frozen=True)
class DatasetRecord:
    """What became of the rows of one dataset; an entry of the manifest."""

    dataset: str
    split: str
    source: str
    sha256: str
    rows: int
    """Good rows."""
    used: int
    """Rows that samples are made of."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Ids of dropped samples by reason: a key of decontamination.reasons."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """Some of them, by the same keys."""
    over_limit: int = 0
    """Rows left out because of the limit."""
    shots: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the rows that a task's solved examples are made of, by subject where it tells them apart."""
    shots_source: str = ""
    """Where these rows come from."""
    notes: list[str] = field(default_factory=list)
    """What the reading of the file had to say."""
    files: list[FileAccount] = field(default_factory=list)
    """Its files, each with the shape of its rows and an example."""
    bad_rows: int = 0
    """Malformed rows that were left out."""
    bad: list[str] = field(default_factory=list)
    """What is wrong with the first of them, each with its place."""

    def account(self, size: int) -> Iterator[str]:
        """Lines that say how many samples were dropped, why, and show some. size: words of a shared run."""
        if self.dropped:
            parts = [f"{len(ids)} dropped because {reasons(size)[key]}" for key, ids in self.dropped.items()]
            yield f"{self.dataset}/{self.split}: {self.rows} rows, {', '.join(parts)}"
        for example in islice(chain.from_iterable(self.examples.values()), SHOWN):
            words = example.words if len(example.words) <= 120 else example.words[:117] + "..."
            yield f"  {example.sample} and {example.evaluation}: {words!r}"

    def left_out(self) -> Iterator[str]:
        """Lines that say how many malformed rows were left out, and show some."""
        if self.bad_rows:
            yield f"{self.dataset}/{self.split}: {self.bad_rows} malformed rows left out"
            yield from (f"  {problem}" for problem in self.bad[:SHOWN])

    def entry(self) -> dict[str, Any]:
        """The record as the manifest has it, with counts before the ids."""
        entry = asdict(self)
        dropped: dict[str, list[str]] = entry.pop("dropped")
        examples = entry.pop("examples")
        bad_rows, bad = entry.pop("bad_rows"), entry.pop("bad")
        for file in entry["files"]:
            del file["notes"]
        for key in ("notes", "files"):
            if not entry[key]:
                del entry[key]
        if not self.shots:
            del entry["shots"], entry["shots_source"]
        entry["dropped"] = {
            reason: {"count": len(ids), "ids": ids, "examples": examples[reason]}
            for reason, ids in dropped.items()
        }
        if bad_rows:
            entry["bad_rows"] = {"count": bad_rows, "rows": bad}
        return entry
