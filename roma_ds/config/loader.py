"""A run's YAML file and overrides into a checked RunConfig."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from roma_ds.config.conversion import Problem, convert
from roma_ds.config.overrides import Override, apply, parse_override
from roma_ds.config.packaged import packaged_deepspeed
from roma_ds.config.schema import RunConfig
from roma_ds.config.yaml_text import YamlProblem, parse
from roma_ds.errors import UserError

ENDINGS = (".jinja", ".jinja2", ".j2")
"""Of files that hold chat templates: what ends so is no name of a tokenizer's template."""

_FIX = "correct what is named above; `roma-ds init olmoe` prints a config with every key explained"


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `path` describes, with `a.b=c` overrides laid over it and paths made absolute.

    A relative path is relative to the folder of `path`, also when an override gives it. `model.path` and
    `embed.model` are taken for hub ids unless they start with `.`, `/` or `~` or name a folder there; `demo`
    always is the packaged model. `data.chat.template` is a name unless it begins so, ends in .jinja or is a
    file there. A judge MODULE:FUNCTION whose MODULE.py lies there is that file's. `deepspeed` becomes an
    absolute path or the name of a packaged file.

    Raises UserError that lists every problem at once, each with the file or override and the key path.
    """
    return parse_run_config(_read(path), path, overrides)


def parse_run_config(text: str, path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Like `load_run_config` for the `text` of a file that lies, or would lie, at `path`."""
    run: RunConfig = parse_section(text, path, overrides, RunConfig, _FIX)
    return _with_absolute_paths(replace(run, source=_absolute(path)))


def usable_part(path: Path, overrides: Sequence[str] = ()) -> RunConfig | None:
    """The run of `load_run_config` without the keys and values that it refuses; None where that is no run.

    For `check`, which goes on with the rest. Raises UserError where the file cannot be read.
    """
    try:
        values = parse(_read(path))
    except YamlProblem:
        return None
    if not isinstance(values, dict):
        return None
    values, _ = apply(values, [item for item in map(parse_override, overrides) if isinstance(item, Override)])
    while True:
        result = convert(values, RunConfig)
        if not result.problems:
            return _with_absolute_paths(replace(result.value, source=_absolute(path)))
        # The last first, so that places in a list stay those that the problems name.
        dropped = [_drop(values, problem.path.split(".")) for problem in reversed(result.problems)]
        if True not in dropped:
            return None


def _drop(values: Any, keys: Sequence[str]) -> bool:
    """Take out what lies at a key path; whether there was anything."""
    *around, last = keys
    try:
        for key in around:
            values = values[int(key) if isinstance(values, list) else key]
        del values[int(last) if isinstance(values, list) else last]
    except (LookupError, TypeError, ValueError):
        return False
    return True


def parse_section(text: str, path: Path, overrides: Sequence[str], section: type, fix: str) -> Any:
    """The `section` that `text` describes. Raises UserError with every problem and `fix`."""
    try:
        values = parse(text)
    except YamlProblem as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise UserError(f"{place}: not valid YAML: {error.message}", "correct that line") from error
    values = {} if values is None else values
    parsed = [parse_override(text) for text in overrides]
    given = [item for item in parsed if isinstance(item, Override)]
    problems = [
        f"override {text}: {item.message}"
        for text, item in zip(overrides, parsed, strict=True)
        if isinstance(item, Problem)
    ]
    values, misplaced = apply(values, given) if isinstance(values, dict) else (values, [])
    result = convert(values, section)
    problems += [_located(problem, path, given) for problem in (*misplaced, *result.problems)]
    if problems:
        title = "" if len(problems) == 1 else f"{path.name}: {len(problems)} problems:\n"
        raise UserError(title + "\n".join(problems), fix)
    return result.value


def _read(path: Path) -> str:
    return read_text(path, "give the path of a run config; `roma-ds init olmoe > run.yaml` makes one")


def read_text(path: Path, fix: str) -> str:
    """The text of a config file. Raises UserError with `fix` where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", fix) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{path} cannot be read: {reason}", fix) from error


def _located(problem: Problem, path: Path, overrides: Sequence[Override]) -> str:
    """The problem with its origin: the last override of this key or around it, else the file."""
    where = problem.path or "the file"
    for override in reversed(overrides):
        within = f"{problem.path}.".startswith(f"{override.path}.")
        if within or (not problem.misfit and f"{override.path}.".startswith(f"{problem.path}.")):
            return f"override {override.text}: {where}: {problem.message}"
    return f"{path.name}: {where}: {problem.message}"


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _with_absolute_paths(run: RunConfig) -> RunConfig:
    folder = run.source.parent

    def file(value: str | tuple[str, ...] | None) -> Any:
        if isinstance(value, tuple):
            return tuple(file(one) for one in value)
        return None if value is None else str(_absolute(folder / os.path.expanduser(value)))

    def template(value: str | None) -> str | None:
        if value is None:
            return None
        named = value.startswith((".", "/", "~")) or value.endswith(ENDINGS)
        return str(file(value)) if named or os.path.isfile(folder / value) else value

    def judge(value: str | None) -> str | None:
        place, colon, function = (value or "").rpartition(":")
        if not colon:
            return value
        beside = place if place.endswith(".py") else f"{place.replace('.', '/')}.py"
        is_file = place.endswith(".py") or os.path.isfile(folder / beside)
        return f"{file(beside)}:{function}" if is_file else value

    def folder_or_id(value: str) -> str:
        local = value.startswith((".", "/", "~")) or os.path.isdir(folder / value)
        return str(file(value)) if local and value != "demo" else value

    return replace(
        run,
        model=replace(run.model, path=folder_or_id(run.model.path)),
        data=replace(
            run.data,
            train=tuple(
                replace(item, path=file(item.path), judge=judge(item.judge)) for item in run.data.train
            ),
            data_root=file(run.data.data_root),
            chat=replace(run.data.chat, template=template(run.data.chat.template)),
        ),
        embed=replace(run.embed, model=folder_or_id(run.embed.model)),
        eval=replace(
            run.eval,
            tasks=tuple(
                replace(task, path=file(task.path), shots_path=file(task.shots_path))
                for task in run.eval.tasks
            ),
            data_root=file(run.eval.data_root),
        ),
        deepspeed=packaged_deepspeed(run.deepspeed, folder) or file(run.deepspeed),
        output_dir=file(run.output_dir),
    )
