"""A run folder with made-up numbers in the formats that the stages write."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roma_ds.evaluation.uncertainty import stderr
from roma_ds.storage.atomic import write_json, write_npy, write_parquet, write_text
from roma_ds.storage.stage import StageRecord

CONFIG = """model: {path: tiny/moe, revision: null, dtype: bfloat16, trust_remote_code: false}
data:
  train: [{path: train.jsonl, answer: text}]
roma: {layers: last5, tokens: last1, neighbours: 3, sigma: 0.4, lambda: 1.0}
eval: {tasks: [{name: test, path: test.jsonl}]}
controls: [router_tuning, random_neighbours]
deepspeed: ds_configs/zero3.json
output_dir: OUT
"""
ACCURACY = {"base": 0.74, "router_tuning": 0.76, "random_neighbours": 0.755, "roma": 0.80, "oracle": 0.93}
LAYERS, EXPERTS = 6, 16


def make_run(
    folder: Path,
    tasks: int = 6,
    per_task: int = 60,
    accuracy: dict[str, float] | None = None,
    options: int = 4,
    always_first: str | None = None,
    steps: int = 40,
    seed: int = 0,
) -> Path:
    """Write a whole run; `accuracy` names the variants, `always_first` one that only answers A."""
    rng = np.random.default_rng(seed)
    accuracy = ACCURACY if accuracy is None else accuracy
    write_text(folder / "config.resolved.yaml", CONFIG.replace("OUT", str(folder)))
    write_json(folder / "ds_config.resolved.json", {"tensorboard": {"enabled": True}})
    write_json(
        folder / "environment.json",
        {
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "deepspeed": "0.19.8"},
            "commands": ["roma-ds run 'my run.yaml' --ranks 2"],
            "world_size": 2,
        },
    )
    names = [f"skill_{number:02d}" for number in range(tasks)]
    label = np.repeat(np.arange(tasks), per_task)
    count = label.size
    questions = [f"question {row}?" for row in range(count)]
    table = {
        "id": [f"test/{row}" for row in range(count)],
        "task": [names[place] for place in label],
        "prompt": [f"Question: {question} Answer:" for question in questions],
        "question": questions,
    }
    write_parquet(folder / "data" / "eval.parquet", table)
    trained = [f"train/{row}" for row in range(100)]
    write_parquet(folder / "data" / "samples.parquet", {"id": trained, "task": ["train"] * 100})
    centres = rng.normal(size=(tasks, 12))
    embeddings = centres[label] + 0.5 * rng.normal(size=(count, 12))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    write_npy(folder / "embed" / "eval_embeddings.npy", embeddings.astype(np.float32))
    _stage(folder, "embed", 3.2, {})
    outcome = {"id": trained, "correct": [row % 4 > 0 for row in range(100)]}
    write_parquet(folder / "collect" / "outcome.parquet", outcome)
    _stage(folder, "collect", 8.1, {"layers": list(range(LAYERS)), "successful": 75, "family": "olmoe"})
    _stage(folder, "index", 0.4, {})
    extra = {"trainable_parameters": 10_240, "total_parameters": 2_900_000}
    _stage(folder, "train", 61.0, {**extra, "world_size": 2, "zero_stage": 3})
    for name in ("roma", *(name for name in accuracy if name in ("router_tuning", "random_neighbours"))):
        home = folder / "train" if name == "roma" else folder / "controls" / name
        write_text(home / "metrics.jsonl", _metrics(name, steps, rng))
    answers = rng.integers(options, size=count)
    luck = rng.random(count)
    for name, target in accuracy.items():
        flips = rng.random(count) < 0.06
        correct = (luck < target) ^ flips & (rng.random(count) < 0.5)
        wrong = (answers + rng.integers(1, options, size=count)) % options
        predicted = np.where(correct, answers, wrong)
        if name == always_first:
            predicted = np.zeros(count, dtype=np.int64)
        write_variant(folder, name, table, predicted, answers, options)
        pull = {"base": 0.8, "roma": 2.2}.get(name, 1.0)
        write_npy(folder / "eval" / f"{name}.routing.npy", _routing(label, pull, tasks, rng))
        extra = {"training_successful": 81} if name == "roma" else {}
        record = {"stage": name, "fingerprint": "0", "seconds": 2.5, "extra": extra}
        write_json(folder / "eval" / f"{name}.stage.json", record)
    return folder


def write_variant(
    folder: Path,
    name: str,
    table: dict[str, list[str]],
    predicted: NDArray[np.int64],
    answers: NDArray[np.int64],
    options: int,
) -> None:
    """eval/<name>.json and eval/<name>.samples.parquet."""
    correct = predicted == answers
    results = {}
    for task in dict.fromkeys(table["task"]):
        rows = [row for row, entry in enumerate(table["task"]) if entry == task]
        results[task] = {
            "n": len(rows),
            "accuracy": float(correct[rows].mean()),
            "accuracy_norm": float(correct[rows].mean()),
            "stderr": stderr(correct[rows]),
            "predicted": {str(k): v for k, v in Counter(predicted[rows].tolist()).items()},
            "majority_baseline": float(np.bincount(answers[rows]).max() / len(rows)),
        }
    average = float(np.mean([result["accuracy"] for result in results.values()]))
    content = {
        "variant": name,
        "tasks": results,
        "average": average,
        "seconds": 2.5,
        "model": {"dtype": "bfloat16"},
    }
    write_json(folder / "eval" / f"{name}.json", content)
    write_parquet(
        folder / "eval" / f"{name}.samples.parquet",
        {
            "task": table["task"],
            "id": table["id"],
            "predicted": predicted,
            "answer": answers,
            "option_loglikelihoods": [[-1.0] * options] * len(answers),
            "correct": correct,
        },
    )


def _routing(
    label: NDArray[np.int64], pull: float, tasks: int, rng: np.random.Generator
) -> NDArray[np.float16]:
    home = np.random.default_rng(7).integers(EXPERTS, size=(tasks, LAYERS))
    logits = rng.normal(size=(label.size, LAYERS, EXPERTS))
    for layer in range(LAYERS):
        logits[np.arange(label.size), layer, home[label, layer]] += pull
    weights = np.exp(logits)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float16)


def _metrics(name: str, steps: int, rng: np.random.Generator) -> str:
    lines = []
    for step in range(1, steps + 1):
        weight = 0.0 if name == "router_tuning" else min(1.0, 10 * step / steps)
        record = {
            "step": step,
            "epoch": 3 * step / steps,
            "loss": 1.0,
            "task_loss": 0.7 + 0.3 * np.exp(-step / 20) + 0.03 * rng.normal(),
            "manifold_loss": 0.4 * (1 if name == "router_tuning" else np.exp(-step / steps))
            + 0.01 * rng.random(),
            "lambda": weight,
            "grad_norm_task": 0.1 + 0.02 * rng.random(),
            "grad_norm_manifold": 0.0 if name == "router_tuning" else 0.03 + 0.01 * rng.random(),
            "grad_norm": 0.11,
            "lr": 1e-3,
            "accuracy": 0.75,
            "successful": 75,
            "index_epoch": 0,
            "empty_neighbourhoods": 0,
            "expert_load_entropy": 2.3 + 0.05 * rng.random(),
            "tokens_per_second": 9000.0 + 100 * rng.random(),
            "memory_bytes": 2**28 + step,
        }
        lines.append(json.dumps({key: float(value) for key, value in record.items()} | {"step": step}))
    return "\n".join(lines) + "\n"


def _stage(folder: Path, name: str, seconds: float, extra: dict[str, object]) -> None:
    StageRecord(folder / name, name).finish({"config": "x"}, [], seconds, extra)
