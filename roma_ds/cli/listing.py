"""What `roma-ds ls` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from roma_ds.config import preset_names, preset_text


def lines(what: str, under: Path) -> Iterator[str]:
    """One line an item of `configs`, `families`, `tasks` or `runs` (searched in `under`)."""
    if what == "configs":
        for name in preset_names():
            first = preset_text(name).splitlines()[0].lstrip("# ")
            yield f"{name:<12} {first}"
    elif what == "families":
        from roma_ds.families.registry import FAMILIES

        for family in FAMILIES:
            types = ", ".join(family.model_types)
            yield f"{family.name:<14} {family.support:<12} model_type: {types:<13} {family.reason}".rstrip()
    elif what == "tasks":
        from roma_ds.data.named import NAMED

        yield from NAMED
    else:
        yield from _runs(under)


def _runs(under: Path) -> Iterator[str]:
    found = sorted(under.rglob("config.resolved.yaml")) if under.is_dir() else []
    if not found:
        yield f"no runs under {under}"
    for config in found:
        folder = config.parent
        report = folder / "report" / "report.json"
        if not report.exists():
            yield f"{folder}  not finished"
            continue
        variants = json.loads(report.read_text())["variants"]
        scores = [
            f"{name} {100 * variant['average']:.1f}%"
            for name, variant in variants.items()
            if variant.get("average") is not None
        ]
        yield f"{folder}  {', '.join(scores)}"
