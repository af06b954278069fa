"""What a run prints: its facts first, a line a log step, the table at the end, the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.monitor.wording import byte_size, in_order, percent, variant_title


@dataclass(frozen=True)
class Banner:
    """Facts of a run, known before its first step."""

    model: str
    family: str
    moe_layers: int
    experts: int
    trainable: int
    """trainable parameters"""
    total: int
    """all parameters of the model"""
    zero_stage: int
    world_size: int
    dtype: str
    outputs: Path
    layers: Sequence[int] = ()
    """layers whose routers are trained; empty when not known yet"""
    runs: str = "all layers"
    """what of the network a step runs"""
    memory_bytes: int | None = None
    """estimated peak per rank, in bytes; None when there is no estimate"""
    prompts: str = ""
    """how prompts are written; empty where that is not told"""

    def render(self) -> str:
        """One aligned line a fact."""
        share = 100 * self.trainable / self.total if self.total else 0.0
        counts = f"trainable params: {self.trainable:,} || all params: {self.total:,}"
        shape = f"{self.moe_layers} MoE layers x {self.experts} experts"
        facts = [
            ("model", self.model),
            ("family", f"{self.family}, {shape}"),
            ("trained", f"routers of layers {_ranges(self.layers)}" if self.layers else "routers"),
            *([("prompts", self.prompts)] if self.prompts else []),
            ("each step", self.runs),
            ("parameters", f"{counts} || trainable%: {share:.4f}"),
            ("DeepSpeed", f"ZeRO stage {self.zero_stage}, {_plural(self.world_size, 'rank')}, {self.dtype}"),
            (
                "memory",
                "no estimate"
                if self.memory_bytes is None
                else f"about {byte_size(self.memory_bytes)} per rank",
            ),
            ("outputs", str(self.outputs)),
        ]
        width = max(len(name) for name, _ in facts)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


_COLUMNS: tuple[tuple[str, str, str], ...] = (
    # key in metrics.jsonl, label, format of the number
    ("loss", "loss", "8.4f"),
    ("task_loss", "task", "8.4f"),
    ("manifold_loss", "manifold", "8.4f"),
    ("lambda", "lambda", "5.2f"),
    ("grad_norm_task", "|g task|", "8.2e"),
    ("grad_norm_manifold", "|g man|", "8.2e"),
    ("lr", "lr", "7.1e"),
    ("accuracy", "acc", "5.1%"),
    ("tokens_per_second", "tok/s", "8,.0f"),
)


def log_line(record: Mapping[str, Any], total_steps: int | None = None) -> str:
    """One metrics.jsonl object as a line; equal widths from line to line, a dash for what is absent."""
    step = int(record.get("step", 0))
    place = f"{step:>{len(str(total_steps))}}/{total_steps}" if total_steps else f"{step:>6}"
    cells = [f"step {place}"]
    epoch = record.get("epoch")
    if epoch is not None:
        cells.append(f"epoch {float(epoch):5.2f}")
    for key, label, form in _COLUMNS:
        width = int(form.split(".")[0].rstrip(","))
        value = record.get(key)
        cells.append(f"{label} {'–' if value is None else format(float(value), form):>{width}}")
    return "  ".join(cells)


def summary_table(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """The variants of report.json or of eval/<variant>.json as an aligned table, accuracies in percent.

    `variants`: variant -> {"tasks": {task: {"n", "accuracy", "stderr", "majority_baseline"}}, "average"}.
    Beyond six tasks only the average is shown.
    """
    shown = [name for name in in_order(list(variants)) if variants[name].get("tasks")]
    tasks = list(dict.fromkeys(task for name in shown for task in variants[name]["tasks"]))
    columns = tasks if len(tasks) <= 6 else []
    base = variants.get("base", {}).get("average")
    rows = [["variant", "average", "to base", *columns]]
    for name in shown:
        entry = variants[name]
        average = entry.get("average")
        change = "" if name == "base" or base is None or average is None else f"{100 * (average - base):+.1f}"
        cells = [_accuracy(entry["tasks"].get(task)) for task in columns]
        rows.append([variant_title(name), percent(average), change, *cells])
    if columns:
        majority = [_majority(variants, shown, task) for task in columns]
        rows.append(["(majority answer)", "", "", *(percent(share) for share in majority)])
    return align(rows)


def next_commands(run_dir: Path) -> str:
    """What to type after a run: where the report is, and how to look at the curves."""
    return "\n".join(
        [
            f"report       {run_dir / 'report' / 'report.html'}",
            f"TensorBoard  tensorboard --logdir {shlex.quote(str(run_dir))}",
        ]
    )


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right, a rule under the head."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def _accuracy(task: Mapping[str, Any] | None) -> str:
    if task is None:
        return "–"
    error = task.get("stderr")
    return percent(task.get("accuracy")) + ("" if error is None else f" ±{100 * error:.1f}")


def _majority(variants: Mapping[str, Mapping[str, Any]], shown: Sequence[str], task: str) -> float | None:
    found = (variants[name]["tasks"].get(task, {}).get("majority_baseline") for name in shown)
    return next((share for share in found if share is not None), None)


def _ranges(layers: Sequence[int]) -> str:
    """[1, 2, 3, 5] -> 1-3, 5"""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
