"""Runs on several ranks whose frozen experts stay in the codes of their checkpoint, at ZeRO 0 and 3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.projects import Project, make_project
from unit.coded_checkpoints import in_codes, with_blocks
from unit.coded_tensors import by_name

MEASURED = ("tokens_per_second", "memory_bytes", "straggler_gap", "slowest_rank", "gathered_bytes", "ranks")
"""What is not the same in two runs of one computation."""
BITS = {"qwen3_moe": (8.2, "fp8 blocks of another size"), "gpt_oss": (4.25, "")}
"""Of a stored value, scales included, and the format."""
Trained = Callable[[str, int, str], Project]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run by model type, ZeRO stage and model.frozen, on the states of one frozen pass."""
    made: dict[str, tuple[Project, Path]] = {}

    def run(model_type: str, stage: int, frozen: str) -> Project:
        folder = tmp_path_factory.mktemp("kept")
        if model_type not in made:
            more = {"intermediate_size": 32} if model_type == "gpt_oss" else {}
            project = make_project(folder / "project", model_type, "bfloat16", rows=40, epochs=2, **more)
            base, form = project.folder / "model", BITS[model_type][1]
            pair = in_codes(base, folder, by_name(form)) if form else with_blocks(base, folder)
            made[model_type] = project, pair[0]
            done = project.run("index", f"model.path={pair[0]}", "train.prefix_cache=on")
            assert done.code == 0, done
        project, coded = made[model_type]
        copy = project.copied(folder / "out")
        given = (f"model.path={coded}", "train.prefix_cache=on", f"deepspeed=zero{stage}")
        done = copy.run("train", *given, f"model.frozen={frozen}")
        assert done.code == 0, done
        return copy

    return run


def steps(project: Project) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row.keys() - set(MEASURED)} for row in project.metrics()]


@pytest.mark.parametrize("model_type", BITS)
def test_training_is_that_with_decoded_experts(model_type: str, trained: Trained) -> None:
    for stage in (0, 3):
        stored, decoded = (trained(model_type, stage, frozen) for frozen in ("auto", "decoded"))
        assert steps(stored) == steps(decoded)
        found, wanted = stored.routers(), decoded.routers()
        assert found.keys() == wanted.keys() and len(found) == 2
        for name, values in found.items():
            assert values.tobytes() == wanted[name].tobytes(), (stage, name)
        one, other = (project.metrics()[-1]["gathered_bytes"] for project in (stored, decoded))
        assert (one < 0.7 * other) if stage == 3 else (one == other), (one, other)
