"""Accuracies of a finished run in CSV, W&B and Comet, where the DeepSpeed JSON switches them on."""

from __future__ import annotations

from pathlib import Path

from roma_ds.monitor.run_folder import Run, read_run
from roma_ds.storage.atomic import read_json

SERVICES = ("csv_monitor", "wandb", "comet")


def send_results(run_dir: Path) -> None:
    """Send `eval/VARIANT/average` and `eval/VARIANT/TASK` of every variant, at the last step of training.

    Through DeepSpeed's monitor, as the curves of training: in the same process W&B and Comet take them for
    the same run. Rank 0 alone; needs the process group. Raises UserError when `run_dir` is no folder.
    """
    resolved = run_dir / "ds_config.resolved.json"
    sections = read_json(resolved) if resolved.exists() else {}
    wanted = {name: sections[name] for name in SERVICES if sections.get(name, {}).get("enabled")}
    if not wanted:
        return
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    MonitorMaster(get_monitor_config(wanted)).write_events(_events(read_run(run_dir)))


def _events(run: Run) -> list[tuple[str, float, int]]:
    lines = run.metrics.get("roma") or next(iter(run.metrics.values()), [])
    # W&B drops what comes at an earlier step than the last.
    step = int(lines[-1]["step"]) if lines else 0
    found = []
    for name, variant in run.variants.items():
        tasks = {task: entry.get("accuracy") for task, entry in variant.result["tasks"].items()}
        for task, value in {"average": variant.result.get("average"), **tasks}.items():
            if value is not None:
                found.append((f"eval/{name}/{task}", float(value), step))
    return found
