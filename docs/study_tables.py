"""Prints the tables of docs/ablations.md and docs/study.md: `python docs/study_tables.py`.

They are read from docs/evidence/study: `ablation_NAME.json` and `demo.json` are the report/study.json of the
packaged studies.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from roma_ds.study.report import ALIGNMENT_HEAD, COSTS, HEAD, alignment_cells, cost_cells, main_cells

EVIDENCE = Path(__file__).parent / "evidence" / "study"
ABLATIONS = ("layers", "tokens", "neighbours", "epsilon", "sigma", "lambda", "embedding", "data")


def entries(name: str) -> dict[str, Any]:
    """The lines of the study of that name."""
    found: dict[str, Any] = json.loads((EVIDENCE / f"{name}.json").read_text())["entries"]
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines])


def main_table(name: str) -> str:
    """Accuracies and differences."""
    return table(HEAD, [main_cells(entry, row) for entry, row in entries(name).items()])


def tables() -> Iterator[str]:
    """All of both pages."""
    for name in ABLATIONS:
        yield main_table(f"ablation_{name}")
    yield main_table("demo")
    rows = entries("demo")
    yield table(COSTS, [cost_cells(entry, row) for entry, row in rows.items()])
    tested = [[name, *numbers] for name, task, *numbers in alignment_cells(rows) if task == "test"]
    yield table([ALIGNMENT_HEAD[0], *ALIGNMENT_HEAD[2:]], tested)


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables()) + "\n")
