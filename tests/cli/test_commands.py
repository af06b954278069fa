"""Every command runs, says what it did, and does nothing the second time."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.projects import BIN, DESCRIPTIONS, Finished, Project, make_project, roma_ds

from roma_ds.cli.checking import LOOKS
from roma_ds.cli.main import main
from roma_ds.cli.parser import CHECKS, LISTS, STAGES, build_parser
from roma_ds.config import preset_names

TESTED = {"init", "ls", "check", "run", "merge", "plan", "doctor", "demo", *STAGES, "study"}
"""Here, but for `study`, which has a file of its own."""


def test_no_command_is_forgotten() -> None:
    found = {
        name
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
        for name in action.choices
    }
    assert found == TESTED


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run in this process takes over signals and variables; give them back.

    The process group stays: DeepSpeed keeps the first one for all engines of a process.
    """
    monkeypatch.setattr("roma_ds.comm.world.World.close", lambda world: None)
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


class Here:
    """Commands in this process on one rank: the libraries are imported once for all of them."""

    def __init__(self, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
        self.project, self.capsys = project, capsys

    def __call__(self, *arguments: str) -> Finished:
        self.capsys.readouterr()
        code = main(arguments)
        said = self.capsys.readouterr()
        return Finished(code, said.out, said.err)

    def stage(self, command: str, *more: str) -> Finished:
        """A command on the project that has to succeed."""
        done = self(*self.project.arguments(command, *more, ranks=1))
        assert done.code == 0, done
        return done

    def times(self) -> dict[str, int]:
        """When each file was written, without those that describe the latest start."""
        return {
            str(path.relative_to(self.project.out)): path.stat().st_mtime_ns
            for path in self.project.out.rglob("*")
            if path.is_file() and path.name not in DESCRIPTIONS
        }

    def stages_run(self, done: Finished) -> set[str]:
        """Titles of the stages that say why they run."""
        reasons = ("not run yet", "changed since", "is missing", "another size")
        return {
            line.partition(":")[0]
            for line in done.out.splitlines()
            if any(f": {reason}" in line or line.endswith(reason) for reason in reasons)
        }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("commands"), rows=32, epochs=1)


@pytest.fixture
def here(project: Project, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(project, capsys)


# One after the other: each stage finds those before it done, the first time and the second.
IN_ORDER = (
    ("data", (), {"data"}),
    ("eval", ("--variant=base",), {"eval base"}),
    ("embed", (), {"embed"}),
    ("collect", (), {"collect"}),
    ("index", (), {"index"}),
    ("train", (), {"train roma"}),
    ("train", ("--variant=router_tuning",), {"train router_tuning"}),
    ("eval", (), {"eval roma"}),
    ("export", (), {"export"}),
    ("report", (), {"report"}),
    ("run", (), set()),
)


@pytest.mark.parametrize(
    ("command", "flags", "runs"), IN_ORDER, ids=[" ".join([name, *flags]) for name, flags, _ in IN_ORDER]
)
def test_stages_twice(command: str, flags: tuple[str, ...], runs: set[str], here: Here) -> None:
    first = here.stage(command, *flags)
    made = here.stages_run(first)
    assert made == runs - {"export", "report"}, first
    before = here.times()
    second = here.stage(command, *flags)
    assert not here.stages_run(second), second
    for title in runs or {"data", "train roma", "eval roma", "export", "report"}:
        assert f"{title}: up to date" in second.out, second
    assert here.times() == before


@pytest.mark.parametrize(
    ("command", "change", "runs", "reason"),
    [
        ("index", "roma.neighbours=2", {"index"}, "index: changed since: neighbours"),
        ("train", "train.lr=0.02", {"train roma"}, "train roma: changed since: train"),
        ("train", "roma.lambda=0.5", {"train roma"}, "train roma: changed since: lambda"),
        ("train", "deepspeed=zero2", set(), "train roma: up to date"),
        ("train", "train.log_every=3", set(), "train roma: up to date"),
    ],
)
def test_a_changed_key_runs_that_stage_again_and_says_why(
    command: str, change: str, runs: set[str], reason: str, here: Here, tmp_path: Path
) -> None:
    changed = Here(here.project.copied(tmp_path / "out"), here.capsys)
    done = changed.stage(command, change)
    assert reason in done.out, done
    assert changed.stages_run(done) == runs


def test_a_lost_file_is_made_again(here: Here, tmp_path: Path) -> None:
    copy = Here(here.project.copied(tmp_path / "out"), here.capsys)
    lost = copy.project.out / "index" / "neighbours.npy"
    before = lost.read_bytes()
    lost.unlink()
    done = copy.stage("train")
    assert "index: neighbours.npy is missing" in done.out
    assert lost.read_bytes() == before
    assert copy.stages_run(done) == {"index"}, "the same neighbours as before: nothing to train again"


def test_changed_data_runs_all_that_depends_on_it(here: Here, tmp_path: Path) -> None:
    copy = Here(here.project.copied(tmp_path / "out"), here.capsys)
    done = copy.stage("train", "data.train.0.limit=24")
    assert copy.stages_run(done) == {"data", "embed", "collect", "index", "train roma"}
    assert "data: changed since: training" in done.out
    assert "not resumed" in done.out or "resumed" not in done.out


def test_check(here: Here) -> None:
    done = here("check", str(here.project.config), "--world-size", "2", f"output_dir={here.project.out}")
    assert done.code == 0, done
    for words in (
        "is valid",
        "DeepSpeed: ZeRO stage 0, 2 ranks, global batch 16",
        "model: OLMoE (supported), 4 layers, 8 experts, top-2",
        "trained: the routers of layers 2, 3, 512 of ",
        " files fit the config",
        "32 training samples",
        "24 evaluation samples",
        "<< ",
        "options of one token each, read in one pass: 32 of 32 samples",
        "the first begins with ",
        "and ends with ",
        "in the prompts of the first 24 evaluation samples",
        "training with the prefix cache: ",
        "frozen pass, engine stream",
    ):
        assert words in done.out, done
    assert "not usable" not in done.out
    assert tuple(LOOKS) == CHECKS
    assert not [name for name in CHECKS if f"\n{name}: " not in done.out]


def test_check_names_every_problem(here: Here, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 7}))
    overrides = ("model.path=./nowhere", "data.train.0.path=nowhere.jsonl", "eval.tasks.0.path=gone.jsonl")
    wrong = ("roma.lamda=1", "train.epochs=many")
    done = here("check", str(here.project.config), "--ds", str(tmp_path / "ds.json"), *overrides, *wrong)
    assert done.code == 2 and "config: not valid, see below" in done.out, done
    for words in (
        "roma.lamda: unknown key; did you mean 'lambda'",
        "train.epochs: expected a whole number, got 'many'",
        "train_micro_batch_size_per_gpu",
        "nowhere'",
        "nowhere.jsonl does not exist",
        "gone.jsonl does not exist",
    ):
        assert done.err.count(words) >= 1, done
    assert done.err.count("gone.jsonl does not exist") == 1


