"""What becomes of a step of a trial: what is compared, how close it has to be, and why it failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from roma_ds.testing.family_trials.run_results import Run, largest_difference, share_beyond

STORED = 2.5e-4
"""Most that rounding to float16 changes of a number up to 1."""
ROUNDED_APART = 2.0**-11
"""Most that two equal numbers up to 1 differ once each has been rounded to float16."""
EXACT = 1e-5
"""Rounding in float32."""
FEW = 0.01
"""Share of a router's values that AdamW may tell apart: it divides by the gradient's own size, which is
rounding where the router's input is all but zero."""


@dataclass(frozen=True)
class Step:
    """What became of one step."""

    ok: bool
    difference: float | None = None
    """The largest that was found, where something was compared."""
    limit: float | None = None
    """What it is allowed to be."""
    reason: str | None = None
    """Why it failed, in one line."""


class Failed(Exception):
    """A step failed, for the reason in its words."""


class NotReached(Exception):
    """There is nothing to try a step on."""


def one_line(text: str) -> str:
    """The first line of a text that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), text)


def same_training(what: str, one: Run, other: Run) -> Step:
    """Raises Failed where losses, routers or what these make of the evaluation differ."""
    compare(f"losses of the steps {what}", one.step_losses, other.step_losses, EXACT)
    compare(f"eval of what is trained {what}", one.options("roma"), other.options("roma"), EXACT)
    apart = largest_difference(one.routers, other.routers)
    beyond = share_beyond(one.routers, other.routers, EXACT)
    if beyond > FEW:
        raise Failed(f"routers {what} differ by {apart:.1e}, {beyond:.0%} of them by more than {EXACT:g}")
    return Step(True, float(f"{apart:.1e}"), EXACT)


def compare(what: str, one: Any, other: Any, limit: float) -> Step:
    """Raises Failed where two sets of numbers differ by more than the limit."""
    difference = largest_difference(one, other)
    if not difference <= limit:
        raise Failed(f"{what} differ by {difference:.1e}")
    return Step(True, float(f"{difference:.1e}"), limit)
