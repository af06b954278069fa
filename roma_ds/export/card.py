"""The card that goes with a published router file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from roma_ds.checkpoint.router_file import RouterFile, read_router_file
from roma_ds.checkpoint.stored_gates import Survival
from roma_ds.config import RunConfig
from roma_ds.evaluation.results import AS_SERVED
from roma_ds.evaluation.uncertainty import wilson_interval
from roma_ds.storage.atomic import read_json

TAGS = ("mixture-of-experts", "routing-manifold-alignment", "router")


def model_card(
    run: RunConfig,
    router: Path,
    evaluations: Mapping[str, Path],
    licence: str | None = None,
    survival: Survival | None = None,
) -> str:
    """Markdown behind a front matter for the hub: what the routers are, how to use them, what they scored.

    licence: of the base model, where it is known. survival: what the base's own types leave of the update.
    Evaluations that were not run are left out.
    """
    file = read_router_file(router)
    found = {name: read_json(path) for name, path in evaluations.items() if path.exists()}
    return "\n".join(
        [
            *_front_matter(run, licence),
            *_description(run, file, licence),
            *_use(run, router.name),
            *_results(run, found, survival),
        ]
    )


def base_name(run: RunConfig) -> str:
    """The base model as others know it: its hub id, or its folder without the path on this machine."""
    return Path(run.model.path).name if _is_folder(run) else run.model.path


def _is_folder(run: RunConfig) -> bool:
    return Path(run.model.path).is_absolute() or Path(run.model.path).is_dir()


def _front_matter(run: RunConfig, licence: str | None) -> Iterator[str]:
    stated: dict[str, Any] = {"library_name": "roma_ds", "tags": list(TAGS)}
    if licence is not None:
        stated["license"] = licence
    if not _is_folder(run):
        stated |= {"base_model": run.model.path, "base_model_relation": "adapter"}
    yield "---"
    yield yaml.safe_dump(stated, sort_keys=True).rstrip()
    yield "---"


def _description(run: RunConfig, file: RouterFile, licence: str | None) -> Iterator[str]:
    weights = sum(weight.numel() for weight in file.weights.values())
    yield f"# Routers for {base_name(run)}"
    yield ""
    yield (
        f"{len(file.weights)} routers ({weights:,} weights, float32), layers {file.metadata.get('layers')}, "
        f"trained by {file.metadata.get('method')} with roma_ds. Nothing else of the base model is in it."
    )
    yield ""
    yield f"- base model: {base_name(run)} (revision {run.model.revision or 'default'})"
    yield f"- licence of the base model: {licence or 'not found with it; look it up before you use these'}"
    sets = ", ".join(f"{dataset.label} ({dataset.split})" for dataset in run.data.train)
    yield f"- trained on: {sets}"
    yield (
        f"- method: lambda {run.roma.lambda_}, k {run.roma.neighbours}, epsilon {run.roma.epsilon}, "
        f"sigma {run.roma.sigma}, tokens {run.roma.tokens}"
    )
    if run.data.template != "plain":
        yield f"- prompts: {_prompts(run)}"
    yield f"- training: {run.train.epochs} epochs, learning rate {run.train.lr}, seed {run.train.seed}"
    yield f"- config hash: {file.metadata.get('config_hash')}"
    yield ""


def _use(run: RunConfig, name: str) -> Iterator[str]:
    yield "Merge them into the base checkpoint, or a GGUF file of it:"
    yield ""
    yield f"    roma-ds merge {base_name(run)} {name} --out merged"
    yield f"    roma-ds merge {base_name(run)}.gguf {name} --out merged.gguf"
    yield ""
    yield f"From the hub, `hub:OWNER/NAME` of this repository stands for `{name}`."
    yield ""


def _results(run: RunConfig, found: Mapping[str, Any], survival: Survival | None) -> Iterator[str]:
    if not found:
        yield "Not evaluated" + ("." if run.eval.tasks else ": `eval.tasks` of the run is empty.")
        yield ""
        return
    tasks = list(dict.fromkeys(task for result in found.values() for task in result["tasks"]))
    yield "| variant | average | " + " | ".join(tasks) + " |"
    yield "|---|---|" + "---|" * len(tasks)
    for name, result in found.items():
        cells = [_cell(result["tasks"].get(task)) for task in tasks]
        yield f"| {name} | {100 * result['average']:.2f} | " + " | ".join(cells) + " |"
    yield ""
    yield "Accuracy in percent, with the 95% interval by Wilson where the number of questions is known."
    asked = "; ".join(filter(None, (_asked(task, found) for task in tasks)))
    if asked:
        yield f"Asked: {asked}."
    yield _as_served(run, found)
    if survival is not None:
        yield f"{survival_line(survival).capitalize()}."
    yield ""


def survival_line(survival: Survival) -> str:
    """What is left of the update where routers are stored in the types of the base, in words."""
    name = survival["dtype"]
    if survival["exact"]:
        return f"all values of these routers are values of {name}, in which the base has its own"
    return (
        f"rounded to {name}, in which the base has its own, {100 * survival['changed']:.1f}% of the routers' "
        f"entries differ from it, and {100 * survival['kept']:.1f}% of the update's size is left"
    )


def _asked(task: str, found: Mapping[str, Any]) -> str:
    result = next(one["tasks"][task] for one in found.values() if task in one["tasks"])
    told = [f"{result['n']} questions"] if "n" in result else []
    told += [f"split {result['split']}"] if "split" in result else []
    told += [f"scored by {result['scoring']}"] if "scoring" in result else []
    told += [f"{result['shots']} shots"] if "shots" in result else []
    return f"{task}: {', '.join(told)}" if told else ""


def _as_served(run: RunConfig, found: Mapping[str, Any]) -> str:
    if AS_SERVED in found:
        return (
            f"Measured in {run.model.dtype}, with the routers as they are (roma) and rounded to the types in "
            "which the base has its own, as programs have them that load a checkpoint in its types "
            f"({AS_SERVED})."
        )
    return (
        f"Measured in {run.model.dtype}, where the routers have the values that rounding to the types of the "
        "base leaves them."
    )


def _prompts(run: RunConfig) -> str:
    """How they were written, with what of `data.chat` is set."""
    chat = run.data.chat
    told = [f"data.template {run.data.template}"]
    told += [f"chat template {chat.template}"] if chat.template else []
    told += [f"system text {chat.system!r}"] if chat.system else []
    return ", ".join([*told, *(f"{name} {value!r}" for name, value in chat.kwargs.items())])


def _cell(result: Mapping[str, float] | None) -> str:
    """Accuracy in percent with its interval; a dash for a task that this variant was not measured on."""
    if result is None:
        return "-"
    percent = 100 * result["accuracy"]
    if not result.get("n"):
        return f"{percent:.1f} ± {100 * result['stderr']:.1f}"
    count = int(result["n"])
    bounds = wilson_interval(round(result["accuracy"] * count), count)
    return f"{percent:.1f} ({100 * bounds.low:.1f} to {100 * bounds.high:.1f})"
