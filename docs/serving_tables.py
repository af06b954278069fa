"""Prints what docs/serving.md says of llama.cpp: `python docs/serving_tables.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from roma_ds.families.llama_cpp import ROUTING


def rows() -> Iterator[str]:
    """A line of the table for each architecture."""
    yield "| GGUF architecture | family | weights of the chosen experts divided by their sum | otherwise |"
    yield "|---|---|---|---|"
    for name, known in ROUTING.items():
        yield f"| `{name}` | {', '.join(known.families)} | {known.renormalised} | {known.otherwise} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(rows()) + "\n")
