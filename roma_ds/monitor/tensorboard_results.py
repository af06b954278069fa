"""What a finished run found, beside the curves of its training in TensorBoard: accuracies and projector."""

from __future__ import annotations

from pathlib import Path

from roma_ds.monitor.run_folder import read_run
from roma_ds.monitor.tensorboard_projector import add_projections
from roma_ds.storage.atomic import read_json

SUFFIX = ".results"


def add_results(run_dir: Path) -> list[str]:
    """Write accuracies of every variant and the projector's point clouds; names of the latter.

    `eval/average` and `eval/TASK` beside the curves of the variant's training, at its last step; those of the
    base model beside RoMA's under `base/`, at step 0. Nothing is written where there are no curves. Raises
    UserError when `run_dir` is no folder.
    """
    run = read_run(run_dir)
    resolved = run_dir / "ds_config.resolved.json"
    if resolved.exists() and not read_json(resolved).get("tensorboard", {}).get("enabled", True):
        return []
    board = run_dir / "train" / "tensorboard"
    for name, variant in run.variants.items():
        own = name not in ("base", "roma")
        folder = run_dir / "controls" / name / "tensorboard" if own else board
        if folder.is_dir():
            tasks = {task: entry.get("accuracy") for task, entry in variant.result["tasks"].items()}
            values = {"average": variant.result.get("average"), **tasks}
            _write(folder, f"{'base/' if name == 'base' else ''}eval", name, values, run.last_step(name))
    return add_projections(run, board) if board.is_dir() else []


def _write(folder: Path, prefix: str, variant: str, values: dict[str, float | None], step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    suffix = f".{variant}{SUFFIX}"
    for old in folder.glob(f"*tfevents*{suffix}"):
        old.unlink()
    writer = SummaryWriter(str(folder), filename_suffix=suffix)
    for name, value in values.items():
        if value is not None:
            writer.add_scalar(f"{prefix}/{name}", value, step)
    writer.close()
