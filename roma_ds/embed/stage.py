"""Embed training and evaluation samples, each rank its share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.data.sample import Sample
from roma_ds.embed.encoder import check_embeddings, embed_texts, load_encoder, text_of
from roma_ds.progress import Progress
from roma_ds.storage.atomic import make_folder, write_npy

OUTPUTS = ["embeddings.npy", "eval_embeddings.npy"]


def embed_inputs(run: RunConfig, data: str) -> dict[str, Any]:
    """All that the outputs depend on. data: fingerprint of the data stage."""
    return {"data": data, "embed": {"model": run.embed.model, "text": run.embed.text}}


def embed(
    world: World, run: RunConfig, training: Sequence[Sample], evaluation: Sequence[Sample], folder: Path
) -> dict[str, Any]:
    """Write `embeddings.npy` and `eval_embeddings.npy`, float32 [samples, dim], L2-normalised. A collective.

    Equal texts are embedded once. Returns facts for the stage's record.
    """
    samples = [*training, *evaluation]
    texts = [text_of(sample, run.embed.text) for sample in samples]
    # Neighbouring lengths in a batch save padding; embedding each text once keeps duplicates bit-equal.
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    size = run.embed.batch_size
    with agreement(world):
        encoder = load_encoder(run.embed, world.device)
        # Ranks share batches, not texts: padding, and so the last bits, are the same on any number of ranks.
        batches = [unique[start : start + size] for start in range(0, len(unique), size)]
        mine = [text for index in world.share(len(batches)) for text in batches[index]]
        with Progress(len(mine), "embed", "texts", enabled=world.is_first) as progress:
            vectors = embed_texts(encoder, mine, size, progress)
    gathered = world.gather_to_first(vectors)
    width = 0
    with agreement(world):
        if gathered is not None:
            table = _by_text(unique, gathered, size)
            everything = np.stack([table[text] for text in texts])
            check_embeddings(everything, [sample.id for sample in samples])
            width = everything.shape[1]
            make_folder(folder)
            write_npy(folder / "embeddings.npy", everything[: len(training)])
            write_npy(folder / "eval_embeddings.npy", everything[len(training) :])
    facts: dict[str, Any] = world.from_first(
        {"model": run.embed.model, "text": run.embed.text, "dimension": width, "unique_texts": len(unique)}
    )
    return facts


def _by_text(
    unique: Sequence[str], gathered: list[NDArray[np.float32]], size: int
) -> dict[str, NDArray[np.float32]]:
    """Rows by text: batch b of `size` texts was embedded by rank b % ranks, after its earlier batches."""
    ranks = len(gathered)
    return {
        text: gathered[index // size % ranks][index // size // ranks * size + index % size]
        for index, text in enumerate(unique)
    }
