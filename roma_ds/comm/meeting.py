"""Where ranks meet: the address and port of rank 0, from the launcher or from Slurm's list of nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, MutableMapping

from roma_ds.comm.ranks import Ranks
from roma_ds.errors import EnvironmentFault, UserError

PORT = 29500
"""Where nothing says otherwise, as torch and DeepSpeed have it."""
SLURM_PORTS = range(20000, 30000)
"""A Slurm job takes one of these by its number, so that two jobs on one node do not meet."""


def adopt_meeting(ranks: Ranks, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set MASTER_ADDR and MASTER_PORT where no launcher did; a process on its own needs neither.

    Raises UserError where the address cannot be found, EnvironmentFault where Slurm's list cannot be read.
    """
    if ranks.world_size == 1:
        return
    environment.setdefault("MASTER_ADDR", _address(ranks, environment))
    environment.setdefault("MASTER_PORT", str(_port(environment)))


def _address(ranks: Ranks, environment: Mapping[str, str]) -> str:
    if given := environment.get("MASTER_ADDR"):
        return given
    if ranks.local_world_size == ranks.world_size:
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if nodes:
        return next(expand_nodes(nodes))
    raise UserError(
        f"rank {ranks.rank} of {ranks.world_size} does not know where rank 0 is: MASTER_ADDR is not set",
        "name rank 0's host, the first of the hostfile: mpirun -x MASTER_ADDR=HOST (Open MPI), "
        "mpirun -genv MASTER_ADDR HOST (MPICH), or export MASTER_ADDR=HOST",
    )


def _port(environment: Mapping[str, str]) -> int:
    job = environment.get("SLURM_JOB_ID", "")
    return SLURM_PORTS[int(job) % len(SLURM_PORTS)] if job.isdigit() else PORT


def expand_nodes(text: str) -> Iterator[str]:
    """Names in Slurm's list of nodes: `gpu[01-03,7],login` gives gpu01, gpu02, gpu03, gpu7, login.

    Raises EnvironmentFault where the text is no such list.
    """
    name = r"(?:[^\[\],\s]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"
    if not re.fullmatch(f"{name}(?:,{name})*", text):
        raise EnvironmentFault(
            f"Slurm's list of nodes {text!r} cannot be read", "export MASTER_ADDR=HOST of rank 0"
        )
    for part in re.findall(name, text):
        yield from _expand(part)


def _expand(part: str) -> Iterator[str]:
    found = re.search(r"\[([^\]]*)\]", part)
    if found is None:
        yield part
        return
    before, after = part[: found.start()], part[found.end() :]
    for piece in found[1].split(","):
        first, _, last = piece.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield from _expand(f"{before}{number:0{len(first)}d}{after}")
