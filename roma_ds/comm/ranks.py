"""Which rank this process is, from the variables that a launcher sets; a contradiction is an error.

Sources of the names: deepspeed's launcher/launch.py, torchrun, Slurm's srun, Open MPI's and MPICH's mpirun.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from roma_ds.errors import EnvironmentFault, UserError


@dataclass(frozen=True)
class Ranks:
    """Position of this process: `rank` of `world_size`, `local_rank` on its host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


@dataclass(frozen=True)
class Source:
    """A launcher and its variables; of several names for one number the first that is set counts."""

    name: str
    rank: tuple[str, ...]
    size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """What one source says, and in which words."""

    source: Source
    ranks: Ranks
    words: str
    knows_local: bool


TORCH = Source(
    "deepspeed or torchrun",
    ("RANK",),
    ("WORLD_SIZE",),
    ("LOCAL_RANK",),
    ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"),
)
OPEN_MPI = Source(
    "Open MPI",
    ("OMPI_COMM_WORLD_RANK",),
    ("OMPI_COMM_WORLD_SIZE",),
    ("OMPI_COMM_WORLD_LOCAL_RANK",),
    ("OMPI_COMM_WORLD_LOCAL_SIZE",),
)
MPICH = Source(
    "MPICH", ("PMI_RANK",), ("PMI_SIZE",), ("MPI_LOCALRANKID", "PALS_LOCAL_RANKID"), ("MPI_LOCALNRANKS",)
)
SLURM = Source("Slurm", ("SLURM_PROCID",), ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_LOCALID",))
SOURCES = (TORCH, OPEN_MPI, MPICH, SLURM)
"""Innermost first: a launcher further left is started by one further right, not the other way round."""

_NODES = (("CROSS_RANK", "CROSS_SIZE"), ("GROUP_RANK", "GROUP_WORLD_SIZE"))
"""What deepspeed and torchrun say about hosts: which one of how many."""
_START = "start through `roma-ds run --ranks N`, the deepspeed launcher, torchrun, srun or mpirun"


def set_by_launcher(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Those of deepspeed's and torchrun's variables that are set; in a shell they are left from something."""
    names = (*TORCH.rank, *TORCH.size, *TORCH.local_rank, *TORCH.local_size, *itertools.chain(*_NODES))
    return [name for name in names if name in environment]


def ranks_from(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Ranks from the variables of deepspeed, torchrun, Open MPI, MPICH or Slurm.

    With none of them set this is one process on its own, and so is a Slurm job's own script, which is no
    task of srun. Raises EnvironmentFault where variables are missing or no numbers, UserError where two
    sources contradict each other.
    """
    everything = [said for source in SOURCES if (said := _said_by(source, environment)) is not None]
    if not everything:
        given = [name for name in ("RANK", "WORLD_SIZE") if name in environment]
        if given:
            missing = {"RANK": "WORLD_SIZE", "WORLD_SIZE": "RANK"}[given[0]]
            raise EnvironmentFault(f"{given[0]} is set and {missing} is not", _START)
        return Ranks()
    inner = everything[0]
    for within, outer in itertools.pairwise(everything):
        _check(within, outer, environment)
    if inner.source is not TORCH:
        _check_single(inner, environment)
    local = next((said.ranks for said in everything if said.knows_local), inner.ranks)
    return Ranks(inner.ranks.rank, inner.ranks.world_size, local.local_rank, local.local_world_size)


def adopt_ranks(environment: MutableMapping[str, str] = os.environ) -> Ranks:
    """`ranks_from`, written back as the variables that torch and DeepSpeed read.

    A process on its own is left as it is.
    """
    ranks = ranks_from(environment)
    if ranks.world_size > 1:
        environment.update(
            RANK=str(ranks.rank),
            WORLD_SIZE=str(ranks.world_size),
            LOCAL_RANK=str(ranks.local_rank),
            LOCAL_SIZE=str(ranks.local_world_size),
        )
        if OPEN_MPI.local_rank[0] in environment:
            # DeepSpeed's engine refuses to start where this one differs, as it does in nested launches.
            environment[OPEN_MPI.local_rank[0]] = str(ranks.local_rank)
    return ranks


def _said_by(source: Source, environment: Mapping[str, str]) -> Said | None:
    """What `source` says; None where it started nothing here."""
    rank, size = _first(source.rank, environment), _first(source.size, environment)
    if rank is None or size is None:
        return None
    if source is SLURM and "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment:
        # A job's script has the variables of a task, and is none.
        return None
    local_rank, local_size = (_first(names, environment) for names in (source.local_rank, source.local_size))
    words = " ".join(f"{name}={environment[name]}" for name in (rank, size, local_rank) if name)
    try:
        found = Ranks(
            int(environment[rank]),
            int(environment[size]),
            int(environment[local_rank]) if local_rank else 0,
            int(environment[local_size]) if local_size else 1,
        )
    except ValueError as error:
        raise EnvironmentFault(f"{words} ({source.name}) must be numbers ({error})", _START) from error
    if not 0 <= found.rank < found.world_size:
        raise EnvironmentFault(f"{rank}={found.rank} does not lie below {size}={found.world_size}", _START)
    if source is SLURM:
        found = Ranks(found.rank, found.world_size, found.local_rank, _slurm_local_size(environment))
    return Said(source, found, words, local_rank is not None)


def _first(names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    return next((name for name in names if environment.get(name)), None)


def _slurm_local_size(environment: Mapping[str, str]) -> int:
    """Tasks on this node: `2(x3),1` means two on each of three nodes and one on the fourth."""
    counts: list[int] = []
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or ""
    node_text = environment.get("SLURM_NODEID") or "0"
    try:
        for part in filter(None, text.split(",")):
            tasks, _, times = part.partition("(x")
            counts += [int(tasks)] * int(times.rstrip(")") or 1)
        node = int(node_text)
    except ValueError as error:
        raise EnvironmentFault(
            f"Slurm's tasks per node, {text!r} on node {node_text!r}, cannot be read ({error})", _START
        ) from error
    return counts[node] if node < len(counts) else 1


def _check(inner: Said, outer: Said, environment: Mapping[str, str]) -> None:
    """Raises UserError unless both say the same, or `outer` started one `inner` launcher on each host."""
    mine, theirs = inner.ranks, outer.ranks
    same_place = (mine.rank, mine.world_size) == (theirs.rank, theirs.world_size)
    local_differs = inner.knows_local and outer.knows_local and mine.local_rank != theirs.local_rank
    if same_place and not local_differs:
        return
    if theirs.world_size <= mine.world_size:
        if inner.source is not TORCH and outer.source is SLURM and theirs.world_size < mine.world_size:
            # mpirun in a Slurm job starts one daemon a node through srun, whose variables its ranks inherit.
            return
        for rank, size in _NODES:
            if environment.get(rank) == str(theirs.rank) and environment.get(size) == str(theirs.world_size):
                return
    raise UserError(
        f"two launchers contradict each other: {inner.words} ({inner.source.name}), "
        f"but {outer.words} ({outer.source.name})",
        f"let one of them start the ranks: unset {' '.join(_names(inner))} "
        f"(set in a job script or profile?), or start without {outer.source.name}",
    )


def _names(said: Said) -> list[str]:
    return [word.partition("=")[0] for word in said.words.split()]


def _check_single(found: Said, environment: Mapping[str, str]) -> None:
    """Raises UserError where a job script set only some of torch's variables, and to other values."""
    for name, value in (("RANK", found.ranks.rank), ("WORLD_SIZE", found.ranks.world_size)):
        if environment.get(name, str(value)) != str(value):
            raise UserError(
                f"{name}={environment[name]} contradicts {found.words} ({found.source.name})",
                f"unset {name}: it is found from {found.source.name}'s variables",
            )
