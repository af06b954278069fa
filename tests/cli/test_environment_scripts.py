"""launch/environment.sh with a stand-in Python whose pip only writes down what it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Makes "environments" that hold a copy of itself; real Python answers everything but venv and pip.
STAND_IN = """#!/bin/bash
case "$1 $2" in
  *ShareMemCommBuilder*) echo "compile in $TORCH_EXTENSIONS_DIR" >>"{log}"; [ ! -e "{fail} to compile" ] ;;
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg" ;;
  "-m pip") echo "${{@:3}}" >>"{log}"; [ "$3" != install ] || [ ! -e "{fail}" ] ;;
  *) exec "{python}" "$@" ;;
esac
"""
TOOLS = "bash cat cksum cp dirname env find flock grep ln ls mkdir mv paste rm sed sort touch tr".split()


@dataclass
class Machine:
    """A copy of the scripts, and a PATH of a few tools."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.repo = self.folder / "clone"
        (self.repo / "launch").mkdir(parents=True)
        shutil.copy(ROOT / "launch" / "environment.sh", self.repo / "launch")
        for name in ("setup.py", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.repo)
        self.log, self.fail = self.folder / "pip.log", self.folder / "pip fails"
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.add("python3", STAND_IN.format(log=self.log, fail=self.fail, python=sys.executable))
        self.add("c++", "#!/bin/bash\n")
        self.venv = self.repo / ".venv"

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def use(
        self, extras: str = "cpu,demo", then: str = "true", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        script = self.repo / "launch" / "environment.sh"
        return subprocess.run(
            ["bash", "-uc", f'source "{script}"; use_environment {extras}; {then}'],
            cwd=self.folder,
            env={"PATH": str(self.bin), "HOME": str(self.folder), **self.variables, **variables},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def installs(self) -> list[str]:
        """The extras of every installation so far."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.rsplit("[", 1)[1].rstrip("]") for line in lines if line.startswith("install")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_installs_once(machine: Machine) -> None:
    assert machine.use().returncode == 0
    again = machine.use(then='echo "$PATH|$VIRTUAL_ENV|${DS_ACCELERATOR:-}|$PYTHONNOUSERSITE"')
    assert machine.installs() == ["cpu,demo"]
    path, active, accelerator, isolated = again.stdout.strip().split("|")
    assert path.startswith(f"{machine.venv}/bin:") and active == str(machine.venv)
    assert isolated == "1"
    if not Path("/dev/kfd").exists():
        assert accelerator == "cpu"
    assert "-c constraints.txt -e .[cpu,demo]" in machine.log.read_text()


def test_extras_add_up_and_alternating_installs_nothing(machine: Machine) -> None:
    for extras in ("cpu,demo", "cpu,demo,mpi,dev", "cpu,demo", "cpu,demo,mpi,dev"):
        assert machine.use(extras).returncode == 0
    assert machine.installs() == ["cpu,demo", "cpu,demo,dev,mpi"]


def test_gpu_takes_the_place_of_cpu_and_back(machine: Machine) -> None:
    machine.use()
    machine.use(ROMA_DS_FAISS="gpu")
    machine.use()
    assert machine.installs() == ["cpu,demo", "demo,gpu", "cpu,demo"]
    removed = [
        line.split()[-1] for line in machine.log.read_text().splitlines() if line.startswith("uninstall")
    ]
    assert removed == ["faiss-gpu-cu12", "faiss-cpu", "faiss-gpu-cu12"]


@pytest.mark.parametrize("name", ["setup.py", "constraints.txt", "pyproject.toml"])
def test_a_changed_file_installs_again_into_the_same_environment(machine: Machine, name: str) -> None:
    machine.use()
    (machine.venv / "kept").touch()
    with (machine.repo / name).open("a") as file:
        file.write("# changed\n")
    machine.use()
    assert machine.installs() == ["cpu,demo", "cpu,demo"]
    assert (machine.venv / "kept").exists()


def test_a_failed_installation_is_reported_and_made_anew(machine: Machine) -> None:
    machine.fail.touch()
    failed = machine.use(then="echo reached")
    assert failed.returncode == 3 and "fix:" in failed.stderr and not failed.stdout
    (machine.venv / "half made").touch()
    machine.fail.unlink()
    assert machine.use().returncode == 0
    assert not (machine.venv / "half made").exists()
    machine.use()
    assert len(machine.installs()) == 2


def test_a_moved_clone_is_made_anew(machine: Machine) -> None:
    machine.use()
    (machine.venv / "old").touch()
    moved = machine.repo.rename(machine.folder / "moved")
    machine.repo, machine.venv = moved, moved / ".venv"
    assert machine.use().returncode == 0
    assert len(machine.installs()) == 2 and not (machine.venv / "old").exists()


def test_a_folder_of_the_user_is_never_emptied(machine: Machine) -> None:
    theirs = machine.folder / "theirs"
    theirs.mkdir()
    (theirs / "thesis").touch()
    refused = machine.use(ROMA_DS_VENV=str(theirs))
    assert refused.returncode == 3 and "ROMA_DS_VENV" in refused.stderr
    assert (theirs / "thesis").exists() and not machine.installs()


def test_an_environment_of_the_user_is_installed_into(machine: Machine) -> None:
    subprocess.run([machine.bin / "python3", "-m", "venv", machine.folder / "own-env"], check=True)
    (machine.folder / "own-env" / "kept").touch()
    assert machine.use(ROMA_DS_VENV="own-env").returncode == 0
    assert machine.installs() == ["cpu,demo"] and (machine.folder / "own-env" / "kept").exists()


def test_below_a_folder_with_a_space_the_environment_is_a_link(machine: Machine) -> None:
    machine.repo = machine.repo.rename(machine.folder / "a clone")
    for _ in range(2):
        answer = machine.use(then='echo "$VIRTUAL_ENV"')
        assert answer.returncode == 0, answer.stderr
    active = Path(answer.stdout.strip())
    assert active.is_relative_to(machine.folder / ".cache") and " " not in active.name
    assert (machine.repo / ".venv").resolve() == active
    assert machine.installs() == ["cpu,demo"]
    assert machine.use(XDG_CACHE_HOME=str(machine.folder / "a cache")).returncode == 3


def test_the_extension_is_compiled_on_cpu_only(machine: Machine) -> None:
    machine.use(DS_ACCELERATOR="cuda")
    assert "compile" not in machine.log.read_text()
    (machine.repo / "setup.py").write_text("# changed\n")
    machine.use(DS_ACCELERATOR="cpu")
    assert f"compile in {machine.venv}/torch_extensions\n" in machine.log.read_text()


def test_an_extension_that_does_not_compile_ends_with_exit_code_3(machine: Machine) -> None:
    broken = Path(f"{machine.fail} to compile")
    broken.touch()
    answer = machine.use(DS_ACCELERATOR="cpu", then="echo reached")
    assert answer.returncode == 3 and "does not compile" in answer.stderr and not answer.stdout
    broken.unlink()
    assert machine.use(DS_ACCELERATOR="cpu").returncode == 0


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (["python3"], "no Python 3.11"),
        (["c++"], "no C++ compiler"),
    ],
)
def test_what_is_missing_is_named_with_exit_code_3(machine: Machine, broken: list[str], says: str) -> None:
    for name in broken:
        (machine.bin / name).unlink()
    answer = machine.use(then="echo reached")
    assert answer.returncode == 3, answer.stderr
    assert says in answer.stderr and "fix:" in answer.stderr and not answer.stdout
    assert not machine.installs()


def test_a_named_python_that_does_not_work_is_refused(machine: Machine) -> None:
    answer = machine.use(ROMA_DS_PYTHON="/no/such/python")
    assert answer.returncode == 3 and "ROMA_DS_PYTHON" in answer.stderr


def test_another_compiler_is_passed_on(machine: Machine) -> None:
    (machine.bin / "c++").rename(machine.bin / "g++")
    assert machine.use(then='echo "$CXX"').stdout.strip() == "g++"


def test_an_unknown_faiss_is_the_users_mistake(machine: Machine) -> None:
    answer = machine.use(ROMA_DS_FAISS="tpu")
    assert answer.returncode == 2 and "fix:" in answer.stderr


def test_an_extra_index_for_torch_reaches_pip(machine: Machine) -> None:
    machine.use(ROMA_DS_TORCH_INDEX="https://mirror.invalid/cpu")
    assert "--extra-index-url https://mirror.invalid/cpu" in machine.log.read_text()


def test_two_at_once_install_once(machine: Machine) -> None:
    if not shutil.which("flock"):
        pytest.skip("no flock on this machine")
    script = machine.repo / "launch" / "environment.sh"
    both = [
        subprocess.Popen(
            ["bash", "-uc", f'source "{script}"; use_environment cpu,demo'],
            env={"PATH": str(machine.bin), "HOME": os.environ.get("HOME", "/")},
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert machine.installs() == ["cpu,demo"]
