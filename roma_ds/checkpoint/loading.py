"""Config and tokenizer of a checkpoint, and what to say where it cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from roma_ds.config import ModelConfig
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.families.own_models import register_own_models
from roma_ds.storage import fingerprint
from roma_ds.storage.hub import why_unreachable

PACKAGED = Path(__file__).parent.parent / "demo" / "model"


def checkpoint(model: ModelConfig) -> str:
    """Folder or hub id of the checkpoint; `demo` is the packaged tiny model."""
    return str(PACKAGED) if model.path == "demo" else model.path


def is_local(path: str) -> bool:
    """Whether `path` can name nothing on the hub, whose ids are `name` or `owner/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def _explain(error: Exception, model: ModelConfig) -> Exception:
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    # Of transformers' checks of a config the first line only names the check.
    text = " ".join(lines) if isinstance(error, StrictDataclassError) else lines[0]
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


def load_config(model: ModelConfig) -> Any:
    """The transformers config of the checkpoint, without weights. Raises UserError when it is not there."""
    from transformers import AutoConfig

    register_own_models()
    ask_hub(model)
    try:
        return AutoConfig.from_pretrained(
            checkpoint(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _explain(error, model) from error
    except StrictDataclassError as error:
        raise _explain(error, model) from error


def load_generation_config(model: ModelConfig, config: Any) -> Any:
    """transformers' settings for generation: the checkpoint's file, else what `config` says.

    Checkpoints tuned for chat name more end tokens there than in their config.
    """
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(checkpoint(model), revision=model.revision)
    except (OSError, ValueError):
        return GenerationConfig.from_model_config(config)


def checkpoint_hash(model: ModelConfig, config: Any) -> str:
    """What a changed checkpoint is told by: names, sizes and times of its files, on the hub its commit."""
    location = Path(checkpoint(model))
    if location.is_dir():
        return fingerprint.of_folder(location)
    return fingerprint.of_json([str(location), getattr(config, "_commit_hash", None)])


def load_tokenizer(model: ModelConfig) -> Any:
    """The checkpoint's tokenizer. Raises UserError when it is not there, or is empty."""
    from transformers import AutoTokenizer

    register_own_models()
    ask_hub(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _explain(error, model) from error
    # Without its files transformers makes an empty one of the kind that the model type has.
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise UserError(
            f"model.path: {model.path} has no tokenizer: its files (tokenizer.json, or tokenizer.model or "
            "vocab.json with tokenizer_config.json) are not there, or empty",
            "copy them into the folder from the checkpoint that this model came from",
        )
    return tokenizer


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
