"""The scripts in launch/ with stand-ins for what they run: which line, printed first, and its exit code."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from roma_ds.cli.carried_variables import carried
from roma_ds.cli.launcher_flags import read_hostfile, read_launcher_flags
from roma_ds.cli.parser import build_parser, split_launcher_flags
from roma_ds.pipeline.worker import build_worker_parser

ROOT = Path(__file__).resolve().parents[2]
HOSTFILE = "launch/hostfile.example"
LINES = {
    "single_node.sh a.yaml": "roma-ds run a.yaml",
    "single_node.sh a.yaml --ranks 2 roma.lambda=0 -- --master_port 7": (
        "roma-ds run a.yaml --ranks 2 roma.lambda=0 -- --master_port 7"
    ),
    f"multi_node.sh {HOSTFILE} a.yaml": f"roma-ds run a.yaml -- --hostfile {HOSTFILE}",
    f"multi_node.sh {HOSTFILE} a.yaml -- --ssh_port 22": (
        f"roma-ds run a.yaml -- --ssh_port 22 --hostfile {HOSTFILE}"
    ),
    f"multi_node.sh --no_ssh {HOSTFILE} a.yaml -- --node_rank 1": (
        f"roma-ds run a.yaml -- --node_rank 1 --hostfile {HOSTFILE} --no_ssh"
    ),
    f"openmpi.sh {HOSTFILE} a.yaml": f"roma-ds run a.yaml -- --hostfile {HOSTFILE} --launcher mpirun",
    f"openmpi.sh --deepspeed {HOSTFILE} a.yaml": (
        f"roma-ds run a.yaml -- --hostfile {HOSTFILE} --launcher openmpi"
    ),
    f"mpich.sh {HOSTFILE} a.yaml": f"roma-ds run a.yaml -- --hostfile {HOSTFILE} --launcher mpirun",
    f"mpich.sh --deepspeed {HOSTFILE} a.yaml": (
        f"roma-ds run a.yaml -- --hostfile {HOSTFILE} --launcher mpich"
    ),
    "slurm.sbatch a.yaml roma.lambda=0": (
        "srun --kill-on-bad-exit=0 python -u -m roma_ds.train --config a.yaml --until report roma.lambda=0"
    ),
    "cpu_smoke.sh --seed 1": (
        "roma-ds demo --out runs/cpu_smoke --ranks 2 --zero-stage 0 --seed 1 train.epochs=1 'controls=[]'"
    ),
}


def run_script(
    line: str,
    folder: Path,
    code: int = 0,
    programs: str = "roma-ds srun",
    submitted_in: Path | None = ROOT,
) -> subprocess.CompletedProcess[str]:
    """A script of launch/ where roma-ds and srun only print their words."""
    for name in programs.split():
        program = folder / name
        program.write_text(f'#!/bin/bash\nprintf "%q " ran {name} "$@"\necho\nexit {code}\n')
        program.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(submitted_in)} if submitted_in else {}
    return subprocess.run(
        ["bash", f"launch/{line.split()[0]}", *line.split()[1:]],
        cwd=ROOT,
        env={"PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin", **slurm},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("line", "wanted"), LINES.items(), ids=LINES)
def test_line(line: str, wanted: str, tmp_path: Path) -> None:
    done = run_script(line, tmp_path, code=7)
    assert done.returncode == 7, done
    printed, ran = done.stdout.splitlines()
    assert shlex.split(printed) == ["$", *shlex.split(wanted)]
    assert shlex.split(ran) == ["ran", *shlex.split(wanted)]
    words = shlex.split(wanted)
    if words[0] == "roma-ds":
        given, flags = split_launcher_flags(words[1:])
        build_parser().parse_args(given)
        assert read_launcher_flags([*flags, *(["--node_rank", "0"] if "--no_ssh" in flags else [])])
    else:
        build_worker_parser().parse_intermixed_args(words[words.index("roma_ds.train") + 1 :])


@pytest.mark.parametrize("line", ["single_node.sh a.yaml", "slurm.sbatch a.yaml", "cpu_smoke.sh"])
def test_a_signal_to_a_script_reaches_what_it_runs(line: str, tmp_path: Path) -> None:
    for name in ("roma-ds", "srun"):
        program = tmp_path / name
        program.write_text(
            "#!/bin/bash\ntrap 'echo stopped; exit 143' TERM\necho ready\n"
            "for turn in {1..100}; do sleep 0.1; done\n"
        )
        program.chmod(0o755)
    script = subprocess.Popen(
        ["bash", f"launch/{line.split()[0]}", *line.split()[1:]],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin", "SLURM_SUBMIT_DIR": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert script.stdout is not None
    assert script.stdout.readline().startswith("$ ") and script.stdout.readline() == "ready\n"
    script.terminate()
    said, _ = script.communicate(timeout=60)
    assert (said, script.returncode) == ("stopped\n", 143)


@pytest.mark.parametrize("script", sorted({line.split()[0] for line in LINES} - {"cpu_smoke.sh"}))
def test_without_arguments_a_script_says_what_it_takes(script: str, tmp_path: Path) -> None:
    done = run_script(script, tmp_path)
    assert done.returncode == 2 and not done.stdout, done
    assert f"launch/{script}" in done.stderr and "RUN.yaml" in done.stderr and "#" not in done.stderr
    assert "SBATCH" not in done.stderr


def test_the_script_of_a_job_outside_of_one_or_of_the_repository(tmp_path: Path) -> None:
    alone = run_script("slurm.sbatch a.yaml", tmp_path, submitted_in=None)
    assert alone.returncode == 2 and not alone.stdout, alone
    assert "the script of a Slurm job" in alone.stderr and "fix: sbatch launch/slurm.sbatch" in alone.stderr
    elsewhere = run_script("slurm.sbatch a.yaml", tmp_path, submitted_in=tmp_path)
    assert elsewhere.returncode == 2 and not elsewhere.stdout, elsewhere
    assert f"{tmp_path} is not it" in elsewhere.stderr and "ROMA_DS_ROOT" in elsewhere.stderr
    assert all("line " not in done.stderr for done in (alone, elsewhere)), "nothing of bash itself"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    done = run_script("single_node.sh a.yaml", tmp_path, programs="")
    assert done.returncode == 3, done
    assert "roma-ds is not on the PATH" in done.stderr and "fix: source .venv/bin/activate" in done.stderr


def test_every_script_is_tested() -> None:
    scripts = {path.name for path in (ROOT / "launch").glob("*.s*")}
    others = {"environment.sh", "run_line.sh", "quickstart.sh", "test.sh"}
    assert scripts - others == {line.split()[0] for line in LINES}


def test_the_examples_can_be_read(tmp_path: Path) -> None:
    assert read_hostfile(ROOT / HOSTFILE) == {"worker-0": 8, "worker-1": 8}
    text = (ROOT / "launch" / "deepspeed_env.example").read_text()
    assert all(line.count("=") == 1 for line in text.splitlines()), (
        "as the deepspeed launcher itself reads it"
    )
    (tmp_path / ".deepspeed_env").write_text(text)
    assert carried({}, (tmp_path,)).keys() == {"NCCL_SOCKET_IFNAME", "NCCL_DEBUG", "HF_HOME"}
