"""The settings of a training where its curves are: TensorBoard's HParams and text, W&B and Comet."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIX = ".settings"
SHOWN = ("train/loss", "train/task_loss", "train/accuracy", "train/successful", "eval/average")
"""Metrics that the table of HParams has a column for."""
Setting = bool | int | float | str


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    """Nested settings as `train.lr: 0.001`; lists and null as text."""
    found: dict[str, Setting] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def write_settings(folder: Path, settings: Mapping[str, Setting], texts: Mapping[str, str]) -> None:
    """Write `settings` for HParams and `texts` by tag into the event files of `folder`.

    Those of an earlier call are replaced.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"*tfevents*{SUFFIX}"):
        old.unlink()
    writer: Any = SummaryWriter(str(folder), filename_suffix=SUFFIX)
    # As a truth value, torch would write 1 or 0.
    shown = {name: str(v).lower() if isinstance(v, bool) else v for name, v in settings.items()}
    for summary in hparams(shown, dict.fromkeys(SHOWN, 0.0))[:2]:
        writer.file_writer.add_summary(summary)
    for tag, text in texts.items():
        # As Markdown, an indented block keeps its lines.
        writer.add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), 0)
    writer.close()


def tell_services(monitor: Any, settings: Mapping[str, Setting]) -> None:
    """Send `settings` to those of DeepSpeed's monitors that keep settings: W&B and Comet."""
    if getattr(monitor, "wandb_monitor", None) is not None:
        # DeepSpeed's monitor has imported it; it is no requirement of this package.
        sys.modules["wandb"].config.update(dict(settings), allow_val_change=True)
    comet = getattr(monitor, "comet_monitor", None)
    if comet is not None:
        comet.experiment.log_parameters(dict(settings))
