"""Training through the rounding of gates that a checkpoint stores in bfloat16."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.projects import Project, make_project
from safetensors.torch import load_file

ROUNDED = (
    "model.dtype=float32", "train.gate_dtype=as_stored", "train.lr=2.0e-3", "train.save_every=4",
    "train.keep_states=6", "roma.layers=all",
)  # fmt: skip
Trained = Callable[..., Project]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("rounded") / "project", dtype="bfloat16", epochs=4)
    done = made.run("index", *ROUNDED, ranks=1)
    assert done.code == 0, done
    return made


@pytest.fixture(scope="module")
def trained(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    known: dict[tuple[str, ...], Project] = {}

    def at(*more: str, ranks: int = 2) -> Project:
        key = (*more, str(ranks))
        if key not in known:
            known[key] = project.copied(tmp_path_factory.mktemp("trained") / "out")
            done = known[key].run("train", *ROUNDED, "train.batch=16", *more, ranks=ranks)
            assert done.code == 0, done
        return known[key]

    return at


def routers(project: Project, folder: str = "train") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(project.out / folder / "router.safetensors")
    return found


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def stored(project: Project) -> torch.Tensor:
    """The gates of the checkpoint that are trained."""
    found = {}
    for shard in (project.folder / "model").glob("*.safetensors"):
        found |= {name: value.float() for name, value in load_file(shard).items() if name in routers(project)}
    return flat(found)


def share_apart(first: Project, second: Project) -> float:
    """Of the weights: masters that differ in their last bits may round to neighbours."""
    one, other = flat(routers(first)), flat(routers(second))
    np.testing.assert_allclose(one, other, rtol=2**-7, atol=1e-6)
    return float((one != other).float().mean())


def test_the_file_has_values_of_the_stored_type(project: Project, trained: Trained) -> None:
    found, base = flat(routers(trained("deepspeed=zero0"))), stored(trained("deepspeed=zero0"))
    assert torch.equal(found, found.bfloat16().float())
    assert torch.equal(base, base.bfloat16().float())
    changed = float((found != base).float().mean())
    assert 0.1 < changed < 1


def test_without_it_the_file_has_others(trained: Trained) -> None:
    found = flat(routers(trained("deepspeed=zero0", "train.gate_dtype=float32")))
    assert float((found != found.bfloat16().float()).float().mean()) > 0.5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_agree(stage: int, trained: Trained) -> None:
    assert share_apart(trained("deepspeed=zero0"), trained(f"deepspeed=zero{stage}")) < 0.01


def test_one_rank_is_two(trained: Trained) -> None:
    assert share_apart(trained("deepspeed=zero0"), trained("deepspeed=zero3", ranks=1)) < 0.01


def test_a_resumed_training_is_an_uninterrupted_one(trained: Trained, tmp_path: Path) -> None:
    whole = trained("deepspeed=zero3")
    copied = whole.copied(tmp_path / "out")
    for path in (copied.out / "train").iterdir():
        if path.name != "state":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for step in (12, 16):
        shutil.rmtree(copied.out / "train" / "state" / f"step-{step}")
    done = copied.run("train", *ROUNDED, "train.batch=16", "deepspeed=zero3")
    assert done.code == 0 and "resumed after step 8" in done.out, done
    assert torch.equal(flat(routers(copied)), flat(routers(whole)))
