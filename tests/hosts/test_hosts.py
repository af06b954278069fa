"""Several hosts in earnest: each way of starting ranks, a link that goes down, a host that dies, a signal.

Hosts are made of namespaces, which takes root; ssh and pdsh take their packages. What is lacking skips.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.projects import Finished, Project, largest_difference, none_left
from hosts import evidence
from hosts.cluster import (
    LOST_AFTER_S,
    MPICH,
    SHORTER,
    SSH_NOTICES_S,
    STEPS,
    Training,
    saved,
)
from hosts.namespaces import Hosts, why_no_hosts, why_no_pdsh, why_no_ssh

from roma_ds.testing.mpi_ranks import why_no_mpi

LIMITS = (f"guards.lost_after={LOST_AFTER_S:g}",)
SLACK_S = 30.0
"""For a loaded machine; the ends themselves take what they say."""

pytestmark = [pytest.mark.timeout(1200)]


def why_no_mpich() -> str | None:
    found = MPICH is not None and (Path(MPICH) / "mpiexec.hydra").exists()
    return None if found else "needs MPICH's programs in the folder that ROMA_DS_MPICH names"


LACKING: dict[str, Callable[[], str | None]] = {
    "pdsh": why_no_pdsh,
    "no_ssh": lambda: None,
    "mpirun": lambda: why_no_ssh() or why_no_mpi(),
    "openmpi": lambda: why_no_ssh() or why_no_mpi(),
    "mpirun of MPICH": lambda: why_no_ssh() or why_no_mpich(),
    "mpich": lambda: why_no_ssh() or why_no_mpich(),
}
References = Callable[..., Project]


Facts = dict[str, Any]
ALL = [*((way, stage, 2) for stage in (0, 3) for way in LACKING), ("no_ssh", 0, 3), ("pdsh", 3, 4)]
SOME = [("pdsh", 0, 2), ("no_ssh", 3, 2), ("mpirun", 0, 2)]


def message_of(done: Finished) -> list[str]:
    """What roma-ds told the user at its end."""
    lines = done.err.splitlines()
    first = next((place for place, line in enumerate(lines) if "roma-ds: " in line), len(lines))
    return [line for line in lines[first:] if "roma-ds: " in line or "fix: " in line]


def needs(way: str) -> None:
    if lacking := LACKING[way]():
        pytest.skip(lacking)


def ended_well(training: Training) -> list[Finished]:
    done = training.finish()
    assert [one.code for one in done] == [0] * len(done), done
    return done


@pytest.mark.parametrize(("way", "stage", "count"), ALL if evidence.wanted() else SOME)
def test_hosts_train_as_one(
    way: str, stage: int, count: int, project: Project, reference: References, tmp_path: Path, facts: Facts
) -> None:
    needs(way)
    there = project.copied(tmp_path / "out")
    more = () if evidence.wanted() else SHORTER
    with Hosts(count, ssh=why_no_ssh() is None) as hosts:
        started = time.monotonic()
        done = ended_well(Training(hosts, there, way, stage, count, more))
        seconds = time.monotonic() - started
    assert "$ " in done[0].out, "prints the line that it runs"
    difference = largest_difference(there.routers(), reference(stage, count, more).routers())
    facts["equal"].append(
        {
            "way": way,
            "zero_stage": stage,
            "hosts": count,
            "ranks": count,
            "steps": there.metrics()[-1]["step"],
            "largest_router_difference_to_one_host": difference,
            "seconds": round(seconds, 1),
        }
    )
    assert difference <= 1e-6


def test_a_link_that_goes_down_and_on_with_one_host(
    hosts: Hosts, project: Project, reference: References, tmp_path: Path, facts: Facts
) -> None:
    """Rank 1's host is cut off; both sides stop; what was saved goes on without that host."""
    needs("pdsh")
    there = project.copied(tmp_path / "out")
    training = Training(hosts, there, "pdsh", 0, more=LIMITS)
    training.reach(12)
    hosts.cut(1)
    cut = time.monotonic()
    [done] = training.finish(LOST_AFTER_S + SSH_NOTICES_S + SLACK_S)
    seconds = time.monotonic() - cut
    assert done.code == 1, done
    assert f"rank 1 (host node1) has not been heard of for {LOST_AFTER_S:g} s" in done.err, done
    assert "rerun the same command" in done.err and "Traceback" not in done.err, done
    while training.ranks_left(1):
        assert time.monotonic() - cut < LOST_AFTER_S + SLACK_S, "the host that was cut off stops as well"
        time.sleep(0.1)
    step = saved(there)
    assert 8 <= step < STEPS

    alone = Training(hosts, there, "pdsh", 0, count=1, more=("train.gradient_accumulation=2",))
    message = message_of(done)
    [done] = ended_well(alone)
    assert f"resumed after step {step} of {STEPS}" in done.out, done
    difference = largest_difference(there.routers(), reference(0).routers())
    facts["losses"].append(
        {
            "what": "link of rank 1's host down",
            "way": "pdsh",
            "zero_stage": 0,
            "guards.lost_after": LOST_AFTER_S,
            "ssh_notices_after": SSH_NOTICES_S,
            "seconds_until_the_command_ended": round(seconds, 1),
            "exit_code": 1,
            "message": message,
            "resumed_with_hosts": 1,
            "resumed_after_step": step,
            "largest_router_difference_to_no_loss": difference,
        }
    )
    assert difference <= 1e-6


