"""Hosts are asked over ssh before anything is spent, with a stand-in for ssh."""

from __future__ import annotations

from pathlib import Path

import pytest

from roma_ds.cli import launcher_flags, reaching
from roma_ds.cli.deepspeed_line import launch_line
from roma_ds.cli.launcher_flags import LauncherFlags, read_launcher_flags
from roma_ds.cli.reaching import reach_hosts
from roma_ds.errors import EnvironmentFault

SSH = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *lost*) printf 'Warning: nothing\\nssh: connect to host lost: No route to host\\n' >&2; exit 255;;
  *late*) exec sleep 20;;
esac
echo 10.0.0.1 fe80::1
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setattr(launcher_flags, "DEFAULT_HOSTFILE", tmp_path / "none")
    for name, text in {
        "ssh": SSH.format(log=tmp_path / "log"),
        **dict.fromkeys(("pdsh", "mpirun", "ompi_info"), "#!/bin/sh\n"),
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "PDSH_SSH_ARGS_APPEND"):
        monkeypatch.delenv(name, raising=False)
    return folder


def flags_for(tmp_path: Path, hosts: str, *more: str) -> LauncherFlags:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host} slots=2\n" for host in hosts.split()))
    return read_launcher_flags(["--hostfile", str(hostfile), *more])


def test_all_that_answer(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-i 'my key'")
    flags = reach_hosts(flags_for(tmp_path, "a b", "--ssh_port", "2222"))
    line = launch_line(None, flags, [])
    assert "--master_addr=10.0.0.1" in line and "--no_ssh_check" in line
    asked = (tmp_path / "log").read_text().splitlines()
    assert len(asked) == 2 and all(
        "-i my key -o BatchMode=yes" in line and "-p 2222" in line for line in asked
    )
    named = launch_line(None, reach_hosts(flags_for(tmp_path, "a b", "--master_addr", "a-ib0")), [])
    assert [word for word in named if "a-ib0" in word or "master_addr" in word] == ["--master_addr", "a-ib0"]


@pytest.mark.parametrize(
    ("hosts", "more", "says", "fix"),
    [
        (
            "a lost",
            (),
            "host lost cannot be reached over ssh: ssh: connect to host lost: No",
            "--exclude lost",
        ),
        ("lost1 a lost2", (), "nor can lost2", "--exclude lost1@lost2"),
        ("a lost", ("--exclude", "a"), "host lost cannot", "ssh lost hostname"),
        ("lost", ("--force_multi",), "host lost cannot", "must need no password"),
        ("a late", (), "host late cannot be reached over ssh: no answer within 0.5 s", "--exclude late"),
        ("a lost", ("--launcher", "mpirun"), "host lost cannot", "--exclude lost"),
        ("a lost", ("--launcher", "openmpi"), "host lost cannot", "--exclude lost"),
    ],
)
def test_hosts_that_do_not_answer_are_named(
    hosts: str,
    more: tuple[str, ...],
    says: str,
    fix: str,
    tools: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "late" in hosts:
        monkeypatch.setattr(reaching, "ANSWERS_WITHIN_S", 0.5)
    with pytest.raises(EnvironmentFault) as caught:
        reach_hosts(flags_for(tmp_path, hosts, *more))
    assert says in caught.value.message
    assert fix in str(caught.value.fix)


def test_hosts_that_nothing_reaches_over_ssh_are_not_asked(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach_hosts(flags_for(tmp_path, "lost a", "--no_ssh", "--node_rank", "0"))
    reach_hosts(flags_for(tmp_path, "localhost"))
    reach_hosts(flags_for(tmp_path, "lost a", "--launcher", "mpirun", "--launcher_args=--mca plm slurm"))
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    reach_hosts(flags_for(tmp_path, "lost a", "--launcher", "mpirun"))
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("program", ["pdsh", "ssh"])
def test_programs_that_are_not_there(
    program: str, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tools / program).unlink()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(EnvironmentFault, match=f"{program}.* on the PATH"):
        reach_hosts(flags_for(tmp_path, "a b"))
