"""Start a script on ranks through the deepspeed launcher and read what each rank measured."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measured import read_records

from roma_ds.cli.launching import launcher_environment

HERE = Path(__file__).resolve().parent
SHOWN_LINES = 40


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def threads_of(ranks: int) -> int:
    """Cores for each of `ranks` ranks."""
    return max(1, (os.cpu_count() or 1) // ranks)


def launch(
    script: str,
    ranks: int,
    arguments: Sequence[str],
    out: Path,
    timeout: float = 3600.0,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Run `script` of this folder on `ranks` ranks, with `--out out`; returns the records of all ranks.

    threads: of a rank; by default its share of the cores.

    What they print goes to out/log.txt. Raises SystemExit with its end when a rank fails.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # accelerate would else give each rank all cores.
    environment = {**launcher_environment(), "OMP_NUM_THREADS": str(threads or threads_of(ranks))}
    line = [
        str(Path(sys.executable).parent / "deepspeed"),
        "--quiet",
        f"--num_accelerators={ranks}",
        f"--master_port={_free_port()}",
        str(HERE / script),
        "--out",
        str(out),
        *arguments,
    ]
    log = out / "log.txt"
    with open(log, "wb") as handle:
        handle.write((shlex.join(line) + "\n").encode())
        handle.flush()
        code = subprocess.run(
            line, env=environment, stdout=handle, stderr=subprocess.STDOUT, timeout=timeout, check=False
        ).returncode
    records = read_records(out)
    if code or len(records) != ranks:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
        raise SystemExit(f"{shlex.join(line)} ended with {code} and {len(records)} records:\n{tail}")
    return records
