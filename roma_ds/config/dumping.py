"""A RunConfig back to plain values, to YAML, and to a hash."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from roma_ds.config.conversion import keyed_fields
from roma_ds.config.schema import RunConfig
from roma_ds.config.yaml_text import dump
from roma_ds.storage import fingerprint


def to_dict(section: Any) -> Any:
    """A section, or a value inside one, as dicts, lists and scalars under its YAML keys."""
    if is_dataclass(section):
        values = {key: getattr(section, spec.name) for key, spec in keyed_fields(type(section)).items()}
        if getattr(section, "given_only", False):
            values = {key: value for key, value in values.items() if value not in (None, ())}
        return {key: to_dict(value) for key, value in values.items()}
    if isinstance(section, tuple):
        return [to_dict(item) for item in section]
    return section


def to_yaml(run: RunConfig) -> str:
    """The run with every key and absolute paths; `load_run_config` reads it back to an equal run."""
    return dump(to_dict(run))


def config_hash(run: RunConfig) -> str:
    """16 hexadecimal digits of everything but the output folder and the file that the run came from."""
    values = to_dict(run)
    del values["output_dir"]
    return fingerprint.of_json(values)
