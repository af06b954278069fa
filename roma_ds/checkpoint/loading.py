"""Config and tokenizer of a checkpoint, and what to say where it cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from roma_ds.config import ModelConfig
from roma_ds.errors import EnvironmentFault, RomaError, UserError, full_disk, out_of_memory
from roma_ds.families.composite import TEXT, text_part, whole_config
from roma_ds.families.config_values import STORED_AS, settled
from roma_ds.families.own_models import register_own_models
from roma_ds.families.unusable_config import UnusableConfig, mentioned, shown
from roma_ds.storage import fingerprint
from roma_ds.storage.hub import why_unreachable

PLAIN_TEXT = "Question: a"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "*.spm", "*.tiktoken", "vocab.*", "tekken.json")
"""Files, any of which may hold the vocabulary of a tokenizer."""
PACKAGED = Path(__file__).parent.parent / "demo" / "model"


def checkpoint(model: ModelConfig) -> str:
    """Folder or hub id of the checkpoint; `demo` is the packaged tiny model."""
    return str(PACKAGED) if model.path == "demo" else model.path


def is_local(path: str) -> bool:
    """Whether `path` can name nothing on the hub, whose ids are `name` or `owner/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    # Of transformers' checks of a config the first line only names the check.
    return " ".join(lines) if isinstance(error, StrictDataclassError) else lines[0]


def _explain(error: Exception, model: ModelConfig) -> Exception:
    text = _said(error)
    if Path(checkpoint(model)).exists():
        return UserError(
            f"model.path: {model.path} cannot be loaded: {text}", "check the files of the checkpoint"
        )
    return not_found(model, text)


def not_found(model: ModelConfig, text: str) -> UserError:
    """For a checkpoint that is neither here nor on the hub. text: what the library says."""
    if is_local(model.path):
        return UserError(
            f"model.path: '{model.path}' does not exist", "give the folder of a checkpoint, or a hub id"
        )
    reason = why_unreachable()
    where = f"was not found on the hub: {text}" if reason is None else f"not in the hub's cache ({reason})"
    return UserError(
        f"model.path: '{model.path}' is no folder here and {where}",
        "give the folder of a checkpoint, or a hub id with network access",
    )


def ask_hub(model: ModelConfig) -> None:
    """Before anything is fetched: without network its cache alone is used, with no wait for each file."""
    if not Path(checkpoint(model)).exists() and not is_local(model.path):
        why_unreachable()


@contextmanager
def reading_faults(model: ModelConfig) -> Iterator[None]:
    """Turn whatever a library raises while it reads small files of a checkpoint into a UserError.

    What the machine lacks is raised as it is. For nothing else: weights have faults of other kinds.
    """
    try:
        yield
    except RomaError:
        raise
    except Exception as error:
        lack = full_disk(error) or out_of_memory(error)
        raise lack or _explain(error, model) from error


def load_config(model: ModelConfig) -> Any:
    """The transformers config of the checkpoint, without weights, and without what says how to run it or how
    weights are stored.

    Of a checkpoint of several parts it is that of the text part, which remembers the whole one. Raises
    UserError when it is not there, or has values of which no config can be made.
    """
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    register_own_models()
    ask_hub(model)
    place = checkpoint(model)
    with reading_faults(model):
        values, _ = PreTrainedConfig.get_config_dict(place, revision=model.revision)
        if not isinstance(values, dict):
            raise ValueError("its config.json is no JSON object")
        kind = values.get("model_type", "")
        if not isinstance(kind, str):
            raise ValueError(f"model_type is {shown(kind)} in its config.json, the name of a type is meant")
        own_code = model.trust_remote_code and "auto_map" in values
        if own_code or kind not in CONFIG_MAPPING:
            config = AutoConfig.from_pretrained(
                place, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
            for owner in filter(None, (config, getattr(config, TEXT, None))):
                for name in STORED_AS:
                    vars(owner).pop(name, None)
            return config
        return text_part(_made(CONFIG_MAPPING[kind], values, _config_file(model), place))


def _made(kind: Any, values: dict[str, Any], file: str, place: str) -> Any:
    """The config of class `kind` with these values. Raises UnusableConfig."""
    usable = settled(kind, values, file)
    try:
        return kind.from_dict({**usable, "name_or_path": place})
    except Exception as error:
        named = mentioned(_said(error), values)
        said = f"{_said(error)} ({named})" if named else _said(error)
        raise UnusableConfig(
            f"{file}, of model type '{kind.model_type}', cannot be used: {said}",
            "give the values that the checkpoint was saved with",
        ) from error


def _config_file(model: ModelConfig) -> str:
    place = Path(checkpoint(model))
    return f"model.path: {place if place.is_file() else f'{model.path}/config.json'}"


def load_generation_config(model: ModelConfig, config: Any) -> Any:
    """transformers' settings for generation: the checkpoint's file, else what `config` says.

    Checkpoints tuned for chat name more end tokens there than in their config.
    """
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(checkpoint(model), revision=model.revision)
    except (OSError, AttributeError, LookupError, TypeError, ValueError):
        return GenerationConfig.from_model_config(config)


def checkpoint_hash(model: ModelConfig, config: Any) -> str:
    """What a changed checkpoint is told by: names, sizes and times of its files, on the hub its commit."""
    location = Path(checkpoint(model))
    if location.is_dir():
        return fingerprint.of_folder(location)
    return fingerprint.of_json([str(location), getattr(config, "_commit_hash", None)])


def load_tokenizer(model: ModelConfig) -> Any:
    """The checkpoint's tokenizer. Raises UserError when it is not there, or has no token for any text."""
    from transformers import AutoTokenizer

    # With a config of ours the class of a tokenizer does not depend on how a config.json is written.
    config = load_config(model)
    config = whole_config(config) or config
    place = Path(checkpoint(model))
    with reading_faults(model):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(place),
                config=config,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
            )
            usable = bool(tokenizer(PLAIN_TEXT, add_special_tokens=False)["input_ids"])
        except Exception:
            if _lacks_tokenizer(place):
                raise _no_tokenizer(model) from None
            raise
    # Without its files transformers makes a tokenizer of special tokens alone, which reads nothing.
    if not usable and _lacks_tokenizer(place):
        raise _no_tokenizer(model)
    if not usable:
        raise UserError(
            f"model.path: the tokenizer of {model.path}, a {type(tokenizer).__name__}, has no token for "
            f"'{PLAIN_TEXT}'",
            "copy all tokenizer files of the model there, tokenizer_config.json among them",
        )
    return tokenizer


def _lacks_tokenizer(place: Path) -> bool:
    return place.is_dir() and not any(any(place.glob(name)) for name in VOCABULARIES)


def _no_tokenizer(model: ModelConfig) -> UserError:
    return UserError(
        f"model.path: {model.path} has no tokenizer files ({', '.join(VOCABULARIES)})",
        "copy the tokenizer files of the model that the weights are from into the folder",
    )


@contextmanager
def memory_faults(model: ModelConfig) -> Iterator[None]:
    """Turn a lack of memory while weights are loaded into an EnvironmentFault."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU torch reports it as a plain RuntimeError of its allocator.
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "allocate memory" not in str(error):
            raise
        raise EnvironmentFault(
            f"not enough memory to load {model.path}: {error}", "use more ranks, or collect.engine=stream"
        ) from error


@contextmanager
def loading_faults(model: ModelConfig) -> Iterator[None]:
    """Turn what transformers raises while it loads weights into a UserError, a lack of memory as above."""
    try:
        with memory_faults(model):
            yield
    except (OSError, ValueError, KeyError) as error:
        raise _explain(error, model) from error
