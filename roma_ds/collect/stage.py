"""Run the pretrained model once over the training samples and keep routing weights and outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roma_ds.checkpoint.blueprint import Blueprint
from roma_ds.collect.outcomes import Generated, with_generated
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.data.sample import Sample
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.scores import Scores
from roma_ds.storage.atomic import make_folder, write_npy, write_parquet

OUTPUTS = ["routing.npy", "outcome.parquet"]


def collect(
    world: World,
    run: RunConfig,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    whole: Blueprint,
    folder: Path,
    score: Callable[[Sequence[Prompt]], Scores | None],
    generated: Sequence[Generated | None] | None = None,
) -> dict[str, Any]:
    """Write `routing.npy` and `outcome.parquet`; row order is that of `samples`. A collective.

    prompts: of the samples; score: runs the pretrained model over them; a collective, complete on rank 0.
    generated: on rank 0, by sample the answers that judge it; None where likelihood judges it.

    routing.npy: float16 [samples, MoE layers, experts], softmax over all routed experts in float32,
    averaged over the prompt tokens that `roma.tokens` names.

    Returns facts for the stage's record.
    """
    scores = score(prompts)
    facts: dict[str, Any] = {}
    with agreement(world):
        if scores is not None:
            columns: dict[str, Any] = {}
            if generated is not None and any(generated):
                scores, columns = with_generated(scores, generated, run.collect.right_share)
            make_folder(folder)
            write_npy(folder / "routing.npy", scores.routing)
            write_parquet(
                folder / "outcome.parquet",
                {
                    "id": [sample.id for sample in samples],
                    "split": [sample.split for sample in samples],
                    "predicted": scores.predicted,
                    "answer": [sample.answer for sample in samples],
                    "correct": scores.correct,
                    "margin": scores.margin,
                    "loss": scores.loss,
                    **columns,
                },
            )
            facts = {
                "samples": len(samples),
                "successful": int(scores.correct.sum()),
                "accuracy": float(scores.correct.mean()),
                "loss": float(np.mean(scores.loss)),
                "truncated": sum(prompt.truncated for prompt in prompts),
                "tokens": scores.tokens_read,
                "layers": list(whole.layout.layers),
                "experts": whole.layout.experts,
                "top_k": whole.layout.top_k,
                "family": whole.layout.family.name,
                "total_parameters": whole.total_parameters,
            }
    shared: dict[str, Any] = world.from_first(facts)
    return shared
