"""The train stage: from the files of earlier stages to `router.safetensors`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.stored_gates import Survival, stored_dtypes, survival
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig, config_hash
from roma_ds.prefix.feed import Feed
from roma_ds.prefix.prefix_cache import PrefixCache
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.request_set import requests_of
from roma_ds.storage.atomic import make_folder, writing
from roma_ds.storage.gate_digest import gate_digests
from roma_ds.training.batch_order import BatchOrder, chosen_rows
from roma_ds.training.callbacks import Callback
from roma_ds.training.engine import RouterEngine
from roma_ds.training.interruption import Interruption
from roma_ds.training.loop import Training, check_batches
from roma_ds.training.step import StepSettings
from roma_ds.training.targets import Targets

ROUTER_FILE = "router.safetensors"
STATES = "state"
"""Folder of the resume states, beside the router file."""


def write_router_file(
    path: Path, weights: Mapping[int, torch.Tensor], keys: Mapping[int, str], facts: Mapping[str, str]
) -> None:
    """Write router weights, float32 [experts, hidden], under their checkpoint names; `facts` are metadata."""
    tensors = {keys[layer]: weight.contiguous() for layer, weight in weights.items()}
    with writing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **facts})


def _base_gates(files: CheckpointFiles, engine: RouterEngine) -> dict[int, torch.Tensor]:
    """Stored gates [experts, hidden] of the trained layers by number; none where one has another key."""
    keys = {layer: engine.layout.gate_key(layer) for layer in engine.layers}
    known = all(key in files.keys for key in keys.values())
    return {layer: files.read(key) for layer, key in keys.items()} if known else {}


def _about_the_base(files: CheckpointFiles, engine: RouterEngine) -> dict[str, str]:
    """Metadata of a router file by which a merge tells its base from another model."""
    base = _base_gates(files, engine)
    sparse = ",".join(map(str, engine.sparse_layers))
    facts = {"base_layers": str(engine.depth), "moe_layers": sparse}
    return {**facts, **(gate_digests(base) if base else {})}


def _served(
    files: CheckpointFiles, engine: RouterEngine, weights: Mapping[int, torch.Tensor]
) -> Survival | None:
    """What a model with its gates in the checkpoint's types sees of the update; None without its gates."""
    base = {layer: weight.float() for layer, weight in _base_gates(files, engine).items()}
    return survival(base, weights, stored_dtypes(files, engine.layout)) if base else None


def train(
    world: World,
    run: RunConfig,
    ds: Mapping[str, Any],
    prompts: Sequence[Prompt],
    names: Sequence[str],
    targets: Callable[[Sequence[int], int], Targets],
    method: str,
    model_hash: str,
    inputs: str,
    folder: Path,
    interruption: Interruption,
    callbacks: Callable[[RouterEngine], Sequence[Callback]],
    say: Callable[[str], None],
    cache: PrefixCache | None = None,
    penalty: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Train the chosen routers and write `folder`/router.safetensors. A collective.

    names: ids of the prompts' samples, for messages; targets: from the trained layers and the steps of an
    epoch, made on every rank; `inputs`: fingerprint under which resume states are valid; `callbacks`: made
    on every rank for the engine, called on rank 0; `cache`: hidden states of `requests_of(prompts)`, with
    which only the layers from its first on are loaded and run; `penalty`: as `StepSettings`. Returns facts
    for the stage's record.
    """
    with agreement(world):
        global_batch = check_batches(run, world.size)
        requests = requests_of(prompts)
        rows = chosen_rows(len(prompts), run.train.samples, run.train.seed)
        make_folder(folder)
    engine = RouterEngine(world, run, ds, cache.plan.first_layer if cache is not None else None)
    with agreement(world):
        files = CheckpointFiles(run.model)
        base = _about_the_base(files, engine) if world.is_first else {}
    order = BatchOrder(len(rows), run.train.epochs, global_batch, run.train.seed, rows)
    training = Training(
        world=world,
        run=run,
        engine=engine,
        requests=requests,
        feed=Feed(requests.sequences, run.roma.tokens, cache, engine.layout.family.shares_tokens),
        targets=targets(engine.layers, order.steps_per_epoch),
        settings=StepSettings(run.roma.layer_reduction, run.train.task_loss, penalty),
        order=order,
        folder=folder / STATES,
        inputs=inputs,
        names=names,
        interruption=interruption,
        callbacks=callbacks(engine),
        say=say,
    )
    facts = training.run_loop()
    training.targets.close()
    weights = training.routers()
    with agreement(world):
        if world.is_first:
            write_router_file(
                folder / ROUTER_FILE,
                weights,
                {layer: engine.layout.gate_key(layer) for layer in engine.layers},
                {
                    "base_model": run.model.path,
                    "base_model_hash": model_hash,
                    "revision": run.model.revision or "",
                    "layers": ",".join(map(str, engine.layers)),
                    "method": method,
                    "config_hash": config_hash(run),
                    **base,
                },
            )
            facts = {**facts, "served": _served(files, engine, weights)}
    engine.close()
    return facts
