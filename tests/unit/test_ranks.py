"""Which rank a process is, and where rank 0 is, from the variables of every launcher."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.comm.meeting import adopt_meeting, expand_nodes
from roma_ds.comm.ranks import Ranks, adopt_ranks, ranks_from
from roma_ds.errors import EnvironmentFault, UserError

Variables = dict[str, str]


def torch(rank: int, size: int, local: int = 0, local_size: int = 1, **more: str) -> Variables:
    found = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local, "LOCAL_SIZE": local_size}
    return {**{name: str(value) for name, value in found.items()}, **more}


def slurm(rank: int, size: int, local: int = 0, node: int = 0, per_node: str = "", **more: str) -> Variables:
    found = {
        "SLURM_JOB_ID": 1234567,
        "SLURM_STEP_ID": 0,
        "SLURM_PROCID": rank,
        "SLURM_NTASKS": size,
        "SLURM_LOCALID": local,
        "SLURM_NODEID": node,
        "SLURM_STEP_TASKS_PER_NODE": per_node,
    }
    return {**{name: str(value) for name, value in found.items()}, **more}


def open_mpi(rank: int, size: int, local: int = 0, local_size: int = 1) -> Variables:
    values = {"RANK": rank, "SIZE": size, "LOCAL_RANK": local, "LOCAL_SIZE": local_size}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in values.items()}


def mpich(rank: int, size: int, local: int = 0, local_size: int = 1) -> Variables:
    found = {"PMI_RANK": rank, "PMI_SIZE": size, "MPI_LOCALRANKID": local, "MPI_LOCALNRANKS": local_size}
    return {name: str(value) for name, value in found.items()}


NESTED = {"CROSS_RANK": "1", "CROSS_SIZE": "2"}
FOUND = {
    "alone": ({}, Ranks()),
    "deepspeed": (torch(5, 8, 1, 4), Ranks(5, 8, 1, 4)),
    "srun": (slurm(5, 7, 1, 2, "2(x3),1"), Ranks(5, 7, 1, 2)),
    "srun on the last node": (slurm(6, 7, 0, 3, "2(x3),1"), Ranks(6, 7, 0, 1)),
    "three names alone": (
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"},
        Ranks(1, 2, 1, 1),
    ),
    "fewer tasks than the job has": (slurm(0, 8, SLURM_STEP_NUM_TASKS="1"), Ranks(0, 1, 0, 1)),
    "a job's script": ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Ranks()),
    "Open MPI": (open_mpi(3, 4, 1, 2), Ranks(3, 4, 1, 2)),
    "MPICH": (mpich(3, 4, 1, 2), Ranks(3, 4, 1, 2)),
    "Slurm with PMI": (slurm(3, 4, 1) | {"PMI_RANK": "3", "PMI_SIZE": "4"}, Ranks(3, 4, 1, 1)),
    "DeepSpeed's runner of MPICH": (mpich(3, 4, 1, 2) | torch(3, 4, 1, 2), Ranks(3, 4, 1, 2)),
    "srun, a launcher on each node": (slurm(1, 2) | torch(5, 8, 1, 4, **NESTED), Ranks(5, 8, 1, 4)),
    "mpirun, torchrun on each node": (
        open_mpi(1, 2) | torch(5, 8, 1, 4, GROUP_RANK="1", GROUP_WORLD_SIZE="2"),
        Ranks(5, 8, 1, 4),
    ),
    "mpirun in a job, daemons by srun": (slurm(0, 1) | open_mpi(3, 4, 1, 2), Ranks(3, 4, 1, 2)),
    "torchrun within srun --pty": (
        slurm(0, 1) | torch(1, 2, 1, 2, GROUP_RANK="0", GROUP_WORLD_SIZE="1"),
        Ranks(1, 2, 1, 2),
    ),
    "a job that exports the size": (slurm(3, 4, 1) | {"WORLD_SIZE": "4"}, Ranks(3, 4, 1, 1)),
}


@pytest.mark.parametrize(("variables", "wanted"), FOUND.values(), ids=FOUND)
def test_found(variables: Variables, wanted: Ranks) -> None:
    assert ranks_from(variables) == wanted
    adopted = dict(variables)
    assert adopt_ranks(adopted) == wanted
    if wanted.world_size > 1:
        assert {name: adopted[name] for name in torch(0, 1)} == torch(
            wanted.rank, wanted.world_size, wanted.local_rank, wanted.local_world_size
        )
    else:
        assert adopted == variables
    assert ranks_from(adopted) == wanted, "found again from what was written"


CONTRADICTIONS = {
    "left over in a profile": (
        torch(0, 1) | slurm(2, 4, 2),
        "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0",
        "SLURM_PROCID=2",
    ),
    "another rank": (torch(1, 4, 1, 4) | slurm(2, 4, 2), "RANK=1", "SLURM_PROCID=2 SLURM_NTASKS=4"),
    "another local rank": (
        torch(2, 4, 2, 4) | open_mpi(2, 4, 0, 2),
        "LOCAL_RANK=2",
        "OMPI_COMM_WORLD_LOCAL_RANK=0",
    ),
    "a world in every task": (open_mpi(0, 1) | slurm(2, 4, 2), "OMPI_COMM_WORLD_SIZE=1", "SLURM_NTASKS=4"),
    "a launcher in every task": (
        torch(1, 2, 1, 2, CROSS_RANK="0", CROSS_SIZE="1") | mpich(3, 4, 3, 4),
        "WORLD_SIZE=2",
        "PMI_SIZE=4",
    ),
    "a launcher on another number of nodes": (
        torch(5, 8, 1, 4, CROSS_RANK="1", CROSS_SIZE="2") | slurm(1, 3),
        "WORLD_SIZE=8",
        "SLURM_NTASKS=3",
    ),
    "a part of the variables": (
        mpich(1, 4, 1, 4) | {"WORLD_SIZE": "8"},
        "WORLD_SIZE=8",
        "PMI_RANK=1 PMI_SIZE=4",
    ),
}


@pytest.mark.parametrize(("variables", "one", "other"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_named(variables: Variables, one: str, other: str) -> None:
    with pytest.raises(UserError) as caught:
        ranks_from(variables)
    assert one in caught.value.message and other in caught.value.message
    assert caught.value.exit_code == 2 and caught.value.fix and "unset" in caught.value.fix


@pytest.mark.parametrize(
    "variables",
    [
        {"PMI_RANK": "x", "PMI_SIZE": "2"},
        {"SLURM_PROCID": "4", "SLURM_NTASKS": "4"},
        torch(0, 2) | {"LOCAL_RANK": "zero"},
        slurm(0, 2, per_node="x"),
        slurm(0, 2, per_node="2(x", SLURM_NODEID="first"),
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "x"},
    ],
)
def test_variables_that_cannot_be(variables: Variables) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        ranks_from(variables)
    assert caught.value.fix


def test_deepspeeds_check_of_open_mpi_sees_the_rank_that_counts() -> None:
    variables = open_mpi(1, 2, 0, 1) | torch(5, 8, 1, 4, **NESTED)
    adopt_ranks(variables)
    assert variables["OMPI_COMM_WORLD_LOCAL_RANK"] == variables["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    ("variables", "ranks", "address", "port"),
    [
        ({"MASTER_ADDR": "n7", "MASTER_PORT": "1"}, Ranks(1, 2), "n7", "1"),
        ({"SLURM_JOB_ID": "1234567", "SLURM_STEP_NODELIST": "gpu[07-09]"}, Ranks(1, 2), "gpu07", "24567"),
        ({"SLURM_JOB_NODELIST": "a,b"}, Ranks(1, 2), "a", "29500"),
        ({}, Ranks(1, 2, 1, 2), "127.0.0.1", "29500"),
    ],
)
def test_where_rank_0_is(variables: Variables, ranks: Ranks, address: str, port: str) -> None:
    adopt_meeting(ranks, variables)
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == (address, port)


def test_the_address_is_asked_for_where_nothing_says_it() -> None:
    with pytest.raises(UserError) as caught:
        adopt_meeting(Ranks(1, 4, 1, 2), {})
    assert "MASTER_ADDR is not set" in caught.value.message
    assert "mpirun -x MASTER_ADDR=HOST" in str(caught.value.fix)
    alone: Variables = {}
    adopt_meeting(Ranks(), alone)
    assert not alone


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("rack[1-2]n[09-10]-ib", ["rack1n09-ib", "rack1n10-ib", "rack2n09-ib", "rack2n10-ib"]),
    ],
)
def test_slurms_list_of_nodes(text: str, names: list[str]) -> None:
    assert list(expand_nodes(text)) == names


@pytest.mark.parametrize("text", ["", "gpu[01", "gpu[]", "a b", "a,,b", "n[1-]"])
def test_no_list_of_nodes(text: str) -> None:
    with pytest.raises(EnvironmentFault):
        list(expand_nodes(text))


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=20), st.integers(1, 6))
def test_numbers_keep_their_zeros(numbers: list[int], width: int) -> None:
    names = [f"{number:0{width}d}" for number in numbers]
    assert list(expand_nodes(f"n[{','.join(names)}]")) == [f"n{name}" for name in names]
