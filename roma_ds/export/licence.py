"""The licence of a base model, as its own card states it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from roma_ds.config import ModelConfig

CARD = "README.md"


def base_licence(model: ModelConfig, fetch: bool = False) -> str | None:
    """What the base's card has as its licence; None where there is no card, or it states none.

    The card lies in the checkpoint's folder, or in the hub's cache; fetch: ask the hub for it too.
    """
    text = _card(model, fetch)
    if text is None or not text.startswith("---"):
        return None
    try:
        stated: Any = yaml.safe_load(text.split("\n---", 1)[0])
    except yaml.YAMLError:
        return None
    licence = stated.get("license") if isinstance(stated, dict) else None
    if licence == "other":
        licence = stated.get("license_name") or licence
    return str(licence) if licence else None


def _card(model: ModelConfig, fetch: bool) -> str | None:
    from roma_ds.checkpoint.loading import checkpoint

    place = Path(checkpoint(model))
    if place.is_dir():
        return _text(place / CARD)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    found = try_to_load_from_cache(model.path, CARD, revision=model.revision)
    if not isinstance(found, str) and fetch:
        try:
            found = hf_hub_download(model.path, CARD, revision=model.revision)
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
            found = None
    return _text(Path(found)) if isinstance(found, str) else None


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
