"""What the manifold term of a training pulls to: as collected, or following training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from roma_ds.baselines import TrainedVariant
from roma_ds.baselines.neighbours import own_neighbours
from roma_ds.comm import agreement, open_transport
from roma_ds.config import RunConfig
from roma_ds.data.learned import generated_rows
from roma_ds.data.store import load_samples
from roma_ds.index import Neighbourhood
from roma_ds.index.live import Snapshot
from roma_ds.index.live_neighbours import LiveNeighbours
from roma_ds.index.neighbourhood import prompt_groups
from roma_ds.index.stage import NEIGHBOURS, load_candidates, open_index
from roma_ds.manifold.kernel import least_inner_product
from roma_ds.pipeline.session import Session
from roma_ds.sequences.encoding import Prompt
from roma_ds.training.live_targets import LiveTargets
from roma_ds.training.targets import ManifoldTargets, Targets

SAMPLES = "samples.parquet"
"""The data stage's file of training samples."""


def oracle_file(folder: Path) -> Path:
    """Where the routing weights lie that Oracle Tuning pulls to, in the folder of its training."""
    return folder / "oracle.routing.npy"


def is_refreshed(run: RunConfig, variant: TrainedVariant) -> bool:
    """Whether S follows the training of a variant: not for one with neighbours of its own or without any."""
    plain = variant.neighbours is None and variant.penalty is None and not variant.oracle
    return run.roma.refresh != "never" and plain and run.roma.lambda_ > 0


def make_targets(
    session: Session,
    run: RunConfig,
    variant: TrainedVariant,
    successful: np.ndarray,
    layers: Sequence[int],
    steps_per_epoch: int,
) -> Targets:
    """Targets for the trained `layers`; successful: bool [samples], S as collected. A collective."""
    folders = session.folders
    collected = session.extra(folders.record("collect"))
    sigma = session.extra(folders.record("index"))["sigma"]
    columns = [list(collected["layers"]).index(layer) for layer in layers]
    with agreement(session.world):
        routing = np.load(folders.stage("collect") / "routing.npy", mmap_mode="r")
        samples = load_samples(folders.stage("data") / SAMPLES)
        groups = prompt_groups([sample.prompt for sample in samples])
    if is_refreshed(run, variant):
        return _live(session, run, groups, routing, columns, sigma, successful, steps_per_epoch)
    with agreement(session.world):
        ids, products = (np.load(folders.stage("index") / name) for name in NEIGHBOURS)
    neighbours = Neighbourhood(ids, products)
    if variant.oracle:
        routing = np.load(oracle_file(folders.training(variant.name)), mmap_mode="r")
        neighbours = own_neighbours(len(samples))
    if variant.neighbours is not None:
        neighbours = variant.neighbours(neighbours, successful, groups, run.train.seed)
    return ManifoldTargets(routing, columns, neighbours, sigma, int(successful.sum()))


def _live(
    session: Session,
    run: RunConfig,
    groups: np.ndarray,
    routing: np.ndarray,
    columns: list[int],
    sigma: float,
    successful: np.ndarray,
    steps_per_epoch: int,
) -> LiveTargets:
    world, folders = session.world, session.folders
    experts = routing.shape[2]
    with agreement(world):
        embeddings = np.load(folders.stage("embed") / "embeddings.npy", mmap_mode="r")
        candidates = load_candidates(folders.stage("index"), run.index.factory)
        generated = generated_rows(run, load_samples(folders.stage("data") / SAMPLES))
        seen = np.array([shows_outcome(prompt) for prompt in session.prompts(SAMPLES)], np.bool_)
        seen[generated] = False
    transport = open_transport(world, run.index.transport)
    index = open_index(world, transport, run, embeddings, groups, len(columns) * experts, searched=False)
    members = np.flatnonzero(successful)
    vectors = routing[members][:, columns].reshape(len(members), -1).astype(np.float32)
    index.load(Snapshot(0, members, vectors))
    least = None if run.roma.epsilon is None else least_inner_product(run.roma.epsilon, sigma)
    count = run.roma.neighbours if least is None else run.index.max_neighbours
    if generated:
        session.say(
            f"index: {len(generated)} samples keep their place in S or outside: generated answers judge "
            "them, and training generates none"
        )
    if others := int((~seen).sum()) - len(generated):
        session.say(
            f"index: {others} samples keep their place in S or outside: their options are texts, "
            "of which training reads the true one alone"
        )
    return LiveTargets(
        LiveNeighbours(index, candidates, embeddings, groups, count, least),
        len(columns),
        experts,
        sigma,
        seen,
        None if run.roma.refresh == "epoch" else int(run.roma.refresh),
        steps_per_epoch,
        run.index.check_every,
        run.index.on_mismatch == "repair",
        session.say,
    )


def shows_outcome(prompt: Prompt) -> bool:
    """Whether the forward pass of training says if a sample is answered right."""
    return prompt.single_token_options or not prompt.options
