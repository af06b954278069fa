"""Tries every Mixture-of-Experts type of the installed transformers.

    python -m roma_ds.testing.family_table                    all types, into docs/evidence/families.json
    python -m roma_ds.testing.family_table TYPE ...           some types
    python -m roma_ds.testing.family_table TYPE --json FILE   the same, into a file with results of others

For each a tiny random checkpoint is made, trained through the commands and looked at in stock transformers.
Prints a line a type, then the table in Markdown. It takes half a minute a type.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

EVIDENCE = Path("docs/evidence/families.json")
PACKAGES = ("transformers", "torch", "deepspeed")
STEPS = {
    "detected": "detected",
    "collected": "collected",
    "suffix": "through the suffix",
    "whole": "whole",
    "two ranks": "2 ranks, ZeRO-3",
    "gates alone": "gates alone",
    "merged": "merged",
    "stock": "in transformers",
    "eval": "`eval`",
}
"""Steps of a trial and the heads of their columns."""
R = {
    "softmax": "softmax",
    "sigmoid": "sigmoids over their sum",
    "sqrt_softplus": "roots of softplus over their sum",
}


def trials(types: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each type and what became of it, tried in a folder that is deleted afterwards."""
    from roma_ds.testing.family_trials.trial import FamilyTrial

    for model_type in types:
        with tempfile.TemporaryDirectory() as folder:
            yield model_type, FamilyTrial(model_type, Path(folder)).run()


def versions() -> dict[str, str]:
    """Of the packages that decide what is found."""
    return {name: metadata.version(name) for name in PACKAGES}


def line(model_type: str, result: Mapping[str, Any]) -> str:
    """One type's result in a line, and a line for each step that failed."""
    failed = reasons(model_type, result)
    passed = sum(step["ok"] for step in result["steps"].values())
    head = f"{model_type}: {passed} of {len(STEPS)} steps, {result['seconds']:g} s"
    return "\n".join([head, *(f"  {reason}" for reason in failed)])


def reasons(model_type: str, result: Mapping[str, Any]) -> list[str]:
    """Why steps of a type failed."""
    steps = result["steps"].items()
    return [f"`{model_type}`, {STEPS[name]}: {step['reason']}" for name, step in steps if not step["ok"]]


def cell(step: Mapping[str, Any] | None) -> str:
    """What a table says of a step: the difference that was found, yes, no, or nothing where not reached."""
    if step is None:
        return ""
    if not step["ok"]:
        return "**no**"
    difference = step["difference"]
    return "yes" if difference is None else "equal" if difference == 0 else f"{difference:.0e}"


def row(model_type: str, result: Mapping[str, Any], known: bool) -> list[str]:
    """A type's row of the table."""
    found = result["found"]
    way = "file" if found.get("family_file") else "trial" if found else ""
    facts = [way, found.get("mixing", ""), R.get(found.get("scoring", ""), "")]
    name = f"`{model_type}`" if known else f"`{model_type}` (new)"
    return [name, *facts, *(cell(result["steps"].get(step)) for step in STEPS)]


def markdown(evidence: Mapping[str, Any]) -> str:
    """The table of all types in an evidence file."""
    header = ["type", "known by", "tokens", "r", *STEPS.values()]
    rows = [
        row(model_type, result, model_type not in evidence["new_types"])
        for model_type, result in evidence["types"].items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def faults(evidence: Mapping[str, Any]) -> str:
    """A list of all steps that failed, with their reasons."""
    found = [reason for name, result in evidence["types"].items() for reason in reasons(name, result)]
    return "\n".join(f"- {reason}." for reason in found) or "No step failed."


def summary(evidence: Mapping[str, Any]) -> str:
    """How many types there are and get how far, and which of them are new."""
    types = evidence["types"].values()
    counts = {name: sum(result["steps"].get(name, {}).get("ok", False) for result in types) for name in STEPS}
    whole = sum(all(result["steps"].get(name, {}).get("ok", False) for name in STEPS) for result in types)
    new = ", ".join(f"`{name}`" for name in evidence["new_types"]) or "none"
    return (
        f"{len(types)} types of transformers {evidence['versions']['transformers']}, tried on "
        f"{evidence['date']}: {counts['detected']} are detected, {counts['suffix']} are trained through the "
        f"suffix, {counts['whole']} whole, and {whole} pass every step. Types that are new in this "
        f"transformers: {new}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Try types, print and write what was found; 1 where a step failed."""
    parser = argparse.ArgumentParser(prog="family_table", description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; without any, all")
    parser.add_argument("--json", type=Path, help=f"what is written; {EVIDENCE} where no TYPE is given")
    options = parser.parse_args(arguments)
    from transformers.utils import logging

    from roma_ds.storage.atomic import read_json, write_json
    from roma_ds.testing.moe_types import new_types
    from roma_ds.testing.tiny_sizes import MOE_TYPES

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    target = options.json or (None if options.types else EVIDENCE)
    new = new_types()
    found: dict[str, Any] = {}
    if options.types and target is not None and target.exists():
        before = read_json(target)
        found = before["types"] if before["versions"] == versions() else {}
    evidence = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "new_types": list(new),
        "types": found,
    }
    for model_type, result in trials(options.types or (*MOE_TYPES, *new)):
        print(line(model_type, result), flush=True)
        found[model_type] = result
        evidence["types"] = dict(sorted(found.items()))
        if target is not None:
            write_json(target, evidence)
    print(f"\n{markdown(evidence)}\n\n{faults(evidence)}\n\n{summary(evidence)}")
    failed = [name for name in options.types or found if reasons(name, found[name])]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