def test_check_refuses_the_prompts_that_a_run_would(here: Here) -> None:
    """Of training and of evaluation, each once; and an answer that leaves no room in the model's context."""
    config = str(here.project.config)
    done = here("check", config, "data.max_tokens=4", "data.long_prompts=refuse")
    assert done.code == 2 and done.err.count("tokens, 4 are allowed") == 2, done
    assert "/train/" in done.err and "words/" in done.err and "fix: " in done.err
    assert here("check", config, "data.max_tokens=4").code == 0
    done = here("check", config, "eval.scoring=generate", "eval.max_new_tokens=900")
    assert done.code == 2 and done.err.count("in the model's context of 512 tokens") == 1, done


def test_plan(here: Here) -> None:
    done = here("plan", str(here.project.folder / "model"), "--layers", "last2", "--world-size", "2")
    assert done.code == 0 and "OLMoE (supported)" in done.out, done
    assert here("plan", "nowhere").code == 2


def test_ls_and_init(here: Here) -> None:
    for what in LISTS:
        done = here("ls", what, "--under", str(here.project.folder))
        assert done.code == 0 and done.out.strip(), what
    assert "RoMA" in done.out and str(here.project.out) in done.out, "runs with their scores"
    assert {line.split()[0] for line in here("ls", "configs").out.splitlines()} == set(preset_names())
    for name in preset_names():
        assert "\nmodel:" in here("init", name).out
    assert here("init", "olmo").code == 2


def test_merge(here: Here, tmp_path: Path) -> None:
    router = here.project.out / "export" / "router.safetensors"
    done = here("merge", str(here.project.folder / "model"), str(router), "--out", str(tmp_path / "merged"))
    assert done.code == 0 and "merged 2 routers" in done.out, done
    again = here("merge", str(here.project.folder / "model"), str(router), "--out", str(tmp_path / "merged"))
    assert again.code == 2 and "not empty" in again.err
    nothing = here("merge", str(here.project.folder / "model"), "nowhere", "--out", str(tmp_path / "other"))
    assert nothing.code == 2 and "nowhere" in nothing.err and not (tmp_path / "other").exists()


def test_doctor(here: Here) -> None:
    done = here("doctor", "--json")
    assert done.code in (0, 3), done
    assert json.loads(done.out)


def test_help_and_version_need_no_torch() -> None:
    code = (
        "import sys\nfrom roma_ds.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'deepspeed', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["--help"], ["--version"], *([name, "--help"] for name in sorted(TESTED))):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_twice(tmp_path: Path) -> None:
    """The packaged model, with fewer rows than a user gets."""
    if not any((Path(main.__code__.co_filename).parents[1] / "demo" / "model").glob("*.safetensors")):
        pytest.skip("the demo model is not in this checkout")
    overrides = ("data.train.0.limit=96", "eval.limit=60", "train.epochs=1", "controls=[router_tuning]")
    line = ("demo", "--out", "demo", "--ranks", "2", *overrides)
    first = roma_ds(*line, cwd=tmp_path, timeout_s=420)
    assert first.code == 0, first
    report = json.loads((tmp_path / "demo" / "report" / "report.json").read_text())
    # The packaged checkpoint is in bfloat16, and is run in float32.
    assert set(report["variants"]) == {"base", "router_tuning", "roma", "roma_as_served"}
    assert (tmp_path / "demo" / "report" / "report.html").stat().st_size > 10_000
    files = [path for path in (tmp_path / "demo").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files if path.name not in DESCRIPTIONS}
    second = roma_ds(*line, cwd=tmp_path, timeout_s=420)
    assert second.code == 0, second
    assert second.out.count("up to date") >= 9, second
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_program_is_installed() -> None:
    assert (BIN / "roma-ds").exists()
