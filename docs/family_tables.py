"""Prints what docs/models.md says of every type of transformers: `python docs/family_tables.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roma_ds.testing.family_table import faults, markdown, summary

EVIDENCE = Path(__file__).parent / "evidence" / "families.json"


def evidence() -> dict[str, Any]:
    """What `python -m roma_ds.testing.family_table` wrote."""
    found: dict[str, Any] = json.loads(EVIDENCE.read_text("utf-8"))
    return found


def tables() -> Iterator[str]:
    """All that the page has of it."""
    found = evidence()
    yield summary(found)
    yield markdown(found)
    yield faults(found)


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables()) + "\n")
