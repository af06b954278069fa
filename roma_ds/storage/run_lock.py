"""A lock on a run folder, so that two runs never write into one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roma_ds.errors import UserError
from roma_ds.storage.atomic import make_folder

NAME = ".lock"


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "namespace": _namespace(),
        "pid": pid,
        "started": _started(pid),
        "slurm": _slurm_start(),
    }


def _slurm_start() -> list[str] | None:
    """Cluster and number of a Slurm job, and how often it was started anew; None outside of one."""
    names = {"SLURM_CLUSTER_NAME": "", "SLURM_JOB_ID": "", "SLURM_RESTART_COUNT": "0"}
    found = [os.environ.get(name, otherwise) for name, otherwise in names.items()]
    return found if found[1] else None


def _boot() -> str:
    """Changes when the host starts anew, after which no process of before is left."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    """Which process numbers this process sees: containers on one host each have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process of this host began, in the kernel's count; None where there is none of that number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lock is a process of this host that has ended, or of an earlier start of this
    Slurm job: Slurm ends all of a job before it starts it anew, perhaps on other hosts."""
    mine, theirs = _slurm_start(), holder.get("slurm")
    if mine and theirs and mine[:2] == theirs[:2] and mine != theirs:
        return True
    if holder["host"] != socket.gethostname():
        return False
    if holder["boot"] != _boot():
        return True
    return not _is_elsewhere(holder) and _started(int(holder["pid"])) != holder["started"]


def _is_elsewhere(holder: dict[str, Any]) -> bool:
    """Whether the holder is of another host, or of another container, whose processes cannot be seen here.

    Locks of earlier versions do not name their namespace.
    """
    return bool(
        holder["host"] != socket.gethostname() or holder.get("namespace", _namespace()) != _namespace()
    )


def holder_of(folder: Path) -> dict[str, Any] | None:
    """`host`, `pid`, `started` and `boot` of the process that holds the lock of `folder`; None without one.

    One of another host or container is taken at its word.
    """
    holder = _holder(folder / NAME)
    return None if holder is None or _is_dead(holder) else holder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`; one that a dead process of this host left behind is taken over.

    Raises UserError where another process holds it, naming its host and process.
    """
    path = make_folder(folder) / NAME
    mine = _this_process()
    _take(path, mine)
    try:
        yield
    finally:
        if _holder(path) == mine:
            path.unlink(missing_ok=True)


def _take(path: Path, mine: dict[str, Any]) -> None:
    # Written beside it and linked into place: whoever finds a lock finds all of it.
    # Containers may share the name of the host, and each has a process 1.
    space = "".join(filter(str.isdigit, mine["namespace"]))
    own = path.with_name(f"{NAME}.{mine['host']}.{space}.{mine['pid']}")
    own.write_text(json.dumps(mine))
    try:
        for _ in range(10):
            try:
                _name(own, path)
                return
            except FileExistsError:
                holder = _holder(path)
            if holder is not None and not _is_dead(holder):
                break
            _clear(path, holder, own)
    finally:
        own.unlink(missing_ok=True)
    raise _refusal(path, holder)


def _name(lock: Path, path: Path) -> None:
    """Let `path` hold what `lock` holds. Raises FileExistsError where it is there already."""
    try:
        os.link(lock, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links: for a moment the name is there and says nothing.
        with open(path, "x") as file:
            file.write(lock.read_text())


def _clear(path: Path, holder: dict[str, Any] | None, own: Path) -> None:
    """Remove the lock of a dead process, unless another run did so and holds the lock now."""
    aside = own.with_name(f"{own.name}.stale")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)
        if _holder(aside) != holder:
            with contextlib.suppress(FileExistsError):
                _name(aside, path)
        aside.unlink()


def _holder(path: Path) -> dict[str, Any] | None:
    """What a lock says; None where it is absent or not readable."""
    try:
        content = json.loads(path.read_text())
        return content if {"host", "boot", "pid", "started"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _refusal(path: Path, holder: dict[str, Any] | None) -> UserError:
    who = "another run" if holder is None else f"process {holder['pid']} on host {holder['host']}"
    fix = "wait for it, end it, or choose another output_dir"
    if holder is not None and _is_elsewhere(holder):
        if holder["host"] == socket.gethostname():
            who += ", in another container"
        age = _age(path)
        fix += f"; if it is gone (the lock is {age} old), delete {path}"
    return UserError(f"{path.parent} is in use by {who}", fix)


def _age(path: Path) -> str:
    try:
        minutes = (time.time() - path.stat().st_mtime) / 60
    except OSError:
        return "a moment"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
