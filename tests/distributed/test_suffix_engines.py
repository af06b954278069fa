"""What the engines of training and evaluation hold of a network, with its prefix cached and without."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.projects import Project
from mixed_project import mixed_project, weights

from roma_ds.comm import World
from roma_ds.testing.local_ranks import on_ranks

pytestmark = pytest.mark.timeout(600)


def live_values() -> Any:
    """Every float32 number that a tensor of this process holds."""
    import torch

    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage()
        for tensor in tensors
        if tensor.device.type == "cpu" and tensor.dtype == torch.float32
    }
    return np.concatenate([torch.empty(0).set_(storage).numpy() for storage in storages.values()])


def held(world: World, config: Path, stage: int, first: int | None) -> tuple[int, float]:
    """Parameters of the training engine, and which share of the first two layers is in this process."""
    from roma_ds.config import load_run_config, resolve_deepspeed
    from roma_ds.training.engine import RouterEngine

    run = load_run_config(config, [f"deepspeed=zero{stage}"])
    engine = RouterEngine(world, run, resolve_deepspeed(run, world.size), first)
    in_memory = live_values()
    prefix = [value.ravel() for name, value in weights(Path(run.model.path)).items() if in_prefix(name)]
    # Norms are all ones.
    varied = np.concatenate([values for values in prefix if values.std() > 0])
    share = float(np.isin(varied, in_memory).mean())
    count = engine.held_parameters
    engine.close()
    return count, share


def in_prefix(name: str) -> bool:
    return name.startswith(("model.embed_tokens.", "model.layers.0.", "model.layers.1."))


def rotary(world: World, config: Path, stage: int, first: int | None, cast: bool) -> list[Any]:
    """(type, largest error) of the rotary frequencies in the engines that train and that evaluate."""
    import torch

    from roma_ds.config import load_run_config, resolve_deepspeed
    from roma_ds.frozen_pass.frozen_model import FrozenModel
    from roma_ds.training.engine import RouterEngine

    run = load_run_config(config, [f"deepspeed=zero{stage}"])
    ds = resolve_deepspeed(run, world.size)
    if cast:
        # What some versions of DeepSpeed do below ZeRO-3 unasked.
        ds = {**ds, "data_types": {"buffer_dtype": "bf16"}}
    found = []
    for make in (
        lambda: RouterEngine(world, run, ds, first),
        lambda: FrozenModel(world, run.model, ds, first),
    ):
        engine = make()
        settings = engine.routed.network.config
        exact = 1.0 / settings.rope_parameters["rope_theta"] ** (
            torch.arange(0, settings.head_dim, 2, dtype=torch.float64) / settings.head_dim
        )
        buffers = [value for name, value in engine.routed.named_buffers() if name.endswith(".inv_freq")]
        found += [(str(value.dtype), float((value.double() / exact - 1).abs().max())) for value in buffers]
        engine.close()
    return found


HELD = [(stage, first) for stage in (0, 3) for first in (2, None)]
CAST = ((0, 2, True), (0, None, True), (2, 2, False), (3, 2, True))


def engine_facts(world: World, project: Path, in_bf16: Path) -> dict[Any, Any]:
    from roma_ds.pipeline.worker import calm_libraries

    calm_libraries()
    found: dict[Any, Any] = {case: held(world, project, *case) for case in HELD}
    return {**found, **{case: rotary(world, in_bf16, *case) for case in CAST}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return mixed_project(tmp_path_factory.mktemp("suffix"), "olmoe", "float32")


@pytest.fixture(scope="module")
def facts(project: Project, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    in_bf16 = mixed_project(tmp_path_factory.mktemp("bf16"), "olmoe", "bfloat16")
    return on_ranks(2, engine_facts, project.config, in_bf16.config)


def test_an_engine_on_cached_states_holds_no_tensor_of_the_prefix(
    facts: list[dict[Any, Any]], project: Project
) -> None:
    sizes = {name: value.size for name, value in weights(project.folder / "model").items()}
    suffix = sum(size for name, size in sizes.items() if not in_prefix(name))
    for rank in facts:
        for (stage, first), (count, share) in ((case, rank[case]) for case in HELD):
            assert count == (sum(sizes.values()) if first is None else suffix)
            # A few values of the suffix are by chance values of the prefix too.
            wanted = 0.0 if first == 2 else 1.0 if stage == 0 else 0.5
            assert share == pytest.approx(wanted, abs=0.01), (stage, first)


@pytest.mark.parametrize(("stage", "first", "cast"), CAST)
def test_rotary_frequencies_stay_exact_in_bf16(
    stage: int, first: int | None, cast: bool, facts: list[dict[Any, Any]]
) -> None:
    """In bfloat16 they would be off by up to 2^-9, and positions of long prompts by whole turns."""
    for rank in facts:
        for kind, error in rank[stage, first, cast]:
            assert kind == "torch.float32"
            assert error < 1e-6
        assert len(rank[stage, first, cast]) == 2
