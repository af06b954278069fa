"""The result of training does not depend on the ZeRO stage, the number of ranks, or how a batch is cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.projects import BIN, ROOT, Finished, Project, largest_difference, make_project, run_command

TOLERANCE = 1e-5
STEPS = 24
KEPT = ("train.save_every=2", "train.keep_states=4")
DEEPSPEED = str(BIN / "deepspeed")
SCRIPT = str(ROOT / "roma_ds" / "train.py")

# Minutes only where other work shares the cores.
pytestmark = pytest.mark.timeout(1200)

Trained = Callable[[str], Project]


def ds_file(folder: Path, stage: int) -> str:
    """A DeepSpeed JSON of the user's own, as habit writes it."""
    path = folder / f"my_zero{stage}.json"
    content = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": stage}}
    path.write_text(json.dumps(content))
    return str(path)


def train(name: str, project: Project) -> Finished:
    """One way to train; all of them have global batches of 16."""
    script = [SCRIPT, "--config", str(project.config), f"output_dir={project.out}"]
    if name == "zero3 with a control":
        cut = ("train.micro_batch=4", "train.gradient_accumulation=2")
        return project.run("train", "deepspeed=zero3", "controls=[router_tuning]", *cut)
    if name.startswith("zero"):
        return project.run("train", f"deepspeed={name}")
    if name == "script":
        flags = ["--deepspeed", "--deepspeed_config", ds_file(project.out, 2)]
        launcher = ["--num_accelerators=2", "--master_port=29641"]
        return run_command([DEEPSPEED, *launcher, *script, *flags], project.folder)
    if name == "one rank":
        launcher = ["--num_accelerators=1", "--no_local_rank", "--master_port=29642"]
        flags = ["--local-rank=0", "--deepspeed-config", ds_file(project.out, 3), "train.micro_batch=16"]
        return run_command([DEEPSPEED, *launcher, *script, *flags], project.folder)
    assert name == "accumulated"
    cut = ("train.micro_batch=1", "train.gradient_accumulation=8")
    return project.run("train", "deepspeed=zero1", *cut)


@pytest.fixture(scope="module")
def trained(indexed: Project, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Projects trained in the way of that name, each once."""
    known: dict[str, Project] = {}

    def at(name: str) -> Project:
        if name not in known:
            project = indexed.copied(tmp_path_factory.mktemp("trained") / "out")
            done = train(name, project)
            assert done.code == 0, done
            assert "roma: not run yet" in done.out and "index: up to date" in done.out
            known[name] = project
        return known[name]

    return at


@pytest.mark.parametrize("name", ["zero1", "script", "zero3 with a control", "one rank", "accumulated"])
def test_routers_are_those_of_plain_data_parallel_training(trained: Trained, name: str) -> None:
    plain, other = trained("zero0"), trained(name)
    assert plain.metrics()[-1]["step"] == other.metrics()[-1]["step"] == STEPS
    assert largest_difference(plain.routers(), other.routers()) <= TOLERANCE


def test_training_moved_the_routers(trained: Trained, indexed: Project) -> None:
    from safetensors import safe_open

    for name, weight in trained("zero0").routers().items():
        for shard in (indexed.folder / "model").glob("*.safetensors"):
            with safe_open(shard, framework="np") as file:
                if name in file.keys():  # noqa: SIM118
                    assert abs(file.get_tensor(name) - weight).max() > 100 * TOLERANCE


def test_logged_numbers_agree_too(trained: Trained) -> None:
    """Losses and gradient norms of both terms are sums over all ranks, whatever the stage."""
    terms = ("task", "manifold")
    names = ["loss", "accuracy", "grad_norm", *(f"{term}_loss" for term in terms)]
    names += [f"grad_norm_{term}" for term in terms]
    plain = trained("zero0").metrics()
    for way in ("zero3 with a control", "one rank", "accumulated"):
        other = trained(way).metrics()
        assert [line["step"] for line in plain] == [line["step"] for line in other]
        for first, second in zip(plain, other, strict=True):
            wanted = {name: first[name] for name in names}
            assert wanted == pytest.approx({name: second[name] for name in names}, rel=1e-3, abs=1e-5), way


def test_router_tuning_under_zero3(trained: Trained) -> None:
    project = trained("zero3 with a control")
    lines = (project.out / "controls" / "router_tuning" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["lambda"] for line in lines} == {0.0}
    assert json.loads(lines[-1])["step"] == STEPS
    assert largest_difference(project.routers(), project.routers("router_tuning")) > 100 * TOLERANCE


def test_manifold_term_alone_under_zero3(indexed: Project, tmp_path: Path) -> None:
    project = indexed.copied(tmp_path / "out")
    done = project.run("train", "deepspeed=zero3", "train.task_loss=false", "roma.lambda_warmup=0")
    assert done.code == 0, done
    lines = project.metrics()
    assert lines[-1]["manifold_loss"] < 0.9 * lines[0]["manifold_loss"]
    assert lines[0]["loss"] == pytest.approx(lines[0]["manifold_loss"])
    assert {line["grad_norm_task"] for line in lines} == {None}


def test_qwen3_moe_under_zero3(tmp_path: Path) -> None:
    """A family that DeepSpeed would make a leaf module of; two ranks against one without partitions."""
    first = make_project(tmp_path / "project", "qwen3_moe")
    done = first.run("train", "deepspeed=zero0", "train.micro_batch=16", ranks=1)
    assert done.code == 0, done
    second = Project(first.folder, tmp_path / "second")
    done = second.run("train", "deepspeed=zero3")
    assert done.code == 0, done
    assert "Qwen3-MoE" in done.out
    assert largest_difference(first.routers(), second.routers()) <= TOLERANCE


@pytest.fixture(scope="module")
def trained_in_bf16(tmp_path_factory: pytest.TempPathFactory) -> list[Project]:
    """One project for each ZeRO stage, from the same neighbours; eight steps, all states kept."""
    first = make_project(tmp_path_factory.mktemp("bf16"), dtype="bfloat16", epochs=2)
    done = first.run("index", ranks=1)
    assert done.code == 0, done
    projects = []
    for stage in range(4):
        project = first.copied(tmp_path_factory.mktemp("bf16") / f"zero{stage}")
        done = project.run("train", f"deepspeed=zero{stage}", *KEPT)
        assert done.code == 0, done
        projects.append(project)
    return projects


def test_bf16_starts_equal_under_every_stage(trained_in_bf16: list[Project]) -> None:
    for project in trained_in_bf16:
        assert project.metrics()[-1]["step"] == 8
        assert all(weight.dtype == "float32" for weight in project.routers().values())
    losses = [project.metrics()[0]["task_loss"] for project in trained_in_bf16]
    # bfloat16 has 8 bits of mantissa.
    assert losses == pytest.approx([losses[0]] * 4, rel=2**-7)


@pytest.mark.parametrize("stage", [0, 3])
def test_bf16_resumes(stage: int, trained_in_bf16: list[Project], tmp_path: Path) -> None:
    """Float32 masters and moments come back: the second half again gives the same routers."""
    whole = trained_in_bf16[stage]
    half = whole.copied(tmp_path / "out")
    (half.out / "train" / "stage.json").unlink()
    for step in (6, 8):
        shutil.rmtree(half.out / "train" / "state" / f"step-{step}")
    done = half.run("train", f"deepspeed=zero{stage}", *KEPT)
    assert done.code == 0, done
    assert "resumed after step 4 of 8" in done.out
    assert largest_difference(whole.routers(), half.routers()) <= 1e-6
