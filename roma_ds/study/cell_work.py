"""One cell of a study: train what its variant trains, answer the questions, measure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from roma_ds.baselines import TRAINED
from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.comm import agreement
from roma_ds.data.tasks import scoring_of
from roma_ds.pipeline import stages
from roma_ds.sequences.scores import Scores
from roma_ds.study import measures
from roma_ds.study.alone import Alone
from roma_ds.study.oracle_targets import make_oracle_targets
from roma_ds.study.shared import TEXT_TASK, chosen_prompts, part_of
from roma_ds.study.work import Work
from roma_ds.study.writing import with_written_answers
from roma_ds.training.stage import ROUTER_FILE

OUTCOME = "outcome.parquet"


def run_cell(work: Work) -> dict[str, Any]:
    """Train and measure; returns the cell's facts, whole on rank 0, which has its answers. A collective."""
    kind = work.cell.entry.method.kind
    resettable = measures.reset_peak(work.session.world.device)
    started, processor = time.monotonic(), time.process_time()
    facts: dict[str, Any] = {"train_seconds": 0.0, "trainable_parameters": 0}
    if kind == "base":
        scores, written = _score(work, {})
        facts |= written
    elif kind == "routers":
        scores, facts = _routers(work)
    else:
        scores, facts = Alone(work).run()
    facts["seconds"] = round(time.monotonic() - started, 3)
    facts["processor_seconds"] = round(time.process_time() - processor, 3)
    facts["peak_memory_bytes"] = measures.peak_memory(work.session.world.device) if resettable else None
    if scores is None:
        return facts
    return {**facts, **_measured(work, scores, facts)}


def _measured(work: Work, scores: Scores, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything from the scores of `facts["rows"]`, on the process that has them."""
    cell, layout = work.cell, work.session.whole.layout
    rows: list[int] = facts.get("rows") or work.rows
    samples = [work.tasks.samples[row] for row in rows]
    text = [place for place, sample in enumerate(samples) if sample.task == TEXT_TASK]
    asked = [place for place, sample in enumerate(samples) if sample.task != TEXT_TASK]
    questions = [samples[place] for place in asked]
    answered = part_of_scores(scores, asked)
    written = {name: [values[place] for place in asked] for name, values in facts.get("written", {}).items()}
    measures.write_outcome(cell.folder / OUTCOME, questions, answered, written)
    scoring = {task.name: scoring_of(cell.run, task) for task in cell.run.eval.tasks}
    found: dict[str, Any] = measures.accuracies(questions, answered, scoring)
    if cell.purpose == "select":
        return found
    prompts = [work.session.prompts("eval.parquet")[row] for row in rows]
    found["perplexity"] = measures.text_perplexity(prompts, scores, text)
    places = [rows[place] for place in asked]
    routing = np.asarray(work.tables.eval_routing[places])
    routing[:, work.columns if facts.get("partial") else slice(None)] = answered.routing
    found["side_effects"] = measures.routing_effects(
        routing, work.tables.eval_routing[places], work.columns, layout.top_k
    )
    found["alignment"] = measures.alignments(
        questions,
        tuple(dict.fromkeys(sample.task for sample in questions)),
        np.asarray(work.tables.eval_embeddings[places]),
        routing,
        work.columns,
        cell.run.roma.neighbours,
        work.study.alignment_limit,
    )
    return found


def part_of_scores(scores: Scores, places: Sequence[int]) -> Scores:
    """The scores of some of the samples."""
    chosen = list(places)
    names = ("target_loglikelihood", "loss", "predicted", "correct", "margin", "routing")
    return replace(
        scores,
        option_loglikelihoods=[scores.option_loglikelihoods[place] for place in chosen],
        **{name: getattr(scores, name)[chosen] for name in names},
    )


def _score(work: Work, weights: Mapping[int, Any]) -> tuple[Scores | None, dict[str, Any]]:
    """The model with these routers on the cell's questions, and what it wrote; on rank 0. A collective."""
    session, run = work.session, work.cell.run
    first = session.prefixes.layer("eval")
    model = session.frozen() if first is None else session.suffix(first)
    model.use_routers(weights)
    with agreement(session.world):
        everyone = session.prompts("eval.parquet")
        prompts = chosen_prompts(everyone, work.rows)
    cache = part_of(session.prefixes.open("eval"), everyone, work.rows)
    scores = model.score(prompts, run.roma.tokens, run.eval.batch_size, f"eval {work.cell.title}", cache)
    everywhere = session.whole.layout.layers
    if scores is not None and model.layout.layers != everywhere:
        routing = np.asarray(work.tables.eval_routing[work.rows])
        routing[:, [everywhere.index(layer) for layer in model.layout.layers]] = scores.routing
        scores = replace(scores, routing=routing)

    samples = [work.tasks.samples[row] for row in work.rows]
    return with_written_answers(
        session, samples, prompts, scores, lambda: session.decoder(weights), work.cell.title
    )


def _routers(work: Work) -> tuple[Scores | None, dict[str, Any]]:
    session, cell = work.session, work.cell
    variant = TRAINED[cell.entry.method.name]
    stages.index_stage(session, variant.pool)
    started = time.monotonic()
    facts: dict[str, Any] = {}
    if variant.oracle:
        facts = make_oracle_targets(work)
    stages.train_stage(session, [variant.name])
    trained = session.extra(session.folders.training_record(variant.name))
    facts |= {
        "train_seconds": round(time.monotonic() - started, 3),
        "trainable_parameters": trained["trainable_parameters"],
        "total_parameters": trained["total_parameters"],
        "steps": trained["steps"],
        "inference": 1.0,
    }
    with agreement(session.world):
        weights = read_router_file(session.folders.training(variant.name) / ROUTER_FILE).by_layer()
    scores, written = _score(work, weights)
    return scores, {**facts, **written}
