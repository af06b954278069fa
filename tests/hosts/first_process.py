"""The first process of a pretended host: its name, its own /run and /dev/shm, sshd, and the care of orphans.

`python first_process.py FOLDER NAME SSHD`: FOLDER holds what namespaces.py wrote; SSHD is a path, or nothing.
Started in namespaces of its own for mounts, names, processes and network; when it dies, all on the host die.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _own_files(folder: Path) -> None:
    """Put this cluster's files over the machine's, seen by this host alone."""
    _mount("--bind", str(folder / "hosts"), "/etc/hosts")
    for place in ("/run", "/dev/shm"):
        _mount("-t", "tmpfs", "tmpfs", place)
    Path("/run/sshd").mkdir(mode=0o755)
    if (folder / "ssh_config").exists():
        _mount("--bind", str(folder / "ssh_config"), "/etc/ssh/ssh_config")
        settings = Path("~/.ssh").expanduser()
        if settings.is_dir():
            _mount("-t", "tmpfs", "tmpfs", str(settings))


def main(folder: Path, name: str, sshd: str) -> None:
    """Set the host up, say so by a file, and take in orphans until the end."""
    subprocess.run(["hostname", name], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    _own_files(folder)
    if sshd:
        subprocess.run(
            [sshd, "-f", str(folder / "sshd_config"), "-E", str(folder / f"sshd-{name}.log")], check=True
        )
    (folder / f"{name}.up").touch()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4])
