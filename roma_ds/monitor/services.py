"""CSV, W&B and Comet, where the DeepSpeed JSON switches them on: opened, and told what a run came to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from roma_ds.errors import EnvironmentFault
from roma_ds.monitor.run_folder import Run, read_run
from roma_ds.storage.atomic import read_json

SERVICES = ("csv_monitor", "wandb", "comet")
PACKAGES = {"wandb": "wandb", "comet": "comet_ml"}
"""What a section of the DeepSpeed JSON needs installed, on the host of rank 0."""


def _enabled(ds: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ds[name] for name in SERVICES if (ds.get(name) or {}).get("enabled")}


def check_services(ds: Mapping[str, Any]) -> None:
    """Raises EnvironmentFault where the package of an enabled service is not installed."""
    for name in _enabled(ds):
        package = PACKAGES.get(name)
        if package and find_spec(package) is None:
            raise EnvironmentFault(
                f"the DeepSpeed config enables {name}, and the package {package} is not installed",
                f"pip install {package}, or leave the section {name} out",
            )


def open_services(ds: Mapping[str, Any]) -> Any | None:
    """DeepSpeed's monitor of the enabled services, None without any. Rank 0 alone, in the process group.

    W&B and Comet take a later one in the same process for the same run, an engine's own among them.
    Raises EnvironmentFault where one of them does not start.
    """
    wanted = _enabled(ds)
    if not wanted:
        return None
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    try:
        return MonitorMaster(get_monitor_config(wanted))
    except Exception as error:  # each service has errors of its own: no key, no network, no such project
        raise EnvironmentFault(
            f"{' or '.join(wanted)} of the DeepSpeed config could not be started: {error}",
            "log in to the service (wandb login, comet login), work offline (WANDB_MODE=offline, comet: "
            '{"online": false}), or leave its section out',
        ) from error


def send_results(run_dir: Path) -> None:
    """Send `eval/VARIANT/average` and `eval/VARIANT/TASK` of every variant, at the last step of training.

    As `open_services`. Raises UserError when `run_dir` is no folder.
    """
    resolved = run_dir / "ds_config.resolved.json"
    monitor = open_services(read_json(resolved)) if resolved.exists() else None
    if monitor is not None:
        monitor.write_events(_events(read_run(run_dir)))


def close_services() -> None:
    """Let W&B and Comet send, or keep, the rest of what this process told them; where neither is, nothing."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()
    if "comet_ml" in sys.modules:
        sys.modules["comet_ml"].end()


def _events(run: Run) -> list[tuple[str, float, int]]:
    # W&B drops what comes at an earlier step than the last.
    step = run.last_step(next((name for name, records in run.metrics.items() if records), "roma"))
    found = []
    for name, variant in run.variants.items():
        tasks = {task: entry.get("accuracy") for task, entry in variant.result["tasks"].items()}
        for task, value in {"average": variant.result.get("average"), **tasks}.items():
            if value is not None:
                found.append((f"eval/{name}/{task}", float(value), step))
    return found
