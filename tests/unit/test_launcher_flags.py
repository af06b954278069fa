"""The flags after `--`: hosts, ranks, the line that is run, and what other hosts are given."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from roma_ds.cli import deepspeed_line, launcher_flags, launching, mpirun_line
from roma_ds.cli.carried_variables import STARTS, carried, write_env_file
from roma_ds.cli.deepspeed_line import launch_line
from roma_ds.cli.launcher_flags import LOCAL, MPIRUN, NO_SSH, LauncherFlags, read_launcher_flags
from roma_ds.cli.text_file import plain_copy
from roma_ds.errors import UserError
from roma_ds.storage import TYPED


@pytest.fixture
def hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(launcher_flags, "DEFAULT_HOSTFILE", tmp_path / "none")
    path = tmp_path / "hostfile"
    path.write_text("# two racks\n\nnode0 slots=4\nnode1 slots=4\nnode2 slots=2\n")
    return str(path)


@pytest.mark.parametrize(
    ("given", "ranks", "kind", "hosts"),
    [
        ("", None, LOCAL, {}),
        ("--master_port=1234 --enable_each_rank_log logs", 2, LOCAL, {}),
        ("--hostfile {}", None, "pdsh", {"node0": 4, "node1": 4, "node2": 2}),
        ("-H {}", 1, "pdsh", {"node0": 1, "node1": 1, "node2": 1}),
        ("--hostfile={} --num_nodes 2", None, "pdsh", {"node0": 4, "node1": 4}),
        ("--hostfile {} --num_nodes=2 --num_gpus 3", None, "pdsh", {"node0": 3, "node1": 3}),
        ("--hostfile {} --num_nodes 1", None, "pdsh", {"node0": 4}),
        ("--hostfile {} --num_nodes 1 --force_multi", None, "pdsh", {"node0": 4}),
        ("--hostfile {} --include node1:0,2@node2", None, "pdsh", {"node1": 2, "node2": 2}),
        ("--hostfile {} -e node1@node0:3", None, "pdsh", {"node0": 3, "node2": 2}),
        ("--hostfile {} --launcher OpenMPI", None, "openmpi", {"node0": 4, "node1": 4, "node2": 2}),
        ("--hostfile {} --launcher mpirun", None, MPIRUN, {"node0": 4, "node1": 4, "node2": 2}),
        ("--hostfile {} --no_ssh --node_rank 2", None, NO_SSH, {"node0": 4, "node1": 4, "node2": 2}),
    ],
)
def test_what_flags_come_to(
    given: str, ranks: int | None, kind: str, hosts: dict[str, int], hostfile: str
) -> None:
    words = given.format(hostfile).split()
    flags = read_launcher_flags(words, ranks)
    assert (flags.kind, flags.hosts, list(flags.hosts)) == (kind, hosts, list(hosts))
    assert flags.world_size == (sum(hosts.values()) or None)
    assert flags.given == tuple(words), "passed on as they are"


@pytest.mark.parametrize(
    ("given", "ranks", "says", "fix"),
    [
        ("--hostfile nowhere", None, "the hostfile nowhere does not exist", "hostfile.example"),
        ("--launcher ssh", None, "--launcher ssh is unknown", "pdsh, openmpi"),
        ("--no_ssh", None, "--no_ssh needs a hostfile", "--hostfile FILE"),
        ("--num_nodes 2", None, "--num_nodes needs a hostfile", "--hostfile FILE"),
        ("--launcher openmpi", None, "--launcher openmpi needs a hostfile", "--hostfile FILE"),
        (
            "--hostfile {} --launcher openmpi",
            2,
            "takes the number of ranks from the slots",
            "leave out --ranks",
        ),
        ("--hostfile {} --launcher mpirun --num_nodes 2", None, "takes the number", "write the slots"),
        ("--hostfile {} -i node0 -e node1", None, "exclude each other", "one of them"),
        ("--hostfile {} -i node0", 2, "go with none of --ranks", "--include host:0,1"),
        ("--hostfile {} -i node7", None, "node7 is not in the hostfile", "node0, node1, node2"),
        ("--hostfile {} -e node0@node1@node2", None, "leaves no host", "node0, node1, node2"),
        ("--hostfile {} -i node2:0,x", None, "node2:0,x is not HOST:SLOT,SLOT", "commas"),
        ("--hostfile {} --num_gpus 3", 2, "--num_gpus 3 beside --ranks 2", "--ranks N"),
        ("--hostfile {} -i node2:5", None, "node2:5 is not in the hostfile", "node0, node1, node2"),
        ("--hostfile {} --no_ssh", None, "is not in", "--node_rank N"),
        ("--hostfile {} --no_ssh --launcher mpirun", None, "--no_ssh and --launcher mpirun", "leave out"),
        ("--hostfile {} --no_ssh --node_rank 3", None, "--node_rank 3 of 3 hosts", "count from 0"),
        ("--hostfile {} --num_nodes two", None, "invalid int value", "deepspeed --help"),
    ],
)
def test_mistakes_are_named(given: str, ranks: int | None, says: str, fix: str, hostfile: str) -> None:
    with pytest.raises(UserError) as caught:
        read_launcher_flags(given.format(hostfile).split(), ranks)
    assert says in caught.value.message
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("node0 slots=1\nnode0 slots=2\n", ":2: names a host twice"),
        ("node0\n", ":1: is not `NAME slots=RANKS`: node0"),
        ("node0 slots=0\n", ":1: is not"),
        ("node0 slots=2.5\n", ":1: is not"),
        ("node0 slots=8x\n", ":1: is not"),
        ("node0 slots=4 8\n", ":1: is not"),
        ("node0 slots=4 slots=8\n", ":1: is not"),
        ("# nothing\n", "names no host"),
    ],
)
def test_hostfiles_that_cannot_be_read(text: str, says: str, hostfile: str) -> None:
    Path(hostfile).write_text(text)
    with pytest.raises(UserError) as caught:
        read_launcher_flags(["--hostfile", hostfile])
    assert says in caught.value.message


def test_what_may_follow_the_slots(hostfile: str) -> None:
    Path(hostfile).write_text("node0 slots=4 # by the door\nnode1\tslots=2 max_slots=4\nnode2 slots=1  \n")
    assert read_launcher_flags(["--hostfile", hostfile]).hosts == {"node0": 4, "node1": 2, "node2": 1}


def test_hostfiles_that_are_no_text(hostfile: str, tmp_path: Path) -> None:
    Path(hostfile).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8 text") as caught:
        read_launcher_flags(["--hostfile", hostfile])
    assert hostfile in caught.value.message and caught.value.fix
    with pytest.raises(UserError, match="is a folder"):
        read_launcher_flags(["--hostfile", str(tmp_path)])


def test_variables_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / ".deepspeed_env").write_bytes(b"A=\xff\n")
    with pytest.raises(UserError, match=r"\.deepspeed_env cannot be read: it is not UTF-8 text"):
        carried({}, (tmp_path,))


def test_a_host_finds_its_place_by_its_name(hostfile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node1.cluster.local")
    assert read_launcher_flags(["--hostfile", hostfile, "--no_ssh"]).node_rank == 1


def line_of(given: str, ranks: int | None = None, *arguments: str, mark: str = "") -> list[str]:
    return launch_line(ranks, read_launcher_flags(given.split(), ranks), arguments, mark)


def test_lines(hostfile: str) -> None:
    local = line_of("", 2, "--config", "a.yaml")
    assert local[:3] == ["deepspeed", "--quiet", "--num_accelerators=2"]
    assert local[3].startswith("--master_port=")
    assert local[4:] == ["--module", "roma_ds.train", "--config", "a.yaml"]
    assert "--master_port=7" in line_of("--master_port=7", 2) and len(line_of("--master_port=7", 2)) == 6
    assert line_of(f"--hostfile {hostfile}") == [
        *("deepspeed", "--quiet", "--hostfile", hostfile, "--module", "roma_ds.train"),
    ]
    no_ssh = line_of(f"--hostfile {hostfile} --no_ssh --node_rank 1")
    assert no_ssh[2:4] == ["--master_addr=node0", "--node_rank=1"]
    slurm = line_of(f"--hostfile {hostfile} --launcher slurm", None, "--config", "a.yaml")
    assert slurm[-3:] == [str(deepspeed_line.SCRIPT), "--config", "a.yaml"] and "--module" not in slurm
    assert deepspeed_line.SCRIPT.is_file()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", socket.gethostname(), "here.cluster.local"])
def test_one_host_that_is_this_one_needs_no_ssh(
    name: str, hostfile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("here"):
        monkeypatch.setattr("socket.gethostname", lambda: "here")
    Path(hostfile).write_text(f"node1 slots=4\n{name} slots=2\n")
    flags = read_launcher_flags(["--hostfile", hostfile, "--exclude", "node1"])
    assert flags.kind == LOCAL and flags.hosts == {name: 2}
    line = launch_line(None, flags, [])
    assert {"--no_ssh_check", "--master_addr=127.0.0.1"} <= set(line) and "--force_multi" not in line


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi", "mpich", "slurm"])
def test_one_host_that_is_another_trains_there(launcher: str, hostfile: str) -> None:
    flags = read_launcher_flags(["--hostfile", hostfile, "-e", "node0@node2", "--launcher", launcher])
    assert (flags.kind, flags.hosts) == (launcher, {"node1": 4})
    assert "--force_multi" in launch_line(None, flags, [])


def test_a_byte_order_mark_is_no_part_of_a_name(hostfile: str) -> None:
    plain = Path(hostfile).read_bytes()
    assert plain_copy(Path(hostfile)) is None
    Path(hostfile).write_bytes(b"\xef\xbb\xbf" + plain)
    flags = read_launcher_flags(["--hostfile", hostfile])
    assert list(flags.hosts) == ["node0", "node1", "node2"]
    copy = plain_copy(Path(hostfile))
    assert copy is not None and copy.read_bytes() == plain
    copy.unlink()


@pytest.mark.parametrize(
    "word",
    ["plain", "data.train=[{path: a.jsonl}]", "a b", "$HOME `id`", 'say "a b"', "it's", "50%n", "x;y", "*"],
)
def test_words_arrive_through_pdsh_as_they_are(word: str, hostfile: str) -> None:
    """As deepspeed's PDSHRunner and then a shell on the other host treat them."""
    found = line_of(f"--hostfile {hostfile}", None, word)[-1]
    sent = '"{}"'.format(found.replace('"', '\\"')) if " " in found else found
    arrived = subprocess.run(
        ["sh", "-c", f"printf %s {sent.replace('%%', '%')}"], capture_output=True, text=True, check=True
    )
    assert arrived.stdout == word


