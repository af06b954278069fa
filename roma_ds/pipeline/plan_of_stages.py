"""Which stages a command runs, and which of them need all ranks."""

from __future__ import annotations

from typing import get_args

from roma_ds.config import RunConfig
from roma_ds.config.schema import Control
from roma_ds.errors import UserError

ORDER = ("data", "embed", "collect", "index", "train", "eval", "export", "report")
ON_ALL_RANKS = ("embed", "collect", "index", "train", "eval")
VARIANTS: tuple[str, ...] = ("base", *get_args(Control), "roma")
GIVEN = "given"
"""The variant of a router file that was trained elsewhere, and is evaluated alone."""
_NEEDS = {
    "data": (),
    "embed": ("data",),
    "collect": ("data",),
    "index": ("embed", "collect"),
    "train": ("index",),
    "eval": ("train",),
    "export": ("train",),
    "report": ("eval", "export"),
}


def require_tasks(goal: str, run: RunConfig) -> None:
    """Raises UserError where evaluation is the goal and the run has no tasks."""
    if goal == "eval" and not run.eval.tasks:
        raise UserError(
            f"{run.source.name}: eval.tasks is empty: there is nothing to evaluate",
            "name tasks, or use `roma-ds run`, which trains and goes without an evaluation",
        )


def stages_until(goal: str) -> tuple[str, ...]:
    """`goal` and all that it needs, in order."""
    needed = {goal}
    pending = [goal]
    while pending:
        for stage in _NEEDS[pending.pop()]:
            if stage not in needed:
                needed.add(stage)
                pending.append(stage)
    return tuple(stage for stage in ORDER if stage in needed)


def trained_variants(run: RunConfig, only: str | None) -> tuple[str, ...]:
    """Variants to train: the controls, then RoMA; or the one that `only` names."""
    if only is not None:
        return () if only == "base" else (only,)
    return (*run.controls, "roma")


def evaluated_variants(run: RunConfig, only: str | None) -> tuple[str, ...]:
    """Variants to evaluate: the base model and what is trained; or the one that `only` names."""
    return ("base", *trained_variants(run, None)) if only is None else (only,)
