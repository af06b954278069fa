"""The stream engine: the results of the whole network, layer by layer."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import MECHANISMS, checkpoint
from stream_setting import DEPTH, WORLD, Setting, assert_same, shards
from transformers import AutoConfig, AutoModelForCausalLM

from roma_ds.checkpoint.span import OTHERS, SpanLoader
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.frozen_pass.stream import _Run
from roma_ds.prefix.prefix_cache import open_plan
from roma_ds.sequences.found import COLUMNS
from roma_ds.testing.tiny_models import save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def setting(tiny_model: Path, tmp_path: Path) -> Setting:
    return Setting(tiny_model, tmp_path)


@pytest.mark.parametrize("tokens", ["last1", "middle3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_and_hidden_states_are_those_of_the_whole_network(
    tiny_model: Path, tmp_path: Path, dtype: str, tokens: str
) -> None:
    setting = Setting(tiny_model, tmp_path, dtype, tokens)
    cache = setting.plan("cache")
    found = setting.streamed(cache=cache).run()
    wanted, hidden = setting.resident()
    assert_same(found, wanted)
    assert len(found) == len(setting.requests.sequences) > 30
    assert cache.missing().size == 0
    for number, values in hidden.items():
        assert torch.equal(cache.read([number]), values)


@pytest.mark.parametrize("model_type", MECHANISMS)
def test_every_family_streams(model_type: str, tmp_path: Path) -> None:
    setting = Setting(checkpoint(model_type), tmp_path)
    cache = setting.plan("cache")
    found = setting.streamed(cache=cache).run()
    wanted, hidden = setting.resident()
    for name in COLUMNS:
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-3 if name == "routing" else 2e-5
        )
    entering = setting.whole.entering(setting.first)
    for number, values in hidden.items():
        kept, given = entering.unpack(cache.read([number])), entering.unpack(values)
        assert kept.keys() == given.keys()
        for name, value in given.items():
            torch.testing.assert_close(kept[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dense", [[0], [3], [1, 2]], ids=str)
def test_dense_layers_give_no_routing(tiny_qwen3: Path, tmp_path: Path, dense: list[int]) -> None:
    config = AutoConfig.from_pretrained(tiny_qwen3, mlp_only_layers=dense)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    setting = Setting(tmp_path / "model", tmp_path)
    found = setting.streamed().run()
    wanted = stock_results(setting)
    assert found.routing.shape[1] == DEPTH - len(dense)
    for row, option, loglikelihood in zip(found.row, found.option, found.loglikelihood, strict=True):
        assert abs(wanted[int(row), int(option)] - loglikelihood) < 1e-5


def stock_results(setting: Setting) -> dict[tuple[int, int], float]:
    """Log-likelihoods by row and option from transformers alone, one sequence at a time."""
    network = AutoModelForCausalLM.from_pretrained(setting.model.path, dtype=torch.float32).eval()
    results = {}
    for sequence, option in zip(setting.requests.sequences, setting.requests.options, strict=True):
        read = torch.tensor([[*sequence.prompt, *sequence.continuation[:-1]]])
        with torch.no_grad():
            logits = network(read).logits[0, len(sequence.prompt) - 1 :]
        values = torch.log_softmax(logits, dim=-1)[range(len(sequence.continuation)), sequence.continuation]
        results[sequence.row, option] = float(values.sum())
    return results


def test_stock_transformers_gives_the_same(setting: Setting) -> None:
    found = setting.streamed().run()
    wanted = stock_results(setting)
    for row, option, loglikelihood in zip(found.row, found.option, found.loglikelihood, strict=True):
        assert abs(wanted[int(row), int(option)] - loglikelihood) < 1e-5


def test_a_layer_read_from_a_sharded_checkpoint(tmp_path: Path) -> None:
    whole = Setting(save_tiny(tmp_path / "whole", "qwen3_moe"), tmp_path / "one")
    sharded = Setting(save_tiny(tmp_path / "parts", "qwen3_moe", shard_size="40KB"), tmp_path / "two")
    assert_same(whole.streamed().run(), sharded.streamed().run())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_disk_and_memory_give_the_same_bytes(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    setting = Setting(tiny_model, tmp_path, dtype)
    caches = [setting.plan(name) for name in ("memory", "disk")]
    memory = setting.streamed("work-memory", caches[0]).run()
    disk = setting.streamed("work-disk", caches[1], activation_bytes=0).run()
    assert_same(memory, disk)
    assert shards(caches[0]) == shards(caches[1])
    for name in ("memory", "disk"):
        assert not list((tmp_path / f"work-{name}").glob("activations*")), "large files are gone at the end"


def test_the_next_layer_is_read_while_one_is_at_work(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {step: threading.Event() for step in range(DEPTH + 2)}
    load, through = SpanLoader.load, _Run._through
    threads = set()

    def noted(loader: SpanLoader) -> Any:
        span = loader.span
        step = 0 if span.embedding else span.first + 1
        started[step].set()
        threads.add(threading.get_ident())
        return load(loader)

    def waits(run: _Run, step: int, network: Any) -> None:
        assert started[step + 1].wait(20), "nobody reads the next layer"
        through(run, step, network)

    monkeypatch.setattr(SpanLoader, "load", noted)
    monkeypatch.setattr(_Run, "_through", waits)
    setting.streamed().run()
    assert all(event.is_set() for event in started.values())
    assert threading.get_ident() not in threads


def test_two_layers_are_alive_at_most(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[Any] = []
    alive: list[int] = []
    load, through = SpanLoader.load, _Run._through

    def bytes_of(network: Any) -> int:
        return sum(parameter.nbytes for parameter in network.parameters() if not parameter.is_meta)

    def kept(loader: SpanLoader) -> Any:
        networks.append(loader.network)
        return load(loader)

    def counted(run: _Run, step: int, network: Any) -> None:
        through(run, step, network)
        alive.append(sum(bytes_of(network) > 0 for network in networks))

    monkeypatch.setattr(SpanLoader, "load", kept)
    monkeypatch.setattr(_Run, "_through", counted)
    setting.streamed(activation_bytes=0).run()
    # After each step its own network is gone, and at most the next one has come.
    assert len(networks) == DEPTH + 2 and max(alive) <= 1


def test_memory_is_given_back_without_the_collector(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    seen: list[weakref.ref[Any]] = []
    counts: list[int] = []
    fill = SpanLoader.fill

    def noted(loader: SpanLoader, part: str) -> None:
        counts.append(sum(storage() is not None for storage in seen))
        fill(loader, part)
        for parameter in loader.network.get_submodule(part).parameters() if part != OTHERS else ():
            if parameter.ndim == 3:
                memory = parameter.detach().numpy()
                parameter.data = torch.from_numpy(memory)
                seen.append(weakref.ref(memory))

    monkeypatch.setattr(SpanLoader, "fill", noted)
    gc.disable()
    try:
        setting.streamed().run()
    finally:
        gc.enable()
    assert len(seen) == 2 * DEPTH
    assert max(counts) <= 2, "the experts of one layer while those of the next are read"


def test_what_sequences_share_is_run_and_kept_once(tiny_model: Path, tmp_path: Path) -> None:
    setting = Setting(tiny_model, tmp_path, shared=True)
    cache = setting.plan("cache")
    found = setting.streamed(cache=cache).run()
    assert cache.missing().size == 0
    asked = sum(setting.requests.lengths)
    assert cache.plan.segments.tokens < 0.8 * asked == 0.8 * cache.plan.segments.tokens_asked
    wanted, hidden = Setting(tiny_model, tmp_path).resident()
    order = {record[:2]: record for record in wanted.records()}
    for record in found.records():
        assert abs(record[2] - order[record[:2]][2]) < 2e-5
        np.testing.assert_allclose(record[6], order[record[:2]][6], rtol=0, atol=1e-3)
    for number, values in hidden.items():
        torch.testing.assert_close(cache.read([number]), values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_ranks_share_a_cache(tiny_model: Path, tmp_path: Path, shared: bool) -> None:
    setting = Setting(tiny_model, tmp_path, shared=shared)
    alone = setting.plan("alone")
    whole = setting.streamed("alone-work", alone).run()
    setting.plan("shared")
    parts = []
    for rank in range(2):
        cache = open_plan(setting.folder / "shared", "all")
        parts.append(setting.streamed(f"rank-{rank}", cache, batches=setting.batches[rank::2]).run())
    assert cache.missing().size == 0
    assert shards(cache) == shards(alone)
    together = {record[:2]: record for part in parts for record in part.records()}
    for record in whole.records():
        other = together[record[:2]]
        assert record[:5] == other[:5]
        np.testing.assert_array_equal(record[6], other[6])


@pytest.mark.parametrize("first", [0, 3])
def test_the_cache_may_begin_at_any_layer(setting: Setting, first: int) -> None:
    setting.first = first
    cache = setting.plan("cache")
    setting.streamed(cache=cache).run()
    _, hidden = setting.resident()
    assert all(torch.equal(cache.read([number]), values) for number, values in hidden.items())


def test_a_missing_layer_is_said(setting: Setting, tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.gate.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing: model\.layers\.2\.mlp\.gate\.weight"):
        setting.streamed(model=ModelConfig(path=str(folder), dtype="float32")).run()


def test_progress_names_its_unit(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    setting.streamed().run()
    total = len(setting.requests.sequences) * (DEPTH + 2)
    assert f"Streaming: {total}/{total} layers x samples" in capsys.readouterr().err
    second = replace(WORLD, ranks=replace(WORLD.ranks, rank=1))
    setting.streamed("quiet", world=second).run()
    assert capsys.readouterr().err == ""
