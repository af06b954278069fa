"""The report of a run: report.json for programs, report.html for people, the pictures as PNG files."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roma_ds.evaluation import alignment as geometry
from roma_ds.monitor.as_served import served_cautions
from roma_ds.monitor.comparison import Comparison, cautions, compare_all, unread_training, verdict
from roma_ds.monitor.figures import draw_all, routing_pair
from roma_ds.monitor.page import render
from roma_ds.monitor.run_folder import NOT_EVALUATED, Run, names_no_task, read_run
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import write_json, write_text

CONTRACT_VARIANTS = ("base", "router_tuning", "roma")
TIMED_STAGES = ("embed", "collect", "index", "train", "eval")


def build_report(run_dir: Path) -> dict[str, Any]:
    """Write report/report.json, report/report.html and report/*.png of a run; returns what report.json holds.

    What the run folder lacks is left out (null in the JSON) and noted in the report.
    Raises UserError when `run_dir` is no folder or cannot be written.
    """
    run = read_run(run_dir)
    folder = run_dir / "report"
    comparisons = compare_all(run.variants)
    aligned, alignment_notes = _alignment(run)
    pictures, picture_notes = draw_all(run, folder)
    report: dict[str, Any] = {
        "model": _model(run),
        "config_hash": _config_hash(run),
        "variants": _variants(run, comparisons),
        "alignment": aligned,
        "training": _training(run),
        "verdict": [f"{NOT_EVALUATED}."] if names_no_task(run.config) else verdict(run.variants, comparisons),
        "cautions": [
            *cautions(run.variants, comparisons),
            *served_cautions(run.variants, run.extra("train").get("served")),
            *unread_training(run.extra("collect")),
        ],
        "notes": [*run.notes, *alignment_notes, *picture_notes],
        "commands": commands(run),
        "environment": dict(run.environment),
    }
    write_json(folder / "report.json", _finite(report))
    write_text(folder / "report.html", render(report, run, pictures))
    return report


def commands(run: Run) -> list[str]:
    """What to type to get this run again, and to use what it made."""
    lines = [str(line) for line in run.environment.get("commands") or []]
    ranks = run.environment.get("world_size") or run.extra("train").get("world_size")
    config = shlex.quote(str(run.folder / "config.resolved.yaml"))
    again = f"roma-ds run {config}" + (f" --ranks {ranks}" if ranks else "")
    if run.config_text and again not in lines:
        lines.append(again)
    lines.append(f"tensorboard --logdir {shlex.quote(str(run.folder))}")
    model = run.config.get("model", {}).get("path")
    router = run.folder / "train" / "router.safetensors"
    if model and router.exists():
        lines.append(f"roma-ds merge {shlex.quote(str(model))} {shlex.quote(str(router))} --out merged")
    return lines


def _model(run: Run) -> dict[str, Any]:
    configured: Mapping[str, Any] = run.config.get("model", {})
    model = {key: configured.get(key) for key in ("path", "revision", "dtype")}
    for variant in run.variants.values():
        model |= variant.result.get("model") or {}
        break
    for stage in ("collect", "train"):
        extra = run.extra(stage)
        model |= {key: extra[key] for key in ("family", "experts") if extra.get(key) is not None}
    base = run.variants.get("base")
    if base is not None and base.routing is not None and base.routing.ndim == 3:
        _, depth, experts = base.routing.shape
        numbers = run.moe_layers(depth)
        model |= {"moe_layers": depth, "experts": experts}
        model["trained_layers"] = [numbers[place] for place in run.chosen_layers(depth)]
    return model


def _config_hash(run: Run) -> str | None:
    if not run.config:
        return None
    from roma_ds.config import config_hash, load_run_config
    from roma_ds.errors import UserError

    try:
        return config_hash(load_run_config(run.folder / "config.resolved.yaml"))
    except UserError:
        # A folder written by another version is still worth a report.
        return fingerprint.of_json({key: run.config[key] for key in run.config if key != "output_dir"})


def _variants(run: Run, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys([*run.variants, *CONTRACT_VARIANTS]):
        variant = run.variants.get(name)
        if variant is None:
            found[name] = {"tasks": {}, "average": None, "evaluated": False}
            continue
        tasks = variant.result["tasks"]
        known = [task["accuracy"] for task in tasks.values() if task.get("accuracy") is not None]
        average = variant.result.get("average")
        found[name] = {
            "tasks": tasks,
            "average": average if average is not None else (statistics.fmean(known) if known else None),
            "evaluated": True,
            "uses_test_labels": name == "oracle",
            "seconds": variant.result.get("seconds"),
            "compared": {c.reference: c.as_json() for c in comparisons if c.variant == name},
        }
    return found


def _alignment(run: Run) -> tuple[dict[str, Any], list[str]]:
    nothing = dict.fromkeys(geometry.METRICS)
    neighbours = int(run.config.get("roma", {}).get("neighbours") or 3)
    measured: dict[str, Any] = {
        "before": nothing,
        "after": nothing,
        "neighbours": neighbours,
        "samples": None,
    }
    pair = routing_pair(run)
    if isinstance(pair, str):
        return measured, []
    if pair.embeddings is None:
        return measured, ["no embeddings of the evaluation samples: alignment is not measured"]
    # Measured over the whole arrays: the sampling for pictures must not decide which copies are seen.
    prompts = [str(prompt) for prompt in run.evaluation.get("prompt", [])] or None
    notes = []
    for state, name in (("before", "base"), ("after", "roma")):
        variant = run.variants.get(name)
        if variant is None or variant.routing is None or run.embeddings is None:
            continue
        try:
            chosen = variant.routing[:, pair.chosen]
            measured[state] = geometry.alignment(run.embeddings, chosen, neighbours, prompts)
            measured["samples"] = len(run.embeddings)
        except ValueError as error:
            notes.append(f"alignment {state} training is not measured: {error}")
    return measured, notes


def _training(run: Run) -> dict[str, Any]:
    collect, train = run.extra("collect"), run.extra("train")
    outcome = run.outcome.get("correct")
    records = run.metrics.get("roma", [])
    speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second")]
    memory = [record["memory_bytes"] for record in records if record.get("memory_bytes")]
    samples = len(next(iter(run.samples.values()))) if run.samples else train.get("samples")
    before = sum(map(bool, outcome)) if outcome else collect.get("successful")
    return {
        "samples": samples,
        "successful_before": before,
        "successful_after": _evaluated(run, "roma").get("training_successful"),
        "answers": collect.get("answers"),
        "trainable_parameters": train.get("trainable_parameters"),
        "total_parameters": train.get("total_parameters"),
        "seconds": {stage: run.seconds(stage) for stage in TIMED_STAGES},
        "tokens_per_second": train.get("tokens_per_second")
        or (statistics.median(speeds) if speeds else None),
        "peak_memory_bytes": train.get("peak_memory_bytes") or (max(memory) if memory else None),
        "steps": records[-1].get("step") if records else None,
        "world_size": train.get("world_size") or run.environment.get("world_size"),
        "zero_stage": train.get("zero_stage"),
    }


def _evaluated(run: Run, variant: str) -> Mapping[str, Any]:
    """Facts that the evaluation of a variant recorded."""
    found: Mapping[str, Any] = (run.stages.get(f"eval/{variant}.stage.json") or {}).get("extra") or {}
    return found


def _finite(value: Any) -> Any:
    """`value` with null for NaN and infinities, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
