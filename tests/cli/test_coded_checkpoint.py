"""Whole runs on a checkpoint in codes are those on its decoded copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.projects import Project, make_project, roma_ds_here
from safetensors.torch import load_file
from unit.coded_checkpoints import change, in_codes, with_blocks
from unit.coded_tensors import by_name

MEASURED = ("tokens_per_second", "memory_bytes", "straggler_gap", "ranks")
"""What no two runs have alike."""


def run(made: Project, model: Path) -> dict[str, Any]:
    """Everything up to the evaluation on one rank, with a prefix cache; steps and routers."""
    done = roma_ds_here(made.arguments("eval", f"model.path={model}", "train.prefix_cache=on", ranks=1))
    assert done.code == 0, done
    steps = [{name: row[name] for name in row.keys() - set(MEASURED)} for row in made.metrics()]
    return {"steps": steps, "routers": {key: one.tolist() for key, one in made.routers().items()}}


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_a_run_on_codes_is_that_on_their_decoded_copy(model_type: str, tmp_path: Path) -> None:
    more = {"intermediate_size": 32} if model_type == "gpt_oss" else {}
    made = make_project(tmp_path / "project", model_type, rows=40, epochs=4, **more)
    base, pair = made.folder / "model", tmp_path / "pair"
    form = by_name("fp8 blocks of another size")
    coded, plain = with_blocks(base, pair) if more else in_codes(base, pair, form)
    found = run(made, coded)
    assert found == run(Project(made.folder, tmp_path / "other"), plain)
    assert [row["step"] for row in found["steps"]] == [1, 5, 10, 15, 20] and len(found["routers"]) == 2
    checked = roma_ds_here(made.arguments("check", f"model.path={coded}", ranks=1))
    assert checked.code == 0 and "are stored in codes" in checked.out, checked
    router, merged = made.out / "train" / "router.safetensors", tmp_path / "merged"
    done = roma_ds_here(["merge", str(coded), str(router), "--out", str(merged)])
    assert done.code == 0, done
    before, after = load_file(coded / "model.safetensors"), load_file(merged / "model.safetensors")
    for key in before.keys() - found["routers"].keys():
        assert torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)), key
    said = json.loads((merged / "config.json").read_text())["quantization_config"]
    assert said == json.loads((coded / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        (None, "without a scale"),
        (torch.ones(5, 7), "5 x 7 scales, which is not blocks of"),
        ("cut", "model.safetensors"),
    ],
    ids=["missing", "of no block size", "a file that ends too early"],
)
def test_codes_without_their_scales_end_with_two(scales: Any, said: str, tmp_path: Path) -> None:
    made = make_project(tmp_path / "project", "qwen3_moe", rows=8)
    coded, _ = in_codes(made.folder / "model", tmp_path / "pair", by_name("fp8 blocks of another size"))
    key = "model.layers.2.mlp.experts.1.up_proj.weight"
    file = coded / "model.safetensors"
    if isinstance(scales, str):
        file.write_bytes(file.read_bytes()[:-50])
    else:
        change(coded, {f"{key}_scale_inv": scales})
    done = roma_ds_here(made.arguments("run", f"model.path={coded}", ranks=1))
    assert done.code == 2 and said in done.err and "fix: " in done.err, done
    assert isinstance(scales, str) or key in done.err
    assert "Traceback" not in done.err and not (made.out / "collect").exists()
