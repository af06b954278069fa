"""The table of all types: what the page says is what was tried, and which types are still to be tried."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roma_ds.testing.commands import Finished
from roma_ds.testing.family_table import STEPS, cell, faults, line, markdown, summary
from roma_ds.testing.family_trials.run_results import changed_tensors, largest_difference, share_beyond
from roma_ds.testing.family_trials.steps import Failed, compare
from roma_ds.testing.family_trials.trial import STEPS as TRIED
from roma_ds.testing.moe_types import new_types
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.testing.tiny_sizes import MOE_TYPES

DOCS = Path(__file__).resolve().parents[2] / "docs"
AGAIN = "python -m roma_ds.testing.family_table"


def printer() -> Any:
    spec = importlib.util.spec_from_file_location("family_tables", DOCS / "family_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def evidence() -> dict[str, Any]:
    found: dict[str, Any] = printer().evidence()
    return found


def test_the_page_has_what_was_tried() -> None:
    page = (DOCS / "models.md").read_text()
    for text in printer().tables():
        assert text in page, f"docs/models.md lacks what python docs/family_tables.py prints:\n{text}"


def test_every_type_of_this_transformers_was_tried(evidence: dict[str, Any]) -> None:
    new = {*MOE_TYPES, *new_types()} - evidence["types"].keys()
    assert not new, f"these types are new in this transformers: {', '.join(sorted(new))}; run {AGAIN}"
    tried, here = evidence["versions"]["transformers"], metadata.version("transformers")
    assert tried == here, (
        f"docs/evidence/families.json is of transformers {tried}, here is {here}: run {AGAIN}"
    )


def test_all_but_a_few_are_trained_through_their_suffix(evidence: dict[str, Any]) -> None:
    steps = {name: result["steps"] for name, result in evidence["types"].items()}
    through = [name for name, found in steps.items() if found.get("suffix", {}).get("ok")]
    assert len(through) >= 54
    for name in through:
        assert steps[name].keys() == STEPS.keys()
    for name in steps.keys() - set(through):
        reasons = [step["reason"] for step in steps[name].values() if not step["ok"]]
        assert reasons and all(reason and "\n" not in reason for reason in reasons)
    assert "mixes the tokens" in steps["doge"]["detected"]["reason"]


def test_what_was_compared_is_within_its_limit(evidence: dict[str, Any]) -> None:
    for name, result in evidence["types"].items():
        for title, step in result["steps"].items():
            # AdamW may tell a few values of a router apart, which the trial looks at by itself.
            if step["ok"] and step["limit"] is not None and title not in ("whole", "two ranks"):
                assert step["difference"] <= step["limit"], (name, title)


MADE_UP = {
    "date": "2026-01-02",
    "versions": {"transformers": "9.9"},
    "new_types": ["newcomer"],
    "types": {
        "known": {
            "found": {"family_file": True, "mixing": "packed", "scoring": "sigmoid"},
            "steps": {
                name: {
                    "ok": True,
                    "difference": 2e-6 if name == "stock" else None,
                    "limit": None,
                    "reason": None,
                }
                for name in STEPS
            },
            "seconds": 3.0,
        },
        "newcomer": {
            "found": {},
            "steps": {"detected": {"ok": False, "difference": None, "limit": None, "reason": "no routers"}},
            "seconds": 1.0,
        },
    },
}


def test_new_types_and_reasons_are_named() -> None:
    rows = markdown(MADE_UP).splitlines()
    yes = " | ".join("2e-06" if name == "stock" else "yes" for name in STEPS)
    assert rows[2] == f"| `known` | file | packed | sigmoids over their sum | {yes} |"
    assert rows[3].startswith("| `newcomer` (new) |  |  |  | **no** |  |")
    assert faults(MADE_UP) == "- `newcomer`, detected: no routers."
    assert "new in this transformers: `newcomer`" in summary(MADE_UP)
    assert "1 are trained through the suffix" in summary(MADE_UP)
    assert (
        line("newcomer", MADE_UP["types"]["newcomer"]).splitlines()[1] == "  `newcomer`, detected: no routers"
    )
    assert cell({"ok": True, "difference": 0.0}) == "equal" and cell(None) == ""
    assert STEPS.keys() == TRIED.keys()


def test_differences_are_seen() -> None:
    one, other = {"a": np.array([1.0, 2.0])}, {"a": np.array([1.0, 2.0 + 3e-5])}
    assert largest_difference(one, other) == pytest.approx(3e-5)
    assert share_beyond(one, other, 1e-5) == 0.5 and share_beyond(one, other, 1e-4) == 0
    with pytest.raises(Failed, match=r"logits differ by 3\.0e-05"):
        compare("logits", one, other, 1e-5)
    assert compare("logits", one, other, 1e-4).ok
    with pytest.raises(Failed, match="differ by inf"):
        compare("logits", [float("nan")], [1.0], 1e-4)
    for unlike in ({"b": one["a"]}, {"a": np.zeros(3)}):
        with pytest.raises(ValueError, match="beside"):
            largest_difference(one, unlike)
    with pytest.raises(ValueError, match="zip"):
        largest_difference([1.0], [1.0, 2.0])


def test_a_tensor_whose_bits_changed_is_named(tmp_path: Path) -> None:
    base, other = (save_tiny(tmp_path / name, layers=2, seed=seed) for name, seed in (("a", 0), ("b", 0)))
    assert changed_tensors(base, other) == set()
    changed = changed_tensors(base, save_tiny(tmp_path / "c", layers=2, seed=1))
    assert "model.layers.1.mlp.gate.weight" in changed and "model.norm.weight" not in changed


def test_the_message_of_a_process_is_its_error() -> None:
    said = "collect: 3/4 samples\nroma-ds: error: no such file\n  fix: make it\n"
    assert Finished(2, "", said).message == "no such file"
    raised = "Traceback (most recent call last):\n  File x\nValueError: min() of nothing\nwarning: late\n"
    assert Finished(1, "", raised).message == "ValueError: min() of nothing"
    assert Finished(3, "", "").message == "exit code 3"
