"""docs/planning.md: its tables are what the planner says, and its measurements are what was measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_tables_of_the_page_are_current() -> None:
    spec = importlib.util.spec_from_file_location("planning_tables", DOCS / "planning_tables.py")
    assert spec is not None and spec.loader is not None
    printer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(printer)
    page = (DOCS / "planning.md").read_text()
    for table in printer.tables():
        assert table in page, f"docs/planning.md lacks what python docs/planning_tables.py prints:\n{table}"


def test_reality_is_within_ten_percent_and_traffic_within_five() -> None:
    points = json.loads((DOCS / "evidence" / "plan" / "plan.json").read_text())["points"]
    close = [point for point in points if 0.9 <= point["ratio"]["peak"] <= 1.1]
    # One setting is predicted too high; the page says why.
    assert len(close) >= max(6, len(points) - 1)
    for point in points:
        assert 0.9 <= point["ratio"]["resting"] <= 1.1 and 0.9 <= point["ratio"]["peak"] < 1.15, point["name"]
        assert 0.95 <= point["ratio"].get("gathered", 1.0) <= 1.05, point["name"]
    kinds = {
        (point["shape"]["model_type"], point["zero"], point["ranks"], point["cached"]) for point in points
    }
    assert len(kinds) >= 6 and {zero for _, zero, _, _ in kinds} == {0, 2, 3}
