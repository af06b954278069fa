"""What all pictures share: canvas, colours of variants and tasks, writing the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from roma_ds.storage.atomic import writing

INK = "#26323d"
MUTED = "#6b7885"
GRID = "#e3e8ed"
LAYOUT = "constrained"
DOTS_PER_INCH = 130
BEFORE, AFTER = "#8a949e", "#0b6fb8"

VARIANT_COLOURS = {
    "base": "#8a949e",
    "router_tuning": "#dd8a0c",
    "random_neighbours": "#8c62c2",
    "roma": "#0b6fb8",
    "roma_as_served": "#5aa7dd",
    "roma_refreshed": "#1b3f73",
    "oracle": "#2f9a62",
    "oracle_tuning": "#8fcfa8",
    "shuffled_weights": "#c2444f",
    "shuffled_rows": "#b0569c",
    "no_success_filter": "#5b8f9e",
    "wrong_only": "#8a6d3b",
    "all_layers": "#3f5b2a",
    "l1": "#9aa83a",
    "l2": "#c98b6b",
    "entropy": "#e06fa0",
}
_SPARE_COLOURS = ("#d9534f", "#4f8a97", "#a0793d", "#a34f92", "#6f8532")

_TASK_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22"),
    *("#7f7f7f", "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#9edae5"),
    *("#393b79", "#637939", "#8c6d31", "#843c39", "#7b4173", "#3182bd"),
)

_SETTINGS: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "figure.facecolor": "white",
}


def variant_colour(variant: str, place: int = 0) -> str:
    """The colour of a variant in every picture; unknown ones by their place."""
    return VARIANT_COLOURS.get(variant, _SPARE_COLOURS[place % len(_SPARE_COLOURS)])


def task_colour(place: int) -> str:
    """The colour of the task at `place`; they repeat after 24."""
    return _TASK_COLOURS[place % len(_TASK_COLOURS)]


@contextmanager
def canvas(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of width x height inches, written to `path` as PNG at the end, whole or not at all."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout=LAYOUT)
        yield figure
        with writing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
