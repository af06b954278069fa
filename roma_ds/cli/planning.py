"""`roma-ds plan`: what a run of a model will need, from its config alone."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roma_ds.cli.planning_text import lines
from roma_ds.config.spelling import did_you_mean
from roma_ds.errors import UserError
from roma_ds.planner.size_text import parse_size

if TYPE_CHECKING:
    from roma_ds.planner.question import Subject

MATRIX_SIZE, MATRIX_SECONDS = 1024, 0.5


def plan_model(options: argparse.Namespace) -> int:
    """Print the forecast. Raises UserError with everything that is wrong with the arguments at once."""
    problems = list(_problems(options))
    if problems:
        raise UserError("\n".join(problems), "roma-ds plan --help lists every option")
    subject, result, question = answer(options)
    if options.json:
        print(json.dumps({**asdict(subject), **asdict(question), **asdict(result)}, indent=1))
        return 0
    for line in lines(subject, result, question):
        print(line)
    return 0


def answer(options: argparse.Namespace) -> tuple[Subject, Any, Any]:
    """(the model, its `Forecast`, the `Question` asked). Raises UserError where the model is not usable."""
    import torch

    from roma_ds.checkpoint.span import skeleton
    from roma_ds.config import ModelConfig
    from roma_ds.families import detect
    from roma_ds.families.counting import active_parameters, by_kind, counted
    from roma_ds.frozen_pass.kept_codes import kept_bytes
    from roma_ds.planner.forecast import forecast
    from roma_ds.planner.memory import Setting
    from roma_ds.planner.model_sizes import sizes_of
    from roma_ds.planner.question import Question, Subject

    model = ModelConfig(path=str(options.model), dtype=options.dtype)
    network = skeleton(model, config=config_of(model))
    layout = detect(network)
    family = layout.family
    length = min(options.length, options.tokens)
    on_disk = stored_bytes(model)
    kept = {} if on_disk is None else kept_bytes(model, None, torch.device(options.device))
    question = Question(
        setting=Setting(
            zero_stage=0,
            world_size=options.world_size,
            dtype=options.dtype,
            tokens=options.micro_batch * length,
            device=options.device,
        ),
        layers=layout.choose(_layers(options.layers)),
        device_memory=parse_size(options.device_memory, "--device-memory"),
        tokens=options.tokens,
        length=length,
        activation_memory=parse_size(options.activation_memory, "--activation-memory"),
        rates=_rates(options),
        uncut=family.barrier("suffix"),
        stored_bytes=on_disk,
        in_codes=bool(kept),
        shared=family.shares_tokens,
    )
    found = {str(kind): number for kind, number in by_kind(counted(network)).items()}
    subject = Subject(
        model.path, family.name, family.support, family.reason, found, active_parameters(network)
    )
    return subject, forecast(sizes_of(network, layout, kept), question), question


def config_of(model: Any) -> Any:
    """The transformers config of a packaged name, a config.json, a folder or a hub id. No weights.

    model: a `ModelConfig`. Raises UserError where there is no such model.
    """
    from roma_ds.checkpoint.loading import load_config
    from roma_ds.families import published

    name, names = model.path, published.names()
    if name == "demo" or Path(name).exists():
        return load_config(model)
    if name.lower() in names:
        return published.config(name.lower())
    fix = f"give the path of a config.json or its folder, a hub id, or one of {', '.join(names)}"
    if "/" not in name:
        raise UserError(
            f"there is no file, folder or packaged config '{name}'{did_you_mean(name, names)}", fix
        )
    try:
        return load_config(model)
    except UserError as error:
        raise UserError(error.message, fix) from error


def stored_bytes(model: Any) -> int | None:
    """Bytes of a checkpoint here whose weights are stored in codes; None for any other.

    model: a `ModelConfig`. Raises UserError where its weights are stored in a way that is not read, or are
    not whole.
    """
    from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
    from roma_ds.checkpoint.raw_files import INDEX, WHOLE

    place = Path(model.path)
    if not any((place / name).is_file() for name in (WHOLE, INDEX)):
        return None
    files = CheckpointFiles(model)
    return files.stored_bytes if files.decoding.kinds() else None


def _problems(options: argparse.Namespace) -> Iterator[str]:
    for name in ("world_size", "tokens", "length", "micro_batch"):
        value = getattr(options, name)
        if value < 1:
            yield f"--{name.replace('_', '-')} must be 1 or more, not {value}"
    sizes = {"--device-memory": options.device_memory, "--activation-memory": options.activation_memory}
    for option, text in sizes.items():
        if (problem := _size_problem(text, option)) is not None:
            yield problem
    for name in ("matrix_rate", "link_rate", "disk_rate"):
        value = getattr(options, name)
        if value is not None and value != "measure" and not _is_rate(value):
            more = " or `measure`" if name == "matrix_rate" else ""
            yield f"--{name.replace('_', '-')} must be a number above 0 a second{more}, not '{value}'"
    if (problem := _layers_problem(_layers(options.layers))) is not None:
        yield f"--layers: {problem}"


def _size_problem(text: str, option: str) -> str | None:
    try:
        parse_size(text, option)
    except UserError as error:
        return f"{error.message}; {error.fix}"
    return None


def _layers(text: str) -> Any:
    """`last5` and the like as it is, `11,12` as numbers."""
    parts = text.split(",")
    return tuple(int(part) for part in parts) if all(part.strip().isdigit() for part in parts) else text


def _layers_problem(value: Any) -> str | None:
    from roma_ds.config.constraints import Layers

    problem: str | None = Layers().problem(value)
    return problem


def _is_rate(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and value > 0


def _rates(options: argparse.Namespace) -> Any:
    from roma_ds.network.products import product
    from roma_ds.planner.matrix_rate import matrix_rate
    from roma_ds.planner.question import Rates

    assumed = Rates.assumed(options.device)
    if options.matrix_rate == "measure":
        _check_device(options.device)
        matrix = matrix_rate(options.dtype, MATRIX_SIZE, MATRIX_SECONDS, options.device, product)["median"]
    else:
        matrix = float(options.matrix_rate or assumed.matrix)
    return Rates(matrix, float(options.link_rate or assumed.link), float(options.disk_rate or assumed.disk))


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--matrix-rate measure: there is no CUDA device here to measure",
            "give the rate as a number, for example --matrix-rate 1e14, or --device cpu",
        )
