"""Room on the disk of a run, asked before something is written there."""

from __future__ import annotations

import shutil
from pathlib import Path

from roma_ds.errors import EnvironmentFault


def free_bytes(folder: Path) -> int:
    """Free on the disk of `folder`, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def require_room(folder: Path, needed: int, reserve: int, what: str) -> None:
    """Raise EnvironmentFault unless `needed` bytes for `what` fit on the disk beside `reserve`."""
    free = free_bytes(folder)
    if needed + reserve > free:
        kept = f", of which {reserve:,} are to stay free" if reserve else ""
        raise EnvironmentFault(
            f"{what} needs {needed:,} bytes at {folder}, where {free:,} are free{kept}",
            "make room there and rerun the same command, use another output_dir, or lower guards.free_disk",
        )