@evidence.in_full_alone()
def test_a_host_that_dies_and_comes_back(
    hosts: Hosts, project: Project, reference: References, tmp_path: Path, facts: Facts
) -> None:
    """All processes of rank 1's host are killed; the first host stops; the same commands go on."""
    there = project.copied(tmp_path / "out")
    training = Training(hosts, there, "no_ssh", 3, more=LIMITS)
    training.reach(12)
    hosts.kill(1)
    killed = time.monotonic()
    first, other = training.finish(SLACK_S + 20)
    seconds = time.monotonic() - killed
    assert first.code in (1, 3) and other.code != 0, (first, other)
    assert "rank 1 (host node1)" in first.err and "rerun the same command" in first.err, first
    assert "Traceback" not in first.err, first
    step = saved(there)
    assert 8 <= step < STEPS

    hosts.start(1)
    again = Training(hosts, there, "no_ssh", 3, more=LIMITS)
    done = ended_well(again)
    assert f"resumed after step {step} of {STEPS}" in done[0].out, done[0]
    difference = largest_difference(there.routers(), reference(3).routers())
    facts["losses"].append(
        {
            "what": "all processes of rank 1's host killed",
            "way": "no_ssh",
            "zero_stage": 3,
            "guards.lost_after": LOST_AFTER_S,
            "seconds_until_the_command_ended": round(seconds, 1),
            "exit_code": first.code,
            "message": message_of(first),
            "resumed_with_hosts": 2,
            "resumed_after_step": step,
            "largest_router_difference_to_no_loss": difference,
        }
    )
    assert difference <= 1e-6


@evidence.in_full_alone()
def test_a_signal_reaches_the_ranks_on_all_hosts(
    hosts: Hosts, project: Project, tmp_path: Path, facts: Facts
) -> None:
    needs("pdsh")
    there = project.copied(tmp_path / "out")
    training = Training(hosts, there, "pdsh", 0, more=("train.epochs=400",))
    training.reach(4)
    training.signal(signal.SIGTERM)
    sent = time.monotonic()
    [done] = training.finish(60)
    seconds = time.monotonic() - sent
    assert done.code == 143, done
    assert "which is saved" in done.err and "Traceback" not in done.err, done
    assert not training.ranks_left(0) and not training.ranks_left(1)
    assert saved(there) >= 4
    facts["signals"].append(
        {"signal": "SIGTERM", "way": "pdsh", "exit_code": 143, "seconds": round(seconds, 1)}
    )


def test_the_machine_is_left_as_it_was() -> None:
    """No link, mount, process or key outlives the hosts, and links and mounts do not show even before."""
    settings = [path for path in (Path("/etc/ssh"), Path("~/.ssh").expanduser()) if path.is_dir()]
    times = {path: path.stat().st_mtime_ns for folder in settings for path in folder.rglob("*")}
    with Hosts(3, ssh=why_no_ssh() is None) as made:
        folder = made.folder
        processes = [process for number in range(3) for process in made.processes(number)]
        assert len(processes) >= 3 and folder.is_dir()
        links = Path("/proc/net/dev").read_text()
        assert not [name for name in ("bridge0:", "port0:", "far0:") if name in links]
        assert str(folder) not in Path("/proc/mounts").read_text()
    none_left(processes)
    assert {path: path.stat().st_mtime_ns for folder in settings for path in folder.rglob("*")} == times
    assert not folder.exists()


def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **given: None)
    assert "needs ssh, ssh-keygen, sshd: apt install openssh-server" in str(why_no_ssh.__wrapped__())
    assert "needs the program unshare" in str(why_no_hosts.__wrapped__())
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert why_no_hosts.__wrapped__() == "making hosts needs root"
