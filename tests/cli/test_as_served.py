"""What a model with its gates in the checkpoint's types answers, beside what float32 routers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli.projects import Finished, Project, make_project, roma_ds_here
from safetensors.torch import load_file, save_file

from roma_ds.config import ModelConfig
from roma_ds.export.merge import merge
from roma_ds.families.own_models import register_own_models
from roma_ds.storage.atomic import read_json, read_parquet
from roma_ds.testing.family_trials.run_results import Run, largest_difference
from roma_ds.testing.stock_alone import StockAlone
from roma_ds.training.stage import write_router_file

FLOAT32 = ("model.dtype=float32", "roma.layers=all", "train.lr=3.0e-4")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("served") / "project", dtype="bfloat16", epochs=2)


@pytest.fixture(scope="module")
def finished(project: Project) -> Finished:
    return roma_ds_here(project.arguments("run", *FLOAT32, ranks=1))


def results(project: Project, variant: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(project.out / "eval" / f"{variant}.json")
    return found


def likelihoods(project: Project, variant: str) -> list[list[float]]:
    columns = read_parquet(project.out / "eval" / f"{variant}.samples.parquet")
    found: list[list[float]] = columns["option_loglikelihoods"]
    return found


def stock_answers(project: Project, merged: Path, dtype: torch.dtype | None) -> list[list[float]]:
    """Log-likelihoods by transformers, which is given each prompt alone. dtype: None for the config's."""
    model = StockAlone(merged, dtype)
    prompts = Run(project.out, ModelConfig(path=str(merged)), "").prompts("eval.parquet")
    return [model.options(prompt) for prompt in prompts]


def right(project: Project, answers: list[list[float]]) -> float:
    """Accuracy of the most likely options, in percent."""
    true = read_parquet(project.out / "data" / "eval.parquet")["answer"]
    return (
        100
        * sum(
            max(range(len(one)), key=one.__getitem__) == answer
            for one, answer in zip(answers, true, strict=True)
        )
        / len(true)
    )


def test_export_says_what_is_left_of_the_update(project: Project, finished: Finished) -> None:
    assert finished.code == 0, finished
    survival = read_json(project.out / "train" / "stage.json")["extra"]["served"]
    trained = load_file(project.out / "train" / "router.safetensors")
    base: dict[str, torch.Tensor] = {}
    for shard in (project.folder / "model").glob("*.safetensors"):
        base |= {name: value.float() for name, value in load_file(shard).items() if name in trained}
    update = torch.cat([(trained[name] - base[name]).flatten() for name in sorted(base)]).double()
    left = torch.cat([(trained[n].bfloat16().float() - base[n]).flatten() for n in sorted(base)]).double()
    assert survival["dtype"] == "bfloat16" and survival["exact"] is False
    assert survival["changed"] == pytest.approx(float((left != 0).double().mean()))
    assert survival["kept"] == pytest.approx(float(left @ update / (update @ update)))
    assert 0.05 < survival["changed"] < 0.99
    line = (
        f"rounded to bfloat16, in which the base has its own, {100 * survival['changed']:.1f}% of the "
        f"routers' entries differ from it, and {100 * survival['kept']:.1f}% of the update's size is left"
    )
    assert f"export: {line}" in finished.out
    assert f"{line[0].upper()}{line[1:]}." in (project.out / "export" / "README.md").read_text()


def test_accuracy_as_served_is_that_of_rounded_routers(
    project: Project, finished: Finished, tmp_path: Path
) -> None:
    """The same numbers as of a router file that holds rounded values."""
    average = results(project, "roma_as_served")["average"]
    assert f"export: accuracy as served {100 * average:.2f}%" in finished.out
    assert likelihoods(project, "roma_as_served") != likelihoods(project, "roma")
    rounded = tmp_path / "rounded.safetensors"
    trained = load_file(project.out / "train" / "router.safetensors")
    save_file({name: value.bfloat16().float() for name, value in trained.items()}, rounded)
    other = project.copied(tmp_path / "out")
    done = roma_ds_here(other.arguments("eval", *FLOAT32, f"--router={rounded}", ranks=1))
    assert done.code == 0, done
    assert likelihoods(other, "given") == likelihoods(project, "roma_as_served")
    assert results(other, "given")["average"] == average
    report = (project.out / "report" / "report.html").read_text()
    assert "RoMA as served" in report


def test_transformers_answers_each_question_as_stated(
    project: Project, finished: Finished, tmp_path: Path
) -> None:
    router = project.out / "train" / "router.safetensors"
    merge(project.folder / "model", router, tmp_path / "merged", "stored")
    answers = stock_answers(project, tmp_path / "merged", torch.float32)
    served, own = (
        largest_difference(answers, likelihoods(project, f"roma{one}")) for one in ("_as_served", "")
    )
    assert served < 1e-5 < 3e-5 < own
    assert f"export: accuracy as served {right(project, answers):.2f}%" in finished.out


@pytest.mark.parametrize("kind", ["olmoe", "qwen3_moe", "deepseek"])
def test_and_in_the_type_of_the_config(kind: str, tmp_path: Path) -> None:
    """A float32 router in a bfloat16 folder. transformers has no class for `deepseek`: ours."""
    project = make_project(tmp_path / "project", kind, dtype="bfloat16")
    model, router, merged = project.folder / "model", tmp_path / "router.safetensors", tmp_path / "merged"
    layer, key = 2, "model.layers.2.mlp.gate.weight"
    stored = next(found[key] for path in model.glob("*.safetensors") if key in (found := load_file(path)))
    moved = stored.float() + torch.randn(stored.shape, generator=torch.Generator().manual_seed(0))
    write_router_file(router, {layer: moved}, {layer: key}, {})
    done = roma_ds_here(project.arguments("eval", f"--router={router}", ranks=1))
    assert done.code == 0, done
    merge(model, router, merged)
    register_own_models()
    answers = stock_answers(project, merged, None)
    # Products of other sizes round otherwise in bfloat16.
    limit = 5e-3 if kind == "deepseek" else 1e-5
    assert largest_difference(answers, likelihoods(project, "given")) < limit
    assert f"{right(project, answers):.2f}%" in done.out


def test_trained_through_the_rounding_both_are_one(
    project: Project, finished: Finished, tmp_path: Path
) -> None:
    other = project.copied(tmp_path / "out")
    done = roma_ds_here(other.arguments("run", *FLOAT32, "train.gate_dtype=as_stored", ranks=1))
    assert done.code == 0, done
    assert read_json(other.out / "train" / "stage.json")["extra"]["served"]["exact"] is True
    assert "export: all values of these routers are values of bfloat16" in done.out
    assert not list((other.out / "eval").glob("roma_as_served*"))
    assert "as served" not in (other.out / "report" / "report.html").read_text()


def test_in_the_checkpoints_types_nothing_is_measured_twice(project: Project, tmp_path: Path) -> None:
    other = make_project(tmp_path / "project", dtype="bfloat16", epochs=1)
    done = roma_ds_here(other.arguments("run", ranks=1))
    assert done.code == 0, done
    assert not list((other.out / "eval").glob("roma_as_served*"))
