"""torch's lock around a compiled extension, which a process that is killed meanwhile leaves there for good.

Whoever loads the extension later would wait for ever, in this run and in all that follow.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

LOOKS_EVERY_S = 0.1
LEFT_AFTER_S = 10.0
"""Waited for a lock that no process of this host holds: loading takes less than a second."""
LEFT_UNBUILT_AFTER_S = 900.0
"""The same where there is no library yet: another host may be compiling it."""


def outlive_killed_builders() -> None:
    """From now on this process takes away the lock of an extension that nobody builds any more."""
    from torch.utils.file_baton import FileBaton

    FileBaton.wait = _wait  # type: ignore[assignment]


def _wait(baton: Any) -> None:
    """In place of torch's: until the lock is gone, or left behind."""
    path, started = Path(baton.lock_file_path), time.monotonic()
    while path.exists():
        waited = time.monotonic() - started
        limit = LEFT_AFTER_S if any(path.parent.glob("*.so")) else LEFT_UNBUILT_AFTER_S
        if waited > limit and not is_held(path):
            path.unlink(missing_ok=True)
            return
        time.sleep(LOOKS_EVERY_S)


def is_held(path: Path) -> bool:
    """Whether a process of this host has the file open, as a builder has its lock."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return False
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            handles = list(folder.iterdir())
        except OSError:
            continue
        for handle in handles:
            try:
                found = os.stat(handle)
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False
