"""The card that goes with a published router file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.config import RunConfig
from roma_ds.storage.atomic import read_json


def model_card(run: RunConfig, router: Path, evaluations: Mapping[str, Path]) -> str:
    """Markdown: what the routers are, how to use them, what they scored; evaluations not run are left out."""
    file = read_router_file(router)
    weights = sum(weight.numel() for weight in file.weights.values())
    lines = [
        f"# Routers for {run.model.path}",
        "",
        f"{len(file.weights)} routers ({weights:,} weights, float32), layers {file.metadata.get('layers')}, "
        f"trained by {file.metadata.get('method')} with roma_ds.",
        "",
        f"- base model: {run.model.path} (revision {run.model.revision or 'default'})",
        f"- method: lambda {run.roma.lambda_}, k {run.roma.neighbours}, epsilon {run.roma.epsilon}, "
        f"sigma {run.roma.sigma}, tokens {run.roma.tokens}",
        *([f"- prompts: {_prompts(run)}"] if run.data.template != "plain" else []),
        f"- training: {run.train.epochs} epochs, learning rate {run.train.lr}, seed {run.train.seed}",
        f"- config hash: {file.metadata.get('config_hash')}",
        "",
        "Merge them into the base checkpoint:",
        "",
        f"    roma-ds merge {run.model.path} {router.name} --out merged",
        "",
    ]
    found = {name: read_json(path) for name, path in evaluations.items() if path.exists()}
    if found:
        tasks = list(dict.fromkeys(task for result in found.values() for task in result["tasks"]))
        lines += ["| variant | average | " + " | ".join(tasks) + " |", "|---|---|" + "---|" * len(tasks)]
        for name, result in found.items():
            cells = [_cell(result["tasks"].get(task)) for task in tasks]
            lines.append(f"| {name} | {100 * result['average']:.2f} | " + " | ".join(cells) + " |")
    elif not run.eval.tasks:
        lines.append("Not evaluated: `eval.tasks` of the run is empty.")
    return "\n".join(lines) + "\n"


def _prompts(run: RunConfig) -> str:
    """How they were written, with what of `data.chat` is set."""
    chat = run.data.chat
    told = [f"data.template {run.data.template}"]
    told += [f"chat template {chat.template}"] if chat.template else []
    told += [f"system text {chat.system!r}"] if chat.system else []
    return ", ".join([*told, *(f"{name} {value!r}" for name, value in chat.kwargs.items())])


def _cell(result: Mapping[str, float] | None) -> str:
    """Accuracy in percent; a dash for a task that this variant was not measured on."""
    return "-" if result is None else f"{100 * result['accuracy']:.1f} ± {100 * result['stderr']:.1f}"
