"""The benchmarks' own instruments: checkpoints of a shape, and the count of operations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from roma_ds.config import load_run_config
from roma_ds.data.rows import read_rows

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TYPES = ["olmoe", "qwen3_moe"]
SCRIPTS = tuple(sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text()))
SMALL: dict[str, Any] = {
    "layers": 3, "hidden": 16, "experts": 4, "top_k": 2, "expert_width": 8, "heads": 2, "key_value_heads": 2,
    "head_width": 8, "vocabulary": 300,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def layout_of(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a mapping
                part = handle.get_slice(key)
                found[key] = (tuple(part.get_shape()), part.get_dtype())
    return found


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_written_checkpoint_has_the_layout_that_transformers_saves(
    tmp_path: Path, model_type: str, dtype: str
) -> None:
    import torch
    from shapes import Shape, checkpoint_bytes, write_checkpoint
    from transformers import AutoModelForCausalLM

    shape = Shape(model_type=model_type, dtype=dtype, **SMALL)
    written = write_checkpoint(tmp_path / "written", shape, shard_bytes=4096)
    model, report = AutoModelForCausalLM.from_pretrained(written, output_loading_info=True, dtype="auto")
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == getattr(torch, dtype)
    model.save_pretrained(tmp_path / "saved")
    assert layout_of(written) == layout_of(tmp_path / "saved")
    assert len(list(written.glob("*.safetensors"))) > 2
    sizes = json.loads((written / "model.safetensors.index.json").read_text())
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    assert sizes["metadata"]["total_size"] == checkpoint_bytes(shape) == nbytes


def test_a_written_checkpoint_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    from shapes import Shape, write_checkpoint

    files = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        folder = write_checkpoint(tmp_path / name, Shape(**SMALL), seed=seed)
        files.append([path.read_bytes() for path in sorted(folder.glob("*.safetensors"))])
    assert files[0] == files[1] != files[2]


def test_questions_have_the_lengths_that_were_asked_for(tmp_path: Path) -> None:
    from shapes import Questions, Shape, write_project
    from transformers import AutoTokenizer

    from roma_ds.config.sources import AnswerForm
    from roma_ds.data.templates import render

    config = write_project(tmp_path, Shape(**SMALL), Questions(samples=40, tokens=40, spread=0.5), "zero3")
    run = load_run_config(config, [])
    assert run.deepspeed == "zero3" or "zero3" in run.deepspeed
    rows = read_rows(tmp_path / "train.jsonl")
    assert len(rows) == 40
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    form: AnswerForm = "letter"
    lengths = [len(tokenizer(render(row, form, "t", "train").prompt)["input_ids"]) for row in rows]
    assert min(lengths) >= 20 and max(lengths) <= 60 and max(lengths) - min(lengths) > 20


def by_hand(trained: int, length: int) -> tuple[float, float]:
    """hidden 2, one head of width 2, 3 experts of width 5, top-2, vocabulary 7; one predicted token."""
    query, key, value, output, router = 8.0, 8.0, 8.0, 8.0, 12.0
    experts = 2 * (3 * 2 * 2 * 5)
    pair = 2 * 2 * 2
    head = 2 * 2 * 7
    whole = query + key + value + output + router + experts
    pairs = sum(range(1, length + 1))
    last = query + output + router + experts + length * (key + value) + pair * length
    forward = (trained - 1) * (length * whole + pair * pairs) + last + head
    backward = head
    if trained == 1:
        return forward, backward + router
    backward += query + output + 2 * router + experts + length * (key + value) + 2 * pair * length
    backward += (trained - 2) * (length * (whole + router) + 2 * pair * pairs)
    return forward, backward + length * router


@pytest.mark.parametrize("trained", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 6])
def test_operations_agree_with_a_hand_count(trained: int, length: int) -> None:
    from flops import step_cost
    from shapes import Shape

    shape = Shape(
        layers=9, hidden=2, experts=3, top_k=2, expert_width=5, heads=1, key_value_heads=1, head_width=2,
        vocabulary=7,
    )  # fmt: skip
    cost = step_cost(shape, [length, length], trained)
    forward, backward = by_hand(trained, length)
    assert cost.forward == 2 * forward and cost.backward == 2 * backward


def test_operations_agree_with_torch_counting_the_forward_pass(tmp_path: Path) -> None:
    import torch
    from flops import model_cost
    from shapes import Shape, write_checkpoint
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    shape = Shape(**SMALL)
    folder = write_checkpoint(tmp_path, shape)
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()
    length = 24
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(3, 3 + length)[None], use_cache=False)
    counted = sum(
        flops
        for operation, flops in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operation)
    )
    wanted = model_cost(shape, [length], rows=length)
    pairs = shape.layers * 4 * shape.heads * shape.head_width * length * (length + 1) / 2
    assert counted == wanted - pairs


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_says_what_it_does(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "usage:" in done.stdout


def test_what_a_step_takes_leaves_out_warm_up_and_log_lines() -> None:
    from comparison import epoch_seconds, plain_steps, step_seconds

    # Steps of 9 (warm-up), 5 (logged), 3 (after it), 1, 1, 2, 7 (logged).
    record = {
        "step_ends": [0.0, 9.0, 14.0, 17.0, 18.0, 19.0, 21.0, 28.0],
        "logged": [False, True, False, False, False, False, True],
        "steps_per_epoch": 3,
    }
    assert plain_steps(record) == [3, 4, 5]
    assert step_seconds([record]) == 1.0
    assert epoch_seconds([record]) == 21.0 - 17.0


def test_a_ratio_pairs_runs_of_one_turn(capsys: pytest.CaptureFixture[str]) -> None:
    from comparison import paired

    seconds = {"ours": iter([1.0, 2.0]), "rival": iter([5.0, 20.0])}
    found = paired(
        2,
        lambda: [{"value": next(seconds["ours"])}],
        lambda: [{"value": next(seconds["rival"])}],
        {"job": lambda records: records[0]["value"]},
    )
    assert found["job"]["ratio"] == {"median": 7.5, "least": 5.0, "largest": 10.0, "values": [5.0, 10.0]}
