"""The stages that run on all ranks, from data to training; evaluation is in evaluating.py."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from roma_ds.baselines import TRAINED, Pool
from roma_ds.collect import collect
from roma_ds.collect.stage import OUTPUTS as COLLECT_OUTPUTS
from roma_ds.comm import agreement
from roma_ds.embed import embed
from roma_ds.embed.stage import OUTPUTS as EMBED_OUTPUTS
from roma_ds.embed.stage import check_embeddings, embed_inputs
from roma_ds.evaluation.judges import collected_line, judged_facts
from roma_ds.frozen_pass.frozen_model import MONITORS
from roma_ds.index import build_neighbours
from roma_ds.index.stage import outputs as index_outputs
from roma_ds.manifold.kernel import least_inner_product, median_sigma
from roma_ds.monitor.services import open_services
from roma_ds.pipeline.data import make_data
from roma_ds.pipeline.measuring import collect_inputs, generated_answers, kept_folder
from roma_ds.pipeline.session import Session
from roma_ds.pipeline.targets import is_refreshed, make_targets
from roma_ds.pipeline.watchers import watchers
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import read_parquet
from roma_ds.training.batch_order import batch_line, chosen_rows
from roma_ds.training.other_states import has_states
from roma_ds.training.stage import ROUTER_FILE, STATES, train
from roma_ds.training.state_manifest import owner_of, states_in
from roma_ds.training.targets import Targets

WITHOUT_EFFECT = (
    *("save_every", "log_every", "keep_states", "keep_best", "on_non_finite", "prefix_cache"),
    # The size of an update decides the result, not how ranks and micro-batches share it.
    *("batch", "micro_batch", "gradient_accumulation"),
)
"""Keys of `train` that do not decide the result: a run resumes though they changed."""
MOST_RANKS = 1024
"""Numbers of ranks that an earlier training is looked for under."""


def data_stage(session: Session) -> None:
    """Samples on disk; rank 0 works, the others wait."""
    with agreement(session.world):
        if session.world.is_first:
            make_data(session.run, session.folders, session.say)


def embed_stage(session: Session) -> None:
    """Task embeddings of all samples."""
    folders, run = session.folders, session.run
    inputs = embed_inputs(run, session.fingerprint(folders.record("data")))

    def work() -> Mapping[str, Any]:
        training, evaluation = session.samples("samples.parquet"), session.samples("eval.parquet")
        facts = embed(session.world, run, training, evaluation, folders.stage("embed"))
        for note in facts["notes"]:
            session.say(f"embed: {note}")
        return facts

    session.stage("embed", folders.record("embed"), inputs, EMBED_OUTPUTS, work)


def collect_stage(session: Session) -> None:
    """Pretrained routing weights and outcomes of the training samples."""
    folders, run = session.folders, session.run
    inputs = collect_inputs(session)

    def work() -> Mapping[str, Any]:
        samples = session.samples("samples.parquet")
        with agreement(session.world):
            prompts = session.prompts("samples.parquet")
        # Before the pass, whose network the base model's evaluation goes on with.
        generated = generated_answers(session, samples, prompts, inputs)
        facts = collect(
            session.world,
            run,
            samples,
            prompts,
            session.whole,
            folders.stage("collect"),
            lambda prompts: session.prefixes.run_pass("collect", prompts, "collect"),
            generated,
        )
        judged = session.world.from_first(judged_facts(run, samples, generated) if generated else {})
        for name, shares in judged.items():
            session.say(f"collect: {collected_line(name, shares)}")
        session.say(
            f"collect: {facts['successful']} of {facts['samples']} training samples answered right"
            f" ({100 * facts['accuracy']:.1f}%)"
        )
        return {**facts, **({"answers": judged} if judged else {}), "checksums": session.checksums()}

    session.stage("collect", folders.record("collect"), inputs, COLLECT_OUTPUTS, work, cache="collect")
    session.prefixes.forget_unfinished("collect")
    if session.world.is_first:
        shutil.rmtree(kept_folder(session), ignore_errors=True)


def neighbour_pool(session: Session, pool: Pool) -> np.ndarray:
    """bool [samples], who may be a neighbour: of the samples that are trained on, those that `pool` names."""
    train = session.run.train
    with agreement(session.world):
        outcome = read_parquet(session.folders.stage("collect") / "outcome.parquet")
        correct = np.array(outcome["correct"], np.bool_)
        trained = np.zeros_like(correct)
        trained[list(chosen_rows(len(correct), train.samples, train.seed))] = True
    return {"successful": correct, "all": np.ones_like(correct), "wrong": ~correct}[pool] & trained


def index_stage(session: Session, pool: Pool = "successful") -> None:
    """Neighbours of the training samples among those of `pool`."""
    folders, run = session.folders, session.run
    inputs = {
        "embed": session.fingerprint(folders.record("embed")),
        "collect": session.fingerprint(folders.record("collect")),
        "neighbours": run.roma.neighbours,
        "epsilon": run.roma.epsilon,
        "sigma": run.roma.sigma,
        "seed": run.train.seed if run.roma.sigma == "median" else None,
        "index": {name: getattr(run.index, name) for name in ("backend", "factory", "max_neighbours")},
        "candidates": run.index.candidates if run.roma.refresh != "never" else None,
        "samples": [run.train.samples, run.train.seed] if run.train.samples else None,
        "pool": None if pool == "successful" else pool,
    }

    def work() -> Mapping[str, Any]:
        samples = session.samples("samples.parquet")
        with agreement(session.world):
            embeddings = np.load(folders.stage("embed") / "embeddings.npy", mmap_mode="r")
            # A sample that nobody has for a neighbour still looks for its own: all rows must be sound.
            check_embeddings(embeddings, [sample.id for sample in samples])
        roma = run.roma
        with agreement(session.world):
            sigma = median_sigma(embeddings, run.train.seed) if roma.sigma == "median" else float(roma.sigma)
        least = None if roma.epsilon is None else least_inner_product(roma.epsilon, sigma)
        facts = build_neighbours(
            session.world,
            run,
            samples,
            embeddings,
            neighbour_pool(session, pool),
            least,
            folders.stage("index"),
            session.say,
        )
        session.say(
            f"index: {facts['neighbours_mean']:.1f} neighbours a sample, "
            f"{facts['empty_neighbourhoods']} samples without any"
        )
        if facts["capped_neighbourhoods"]:
            session.say(
                f"index: {facts['capped_neighbourhoods']} epsilon-balls held more than index.max_neighbours="
                f"{run.index.max_neighbours}; the most similar are kept"
            )
        return {**facts, "sigma": sigma}

    session.stage("index", folders.record("index"), inputs, index_outputs(run), work)


def train_stage(session: Session, variants: Sequence[str]) -> None:
    """Train the routers of each variant, RoMA and controls alike, on the same data, steps and layers."""
    for name in variants:
        _train_one(session, name)


def _train_one(session: Session, name: str) -> None:
    folders, variant = session.folders, TRAINED[name]
    run = variant.config(session.run)
    settings = asdict(run.train)
    for without_effect in WITHOUT_EFFECT:
        settings.pop(without_effect)
    if run.train.gate_dtype == "float32":
        # As in run folders from before the key.
        del settings["gate_dtype"]
    inputs = {
        "index": session.fingerprint(folders.record("index")),
        "collect": session.fingerprint(folders.record("collect")),
        "variant": name,
        "layers": run.roma.layers,
        "lambda": run.roma.lambda_,
        "lambda_warmup": run.roma.lambda_warmup,
        "layer_reduction": run.roma.layer_reduction,
        "refresh": [run.roma.refresh, run.index.payload] if is_refreshed(run, variant) else "never",
        "train": settings,
        "global_batch": run.train.split(session.world.size).samples,
    }
    folder = folders.training(name)

    def work() -> Mapping[str, Any]:
        session.release_frozen()
        if not session.is_cell:
            session.say(f"train {name}: {batch_line(run.train, session.world.size)}")
            _say_if_stopped_on_others(session, folder / STATES, inputs)
        with agreement(session.world):
            prompts = session.prompts("samples.parquet")
        successful = neighbour_pool(session, variant.pool)
        with agreement(session.world):
            # Before the first step: an interrupted training is one with these settings.
            session.describe()
            ds = _monitored(session, name)
            if session.world.is_first:
                # A service that does not start is named before the network is loaded.
                open_services(ds)

        def targets(layers: Sequence[int], steps_per_epoch: int) -> Targets:
            return make_targets(session, run, variant, successful, layers, steps_per_epoch)

        facts = train(
            world=session.world,
            run=run,
            ds=ds,
            prompts=prompts,
            names=[sample.id for sample in session.samples("samples.parquet")],
            targets=targets,
            method=name,
            model_hash=session.model_hash,
            inputs=fingerprint.of_json(inputs),
            folder=folder,
            interruption=session.interruption,
            callbacks=lambda engine: watchers(session, name, engine),
            say=session.say,
            cache=session.prefixes.open("collect"),
            penalty=variant.penalty,
        )
        return {
            **facts,
            "description": variant.description,
            "world_size": session.world.size,
            "zero_stage": session.ds.get("zero_optimization", {}).get("stage", 0),
        }

    session.stage(f"train {name}", folders.training_record(name), inputs, [ROUTER_FILE], work)


def _say_if_stopped_on_others(session: Session, states: Path, inputs: Mapping[str, Any]) -> None:
    """Without train.batch another number of ranks is another training: say how the one there would go on."""
    train = session.run.train
    with agreement(session.world):
        if train.batch is not None or not session.world.is_first:
            return
        if has_states(states, fingerprint.of_json(inputs)):
            return
        owners = {owner_of(path) for _, path in states_in(states)}
        for ranks in range(1, MOST_RANKS + 1) if owners else ():
            samples = train.split(ranks).samples
            if fingerprint.of_json({**inputs, "global_batch": samples}) in owners:
                there = f"{states} is of the same training with {samples} samples an update"
                session.say(f"{there}: train.batch={samples} goes on from it")


def _monitored(session: Session, name: str) -> dict[str, Any]:
    """The DeepSpeed config of one training; controls and cells write TensorBoard alone."""
    if name == "roma" and not session.is_cell:
        return dict(session.ds)
    config = {key: value for key, value in session.ds.items() if key not in MONITORS}
    if session.ds.get("tensorboard", {}).get("enabled"):
        folder = str(session.folders.training(name))
        board = {"output_path": folder, "job_name": "tensorboard"}
        config["tensorboard"] = {**session.ds["tensorboard"], **board}
    return config
