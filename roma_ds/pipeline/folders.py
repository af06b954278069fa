"""Where each stage of a run leaves its files."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from roma_ds.config import RunConfig, to_yaml
from roma_ds.storage import TYPED
from roma_ds.storage.atomic import make_folder, write_json, write_text
from roma_ds.storage.stage import StageRecord

PACKAGES = (
    "roma_ds",
    "torch",
    "deepspeed",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "datasets",
    "numpy",
    "safetensors",
)

RESOLVED = "config.resolved.yaml"


@dataclass(frozen=True)
class Folders:
    """A run directory."""

    root: Path
    places: Mapping[str, Path] = field(default_factory=dict)
    """Folders that lie elsewhere, because several runs of a study share them: of stages by name, of prefix
    caches as `collect/prefix` and `eval/prefix`, of the base model's evaluation as `eval/base`."""

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return self.places.get(name, self.root / name)

    def prefix(self, part: str) -> Path:
        """Folder of the prefix cache of `collect` or `eval`."""
        return self.places.get(f"{part}/prefix", self.stage(part) / "prefix")

    def evaluation(self, variant: str) -> Path:
        """Folder of the files that a variant's evaluation leaves."""
        return self.places.get(f"eval/{variant}", self.stage("eval"))

    def training(self, variant: str) -> Path:
        """Folder of one training: `train` for RoMA, `controls/NAME` for the others; `given` for a router file
        that was trained elsewhere."""
        own = {"roma": self.root / "train", "given": self.root / "given"}
        return own.get(variant, self.root / "controls" / variant)

    @property
    def is_described(self) -> bool:
        """Whether a run has written what it was made with."""
        return (self.root / RESOLVED).exists()

    def record(self, name: str) -> StageRecord:
        """Record of a stage that has a folder of its own."""
        return StageRecord(self.stage(name), name)

    def training_record(self, variant: str) -> StageRecord:
        """Record of one training."""
        folder = self.training(variant)
        return StageRecord(folder, folder.name)

    def evaluation_record(self, variant: str) -> StageRecord:
        """Record of one variant's evaluation."""
        return StageRecord(self.evaluation(variant), variant)


def installed() -> dict[str, str]:
    """Versions of the packages that decide results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_run(
    folders: Folders, run: RunConfig, ds: dict[str, Any], world_size: int, accelerator: str
) -> None:
    """Write the resolved configs and the environment into the run folder."""
    make_folder(folders.root)
    write_text(folders.root / RESOLVED, to_yaml(run))
    write_json(folders.root / "ds_config.resolved.json", ds)
    write_json(
        folders.root / "environment.json",
        {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "machine": platform.machine(),
            "accelerator": accelerator,
            "world_size": world_size,
            "packages": installed(),
            "commands": [os.environ.get(TYPED) or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])],
        },
    )
