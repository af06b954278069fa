"""Load a checkpoint as it is, whole or partitioned by ZeRO-3, and refuse one that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from roma_ds.config import ModelConfig
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.storage.atomic import read_json

PACKAGED = Path(__file__).parent.parent / "demo" / "model"


def checkpoint(model: ModelConfig) -> str:
    """Folder or hub id of the checkpoint; `demo` is the packaged tiny model."""
    return str(PACKAGED) if model.path == "demo" else model.path


def _explain(error: Exception, model: ModelConfig) -> Exception:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(checkpoint(model)).exists():
        return UserError(
            f"model.path: {model.path} cannot be loaded: {text}", "check the files of the checkpoint"
        )
    return UserError(
        f"model.path: '{model.path}' is no folder here and was not found on the hub: {text}",
        "give the folder of a checkpoint, or a hub id with network access",
    )


def load_config(model: ModelConfig) -> Any:
    """The transformers config of the checkpoint, without weights. Raises UserError when it is not there."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            checkpoint(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _explain(error, model) from error


def load_tokenizer(model: ModelConfig) -> Any:
    """The checkpoint's tokenizer. Raises UserError when it is not there."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            checkpoint(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _explain(error, model) from error


def check_files(model: ModelConfig) -> None:
    """Raises UserError when a local checkpoint names weight files that are not there.

    For every rank to call before loading, which under ZeRO-3 is a collective and must not fail on one alone.
    """
    folder = Path(checkpoint(model))
    index = folder / "model.safetensors.index.json"
    if not folder.is_dir() or not index.exists():
        return
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise UserError(
            f"model.path: {index} names {missing[0]}, which is not there "
            f"({len(missing)} of {len(shards)} files are missing)",
            "complete the checkpoint",
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


def load_model(model: ModelConfig, zero3: dict[str, Any] | None, device: torch.device) -> Any:
    """The causal LM with every parameter frozen, in eval mode.

    With `zero3`, a resolved DeepSpeed config of stage 3, weights are partitioned over the ranks while
    they are read (transformers' zero.Init path); otherwise they are placed on `device`.

    Raises UserError when tensors are missing or the checkpoint cannot be read, EnvironmentFault when
    memory does not suffice.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    # transformers looks this object up through a weak reference: it must outlive from_pretrained.
    partitioning = HfDeepSpeedConfig(zero3) if zero3 is not None else None
    try:
        with memory_faults(model):
            network, report = AutoModelForCausalLM.from_pretrained(
                checkpoint(model),
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                dtype=getattr(torch, model.dtype),
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise _explain(error, model) from error
    finally:
        del partitioning
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{model.path} lacks {len(missing)} tensors that the model needs, first {missing[0]}",
            "use a complete checkpoint that belongs to this config.json",
        )
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.config.use_cache = False
    if zero3 is None:
        network.to(device)
    return network.eval()
