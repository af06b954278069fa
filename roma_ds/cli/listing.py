"""What `roma-ds ls` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from roma_ds.config import preset_names, preset_text, study_names, study_text
from roma_ds.errors import UserError

RUNS = Path("runs")
"""Where runs are looked for, unless a folder is given; it may be absent."""


def lines(what: str, under: Path | None = None) -> Iterator[str]:
    """One line an item of `configs`, `studies`, `variants`, `families`, `tasks` or `runs` (in `under`).

    Raises UserError where `under` is no folder.
    """
    if what == "configs":
        for name in preset_names():
            first = preset_text(name).splitlines()[0].lstrip("# ")
            yield f"{name:<12} {first}"
    elif what == "studies":
        for name in study_names():
            first = study_text(name).splitlines()[0].lstrip("# ")
            yield f"{name:<22} {first}"
    elif what == "variants":
        from roma_ds.baselines.methods import METHODS

        for method in METHODS.values():
            label = " (uses test labels)" if method.uses_test_labels else ""
            yield f"{method.name:<18} {method.kind:<10} {method.description}{label}"
    elif what == "families":
        from roma_ds.families.registry import FAMILIES

        for family in FAMILIES:
            types = ", ".join(family.model_types)
            yield f"{family.name:<14} {family.support:<12} model_type: {types:<16} {family.reason}".rstrip()
    elif what == "tasks":
        from roma_ds.data.named import NAMED
        from roma_ds.data.tasks import TASKS

        for name, dataset in NAMED.items():
            task = TASKS.get(name)
            use = (
                f"evaluated on {task.split}, examples from {task.shots_split}" if task else "trained on only"
            )
            yield f"{name:<15} {use:<44} {dataset.hub_path}"
    else:
        from roma_ds.monitor.run_list import run_lines

        if under is not None and not under.is_dir():
            what_it_is = "is a file" if under.exists() else "does not exist"
            raise UserError(f"--under {under} {what_it_is}", "name the folder that holds the runs")
        yield from run_lines(under or RUNS)