def test_what_is_carried(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder, text in ((home, "A=home\nB=home\n"), (here, "# ours\n\nB=here = there\nPATH=/opt/bin\n")):
        folder.mkdir()
        (folder / ".deepspeed_env").write_text(text)
    environment = {"PATH": "/bin", "NCCL_DEBUG": "INFO", "DS_ACCELERATOR": "cpu", "SLURM_JOB_ID": "5"}
    found = carried(environment | {"SECRET": "x"}, (home, here))
    assert found == {
        "PATH": "/opt/bin",
        "NCCL_DEBUG": "INFO",
        "DS_ACCELERATOR": "cpu",
        "SLURM_JOB_ID": "5",
        "A": "home",
        "B": "here = there",
    }
    (here / ".deepspeed_env").write_text("A\n")
    with pytest.raises(UserError, match=r"\.deepspeed_env:1: 'A' is not NAME=VALUE"):
        carried(environment, (here,))


def test_the_file_for_the_launcher_holds_what_a_shell_gives_back() -> None:
    """The launcher puts values with special characters in double quotes, as deepspeed's add_export does."""
    value = "roma-ds run 'a b.yaml' \"c\" $HOME \\ `id`"
    file = write_env_file({"PLAIN": "/a:/b", "WORDS": value, "LINES": "a\nb"}, through_shell=True)
    lines = dict(line.split("=", 1) for line in file.read_text().splitlines())
    file.unlink()
    assert lines.keys() == {"PLAIN", "WORDS"}
    said = subprocess.run(
        ["bash", "-c", f'export WORDS="{lines["WORDS"]}"; printf %s "$WORDS"'], capture_output=True, text=True
    )
    assert said.stdout == value
    file = write_env_file({"PLAIN": "/a:/b", "WORDS": value}, through_shell=False)
    assert file.read_text() == "PLAIN=/a:/b\n"
    assert file.stat().st_mode & 0o077 == 0
    file.unlink()


def test_variables_that_a_launcher_cannot_carry_are_named(
    hostfile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith(STARTS)]:
        monkeypatch.delenv(name)
    for name in ("PATH", "PYTHONPATH", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.setenv(name, "/bin")
    monkeypatch.setattr(launching, "_TOOLS", "/bin")
    monkeypatch.setenv(TYPED, "roma-ds run 'a b.yaml'")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "^docker0,lo")
    (tmp_path / ".deepspeed_env").write_text("HF_HOME=/a b\nNCCL_DEBUG=INFO\n")

    def said_with(launcher: str) -> str:
        flags = read_launcher_flags(["--hostfile", hostfile, "--launcher", launcher])
        _, file = launching._environment_for(flags)
        if file is not None:
            file.unlink()
        return capsys.readouterr().err

    for launcher in ("openmpi", "mpich", "slurm"):
        said = said_with(launcher)
        assert f"--launcher {launcher} other hosts may not get NCCL_SOCKET_IFNAME, HF_HOME as" in said
        assert "--launcher mpirun carries" in said and said.count("\n") == 1 and TYPED not in said
    assert not said_with("pdsh") and not said_with(MPIRUN)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=eth0\n")
    assert "may not get NCCL_SOCKET_IFNAME as" in said_with("pdsh")


@pytest.mark.parametrize("about", ["mpirun (Open MPI) 5.0.11", "HYDRA build details:"])
def test_mpirun_lines(about: str, hostfile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mpirun"
    program.write_text(f"#!/bin/sh\necho '{about}'\n")
    program.chmod(0o755)
    given = ["--hostfile", hostfile, "--launcher", "mpirun", "--launcher_args=--map-by ppr:1:node"]
    (tmp_path / ".deepspeed_env").write_text("WANDB_API_KEY=hush\n")
    monkeypatch.chdir(tmp_path)
    environment = {"PATH": f"{tmp_path}{os.pathsep}/bin", "HF_HOME": "/hub", "HF_TOKEN": "hush"}
    line = mpirun_line.mpirun_line(read_launcher_flags(given), ["--config", "a.yaml"], environment)
    text = shlex.join(line)
    assert text.startswith("mpirun -n 10 ") and "--map-by ppr:1:node" in text
    assert "node0:4,node1:4,node2:2" in text
    assert text.endswith("-u -m roma_ds.train --config a.yaml")
    flag = "-x MASTER_ADDR=node0" if "Open MPI" in about else "-genv MASTER_ADDR node0"
    assert flag in text and "HF_HOME" in text
    assert "hush" not in text and environment["WANDB_API_KEY"] == "hush", "the line is printed"
    assert ("-x HF_TOKEN -x WANDB_API_KEY" in text) == ("Open MPI" in about)


def test_flags_of_the_first_host() -> None:
    assert LauncherFlags((), LOCAL, {}).first_host == "localhost"
    assert LauncherFlags((), "pdsh", {"b": 1, "a": 1}).first_host == "b"
