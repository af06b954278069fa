"""The run configs and DeepSpeed JSON files that come with the package."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from roma_ds.config.spelling import did_you_mean
from roma_ds.errors import UserError

_HERE = Path(__file__).parent
_PRESETS = _HERE / "presets"
_STUDIES = _HERE / "studies"
_OUTLINES = _HERE / "outlines"
_DEEPSPEED = _HERE / "deepspeed"


def preset_names() -> tuple[str, ...]:
    """Names that `preset_text` and `roma-ds init` take, sorted."""
    return tuple(sorted(file.stem for file in _PRESETS.glob("*.yaml")))


def preset_text(name: str) -> str:
    """The commented YAML of a packaged run config. Raises UserError for an unknown name."""
    names = preset_names()
    if name not in names:
        raise UserError(
            f"no packaged config {name!r}{did_you_mean(name, names)}", f"choose one of {', '.join(names)}"
        )
    return (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def study_names() -> tuple[str, ...]:
    """Names that `study_text` and `roma-ds init` take, sorted."""
    return tuple(sorted(file.stem for file in _STUDIES.glob("*.yaml")))


def study_text(name: str) -> str:
    """The commented YAML of a packaged study. Raises UserError for an unknown name."""
    names = study_names()
    if name not in names:
        raise UserError(
            f"no packaged study {name!r}{did_you_mean(name, names)}", f"choose one of {', '.join(names)}"
        )
    return (_STUDIES / f"{name}.yaml").read_text(encoding="utf-8")


def outline_text(name: str) -> str:
    """The commented YAML of a config that is filled in before it is one."""
    return (_OUTLINES / f"{name}.yaml").read_text(encoding="utf-8")


def deepspeed_names() -> tuple[str, ...]:
    """Names of the packaged DeepSpeed JSON files, sorted."""
    return tuple(sorted(file.stem for file in _DEEPSPEED.glob("*.json")))


def packaged_deepspeed(value: str, folder: Path) -> str | None:
    """NAME where `value` is `ds_configs/NAME.json` or `NAME` of a packaged file.

    None for any other value, and where a file of that path lies in `folder`.
    """
    if os.path.isfile(folder / value):
        return None
    path = PurePosixPath(value)
    if str(path.parent) not in (".", "ds_configs") or path.suffix not in ("", ".json"):
        return None
    return path.stem if path.stem in deepspeed_names() else None


def deepspeed_file(value: str) -> Path:
    """The file behind `RunConfig.deepspeed`, which holds a packaged name or an absolute path."""
    return _DEEPSPEED / f"{value}.json" if value in deepspeed_names() else Path(value)
