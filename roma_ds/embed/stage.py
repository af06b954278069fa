"""Embed training and evaluation samples, each rank its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.comm import World, agreement
from roma_ds.config import EmbedConfig, RunConfig
from roma_ds.data.sample import Sample
from roma_ds.embed.distinct import Account
from roma_ds.embed.encoder import Encoder, Reading, load_encoder
from roma_ds.embed.texts import text_of
from roma_ds.errors import UserError
from roma_ds.progress import Progress
from roma_ds.storage.atomic import make_folder, write_npy

OUTPUTS = ["embeddings.npy", "eval_embeddings.npy"]


def embed_settings(config: EmbedConfig) -> dict[str, Any]:
    """The keys that decide the vectors. Those that came later stand in it where they are set, so that
    embeddings of runs before them stay up to date."""
    settings = asdict(config)
    settings.pop("batch_size")
    always = {name: settings.pop(name) for name in ("model", "text")}
    return always | {name: value for name, value in settings.items() if value not in (None, False)}


def embed_inputs(run: RunConfig, data: str) -> dict[str, Any]:
    """All that the outputs depend on. data: fingerprint of the data stage."""
    return {"data": data, "embed": embed_settings(run.embed)}


def embed(
    world: World, run: RunConfig, training: Sequence[Sample], evaluation: Sequence[Sample], folder: Path
) -> dict[str, Any]:
    """Write `embeddings.npy` and `eval_embeddings.npy`, float32 [samples, dim], L2-normalised. A collective.

    Equal texts are embedded once, and texts of which the encoder reads the same tokens have one vector.
    Returns facts for the stage's record; of these `notes` are for the user's eyes.
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
        reading = encoder.read(mine)
        with Progress(len(mine), "embed", "texts", enabled=world.is_first) as progress:
            vectors = encoder.embed(mine, size, progress)
    gathered = world.gather_to_first((vectors, reading))
    facts: dict[str, Any] = {}
    with agreement(world):
        if gathered is not None:
            table, lengths = _by_text(len(unique), gathered, size)
            rows = {text: row for row, text in enumerate(unique)}
            places = np.array([rows[text] for text in texts], np.int64)
            everything = table[places]
            check_embeddings(everything, [sample.id for sample in samples])
            make_folder(folder)
            write_npy(folder / "embeddings.npy", everything[: len(training)])
            write_npy(folder / "eval_embeddings.npy", everything[len(training) :])
            facts = {
                **embed_settings(run.embed),
                "dimension": everything.shape[1],
                "unique_texts": len(unique),
                "tokens_read": encoder.limit,
                "notes": list(encoder.notes),
            }
            numbers = _numbers(table)
            for kind, chosen, among in (
                ("training", training, places[: len(training)]),
                ("evaluation", evaluation, places[len(training) :]),
            ):
                part = Account(
                    kind, chosen, numbers[among], lengths[among], _are_cut(encoder, lengths[among])
                )
                facts[kind] = part.facts()
                facts["notes"] += part.lines(run.embed, encoder)
    shared: dict[str, Any] = world.from_first(facts)
    return shared


def _by_text(
    count: int, gathered: list[tuple[NDArray[np.float32], Reading]], size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors [count, dim] and lengths [count] in the order of the texts.

    Batch b of `size` texts was embedded by rank b % ranks, after its earlier batches. Where the encoder read
    the same tokens of several texts, all have the vector of the first: their batches may differ in last bits.
    """
    ranks = len(gathered)
    first: dict[bytes, tuple[int, int]] = {}
    vectors, lengths = [], []
    for index in range(count):
        rank, row = index // size % ranks, index // size // ranks * size + index % size
        reading = gathered[rank][1]
        origin = first.setdefault(reading.digests[row], (rank, row))
        vectors.append(gathered[origin[0]][0][origin[1]])
        lengths.append(int(reading.lengths[row]))
    width = gathered[0][0].shape[1]
    return np.array(vectors, np.float32).reshape(count, width), np.array(lengths, np.int64)


def _numbers(table: NDArray[np.float32]) -> NDArray[np.int64]:
    """One number for each different row."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in table], np.int64)


def _are_cut(encoder: Encoder, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.array([encoder.is_cut(int(length)) for length in lengths], np.bool_)


def check_embeddings(vectors: NDArray[np.float32], ids: Sequence[str]) -> None:
    """Raises UserError naming samples whose embedding is not finite or not of unit length."""
    finite = np.isfinite(vectors).all(axis=1)
    bad = np.flatnonzero(~finite)
    if bad.size:
        raise UserError(
            f"{bad.size} of {len(ids)} embeddings are not finite, first for sample {ids[int(bad[0])]}",
            "check that text, or choose another embed.dtype or embed.model",
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if (zero := np.flatnonzero(lengths == 0)).size:
        raise UserError(
            f"{zero.size} of {len(ids)} embeddings are zero, first for sample {ids[int(zero[0])]}: "
            "the encoder knows nothing of that text",
            "check that text, or choose another embed.model",
        )
    off = np.flatnonzero(np.abs(lengths - 1) > 1e-3)
    if off.size:
        raise UserError(
            f"{off.size} embeddings lack length 1, first sample {ids[int(off[0])]}: {lengths[off[0]]:.3f}",
            "delete the embed folder so that it is made again",
        )
