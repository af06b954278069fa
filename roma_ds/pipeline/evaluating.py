"""The evaluation stage: the base model and each trained variant on all evaluation samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.gate_keys import stored_layout
from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.checkpoint.stored_gates import as_stored, stored_dtypes
from roma_ds.comm import agreement
from roma_ds.data.learned import generated_datasets
from roma_ds.errors import UserError
from roma_ds.evaluation.results import AS_SERVED
from roma_ds.evaluation.stage import evaluate, outputs
from roma_ds.pipeline.measuring import evaluated_rows, say_accuracies, scoring_inputs, written_answers
from roma_ds.pipeline.prefixes import Part
from roma_ds.pipeline.session import Session
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.scores import Scores
from roma_ds.storage import fingerprint
from roma_ds.training.stage import ROUTER_FILE
from roma_ds.writing.generation import Written

Weights = Mapping[int, torch.Tensor]
Scored = tuple[Scores | None, tuple[int, ...]]


def eval_stage(session: Session, variants: Sequence[str]) -> None:
    """Measure the base model and each trained variant on all evaluation samples, where the run has tasks."""
    if not session.run.eval.tasks:
        return
    if "base" not in variants and session.prefixes.layer("eval") is not None:
        # The frozen pass that measures the base model leaves the cache from which the others are run.
        variants = ("base", *variants)
    for name in variants:
        _evaluate_one(session, name)
        if name == "roma" and not session.is_cell:
            _evaluate_as_served(session)


def _evaluate_as_served(session: Session) -> None:
    """RoMA's routers rounded to the types that the checkpoint has its gates in, where that changes them."""
    router = session.folders.training("roma") / ROUTER_FILE
    with agreement(session.world):
        weights = read_router_file(router).by_layer()
        files = CheckpointFiles(session.run.model)
        rounded = as_stored(weights, stored_dtypes(files, stored_layout(session.whole.layout, files)))
        dtype = getattr(torch, session.run.model.dtype)
        same = all(torch.equal(rounded[layer].to(dtype), weights[layer].to(dtype)) for layer in weights)
    if not same:
        _evaluate_one(session, AS_SERVED, rounded)
    elif session.world.is_first:
        # Of an earlier training.
        for name in (*outputs(AS_SERVED), f"{AS_SERVED}.stage.json"):
            (session.folders.evaluation(AS_SERVED) / name).unlink(missing_ok=True)


def _scored(session: Session, part: Part, weights: Weights, prompts: Sequence[Prompt], title: str) -> Scored:
    """Scores of the model with these router weights, and the MoE layers whose routing they hold."""
    first, run = session.prefixes.layer(part), session.run
    if first is not None and min(weights, default=first) < first:
        # Routers from elsewhere may be of layers before the one that the cache enters.
        first = None
    model = session.frozen() if first is None else session.suffix(first)
    model.use_routers(weights)
    cache = session.prefixes.open(part) if first is not None else None
    scores = model.score(prompts, run.roma.tokens, run.eval.batch_size, title, cache)
    return scores, model.layout.layers


def _variant_scores(
    session: Session, name: str, weights: Weights, prompts: Sequence[Prompt]
) -> Scores | None:
    scores, layers = _scored(session, "eval", weights, prompts, f"eval {name}")
    everywhere = session.whole.layout.layers
    if scores is None or layers == everywhere:
        return scores
    # Layers before the cache are the pretrained ones, and so is their routing.
    routing = np.load(session.folders.evaluation("base") / "base.routing.npy")
    routing[:, [everywhere.index(layer) for layer in layers]] = scores.routing
    return replace(scores, routing=routing)


def _successful_now(session: Session, weights: Weights) -> int:
    """How many training samples the tuned model answers right: the size of S after training."""
    with agreement(session.world):
        prompts = session.prompts("samples.parquet")
    scores, _ = _scored(session, "collect", weights, prompts, "S after training")
    count: int = session.world.from_first(int(scores.correct.sum()) if scores is not None else 0)
    return count


def _evaluate_one(session: Session, name: str, rounded: Weights | None = None) -> None:
    """Measure one variant; rounded: in place of what its router file has."""
    folders, run = session.folders, session.run
    trained = "roma" if name == AS_SERVED else name
    router = None if name == "base" else folders.training(trained) / ROUTER_FILE
    with agreement(session.world):
        if router is not None and not router.exists():
            raise UserError(f"{router} does not exist", f"train the variant {name} first: roma-ds train")
    inputs = {
        "data": session.fingerprint(folders.record("data")),
        **session.model_inputs,
        "router": session.world.from_first(fingerprint.of_file(router) if router else "base"),
        "tokens": run.roma.tokens,
        **scoring_inputs(run),
    }

    def work() -> Mapping[str, Any]:
        samples = session.samples("eval.parquet")
        with agreement(session.world):
            weights = rounded or ({} if router is None else read_router_file(router).by_layer())
            prompts = session.prompts("eval.parquet")
            rows = evaluated_rows(folders)

        def score(prompts: Sequence[Prompt]) -> Scores | None:
            if router is None:
                return session.prefixes.run_pass("eval", prompts, "eval base")
            return _variant_scores(session, name, weights, prompts)

        def write(prompts: Sequence[Prompt]) -> list[Written | None] | None:
            model = session.decoder(weights)
            return written_answers(
                model, run, session.tokenizer, samples, prompts, f"write {name}", session.chat
            )

        facts = evaluate(
            session.world,
            run,
            name,
            samples,
            prompts,
            folders.evaluation(name),
            score,
            write if session.generates else None,
            rows,
        )
        # Where answers are generated, S would be as much work as its collection.
        if name == "roma" and not generated_datasets(run):
            facts = {**facts, "training_successful": _successful_now(session, weights)}
        say_accuracies(session.say, name, facts)
        return facts

    cache: Part | None = "eval" if name == "base" else None
    session.stage(f"eval {name}", folders.evaluation_record(name), inputs, outputs(name), work, cache)
    if name == "base":
        session.prefixes.forget_unfinished("eval")
