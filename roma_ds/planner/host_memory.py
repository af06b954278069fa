"""Host memory that a process may still take: what the machine has, and what limits leave of it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
FILES = {
    2: ("memory.max", "memory.current", ""),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
"""By version of control groups: the limit, what is used, and what names in memory.stat start with."""


def available_bytes(local_ranks: int) -> int:
    """Bytes that one of `local_ranks` processes may still take.

    The least of: what the machine has, `ulimit -v` and `ulimit -d` of this process, and the limits of its
    control group and of all that this one lies in, which the ranks share.
    """
    import psutil

    left: list[int] = [psutil.virtual_memory().available // local_ranks]
    taken = psutil.Process().memory_info()
    for kind, used in ((resource.RLIMIT_AS, taken.vms), (resource.RLIMIT_DATA, taken.data)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            left.append(limit - used)
    left += [room // local_ranks for room in _rooms()]
    return max(0, min(left))


def _rooms() -> Iterator[int]:
    """What each control group that bounds this process may still take."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        root = GROUPS / "memory" if controllers else GROUPS
        group = root / path.lstrip("/")
        # Within a container the path may be the host's, which is not there: its own group is then the root.
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (room := _room(folder, *FILES[version])) is not None:
                yield room


def _room(group: Path, limit: str, usage: str, prefix: str) -> int | None:
    """None where the group has no limit."""
    try:
        allowed = int((group / limit).read_text())
        used = int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Copies of files count as used, but give way: else who has read a large checkpoint seems to have nothing.
    cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return allowed - used + cached
