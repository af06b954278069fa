"""The stream engine: the results of the whole network, layer by layer, also when it is killed on the way."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import MODEL_TYPES, checkpoint
from tiny_runs import stock_network
from transformers import AutoConfig, AutoModelForCausalLM

from roma_ds.backbone import activations
from roma_ds.backbone.batches import collate, in_batches
from roma_ds.backbone.blueprint import blueprint
from roma_ds.backbone.encoding import Prompt
from roma_ds.backbone.found import COLUMNS, Found
from roma_ds.backbone.prefix_cache import PrefixCache, open_plan, plan_cache
from roma_ds.backbone.request_set import read_results, requests_of
from roma_ds.backbone.routed import RoutedLM
from roma_ds.backbone.span import SpanLoader
from roma_ds.backbone.stream import StreamPass, _Run
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.config import ModelConfig
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.testing.tiny_models import save_tiny

DEPTH = 4
CPU = torch.device("cpu")
WORLD = World(Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1), CPU)


def made_up_prompts(count: int = 23) -> list[Prompt]:
    """Options of one token, of several tokens, and free text, at many lengths."""
    random = np.random.default_rng(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(int(token) for token in random.integers(3, 180, length))

    prompts = []
    for row in range(count):
        options = {0: ((5,), (6,), (7,)), 1: (ids(2), ids(1), ids(3)), 2: ()}[row % 3]
        target = options[row % 2] if options else ids(1 + row % 4)
        prompts.append(Prompt(row, ids(int(random.integers(2, 40))), target, options, row % 2, False))
    return prompts


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Setting:
    """A model and prompts, to be run in several ways."""

    def __init__(self, model: Path, folder: Path, dtype: str = "float32", tokens: str = "last1") -> None:
        self.model = ModelConfig(path=str(model), dtype=dtype)  # type: ignore[arg-type]
        self.folder, self.tokens = folder, tokens
        self.whole = blueprint(self.model)
        self.requests = requests_of(made_up_prompts())
        self.batches = in_batches(self.requests.lengths, 4)
        self.first = 2

    def plan(self, name: str) -> PrefixCache:
        dtype = getattr(torch, self.model.dtype)
        return plan_cache(
            self.folder / name, self.requests.lengths, self.whole.hidden, dtype, self.first, "all", 2
        )

    def streamed(self, name: str = "work", cache: PrefixCache | None = None, **changes: Any) -> StreamPass:
        job = StreamPass(
            world=WORLD,
            model=self.model,
            whole=self.whole,
            requests=self.requests,
            batches=self.batches,
            tokens=self.tokens,
            cache=cache,
            folder=self.folder / name,
            fingerprint="all",
            activation_bytes=1 << 30,
            title="Streaming",
        )
        return replace(job, **changes)

    def resident(self) -> tuple[Found, dict[int, torch.Tensor]]:
        """What the whole network gives on the same batches, and the hidden states by sequence."""
        network = stock_network(self.model)
        routed = RoutedLM(network, self.whole.layout, self.whole.layout.layers)
        routed.capture(self.first)
        routed.attach()
        records, hidden = [], {}
        for numbers in self.batches:
            batch = collate([self.requests.sequences[number] for number in numbers], self.tokens)
            with torch.no_grad():
                output = routed(**batch.inputs(CPU))
            records += read_results(self.requests, numbers, batch, output.logits, output.routing)
            assert output.entering is not None
            pieces = output.entering.split([self.requests.lengths[number] for number in numbers])
            hidden |= dict(zip(numbers, pieces, strict=True))
        layout = self.whole.layout
        return Found.from_records(records, len(layout.layers), layout.experts), hidden


@pytest.fixture
def setting(tiny_model: Path, tmp_path: Path) -> Setting:
    return Setting(tiny_model, tmp_path)


def assert_same(one: Found, other: Found) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def shards(cache: PrefixCache) -> list[bytes]:
    return [path.read_bytes() for path in sorted(cache.folder.glob("hidden-*.bin"))]


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


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_streams(model_type: str, tmp_path: Path) -> None:
    setting = Setting(checkpoint(model_type), tmp_path)
    cache = setting.plan("cache")
    found = setting.streamed(cache=cache).run()
    wanted, hidden = setting.resident()
    for name in COLUMNS:
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-3 if name == "routing" else 2e-5
        )
    for number, values in hidden.items():
        torch.testing.assert_close(cache.read([number]), values, rtol=0, atol=1e-6)


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


class Killed(BaseException):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, batch: int) -> list[tuple[int, int]]:
    """Let the pass die at a batch of a step; gives (step, batch) of all that ran."""
    seen: list[tuple[int, int]] = []
    through = _Run._through
    at = [-1]

    def counted(run: _Run, number: int, network: Any) -> None:
        at[0] = number
        through(run, number, network)

    def advance(progress: Any, count: int = 1) -> None:
        seen.append((at[0], sum(place == at[0] for place, _ in seen)))
        if seen[-1] == (step, batch):
            raise Killed

    monkeypatch.setattr(_Run, "_through", counted)
    monkeypatch.setattr("roma_ds.progress.Progress.advance", advance)
    return seen


@pytest.mark.parametrize("activation_bytes", [0, 1 << 30], ids=["disk", "memory"])
@pytest.mark.parametrize("step", range(DEPTH + 1))
def test_a_killed_pass_goes_on_at_its_layer(
    setting: Setting, step: int, activation_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = setting.plan("undisturbed")
    wanted = setting.streamed("undisturbed-work", undisturbed).run()
    changes = {"activation_bytes": activation_bytes, "save_seconds": 0.0}
    with monkeypatch.context() as patch:
        stop_at(patch, step, 2)
        with pytest.raises(Killed):
            setting.streamed(cache=setting.plan("cache"), **changes).run()
    # As another process would: with a cache opened anew.
    cache = setting.plan("cache")
    assert cache.resumed
    loaded = []
    load = SpanLoader.load
    monkeypatch.setattr(SpanLoader, "load", lambda loader: loaded.append(loader.span) or load(loader))
    seen = stop_at(monkeypatch, -1, -1)
    found = setting.streamed(cache=cache, **changes).run()
    assert_same(found, wanted)
    assert shards(cache) == shards(undisturbed)
    assert seen[0] == (step, 0)
    assert len(loaded) == DEPTH + 2 - step
    assert cache.missing().size == 0
    cache.finish()


@pytest.mark.parametrize("activation_bytes", [(0, 1 << 30), (1 << 30, 0)], ids=str)
def test_the_budget_may_change_between_runs(
    setting: Setting, activation_bytes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = setting.streamed("undisturbed").run()
    for step, budget in zip((2, 4), activation_bytes, strict=True):
        with monkeypatch.context() as patch:
            seen = stop_at(patch, step, 1)
            with pytest.raises(Killed):
                setting.streamed(activation_bytes=budget, save_seconds=0.0).run()
            assert seen[0] == ((0, 0) if step == 2 else (2, 0))
    assert_same(setting.streamed().run(), wanted)


def test_short_passes_in_memory_write_no_hidden_states(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "preallocate", None)
    setting.streamed().run()


def test_a_finished_pass_gives_its_result_again(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = setting.streamed(cache=setting.plan("cache")).run()
    monkeypatch.setattr(SpanLoader, "load", None)
    assert_same(setting.streamed(cache=setting.plan("cache")).run(), wanted)


@pytest.mark.parametrize("what", ["fingerprint", "batches", "cache", "state", "activations", "routing"])
def test_what_does_not_fit_is_done_anew(setting: Setting, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = setting.plan("cache")
    with monkeypatch.context() as patch:
        stop_at(patch, 4, 1)
        with pytest.raises(Killed):
            setting.streamed(cache=cache, activation_bytes=0).run()
    changes: dict[str, Any] = {"activation_bytes": 0}
    work = setting.folder / "work"
    cache = setting.plan("cache")
    if what == "fingerprint":
        changes["fingerprint"] = "other"
    elif what == "batches":
        changes["batches"] = setting.batches[::-1]
    elif what == "cache":
        cache.close()
        shutil.rmtree(cache.folder)
        cache = setting.plan("cache")
    elif what == "state":
        (work / "state.json").write_text('{"steps": ')
    elif what == "activations":
        current = work / f"activations-{4 % 2}.bin"
        for path in work.glob("activations-*.bin"):
            path.write_bytes(path.read_bytes()[:-1])
        assert current.exists()
    else:
        (work / "routing-0001.npy").unlink()
    seen = stop_at(monkeypatch, -1, -1)
    found = setting.streamed(cache=cache, **changes).run()
    assert seen[0] == (0, 0)
    assert cache.missing().size == 0
    by_number = sorted(found.records(), key=lambda record: record[:2])
    wanted = sorted(setting.streamed("undisturbed").run().records(), key=lambda record: record[:2])
    for one, other in zip(by_number, wanted, strict=True):
        assert one[:5] == other[:5]


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
        for parameter in loader.network.get_submodule(part).parameters():
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


@pytest.mark.parametrize("activation_bytes", [0, 1 << 30], ids=["disk", "memory"])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_is_said_and_what_was_done_is_used(
    setting: Setting, call: str, activation_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = setting.streamed("undisturbed").run()
    job = setting.streamed(activation_bytes=activation_bytes, save_seconds=0.0)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, 1)
        with pytest.raises(Killed):
            job.run()
    real = getattr(os, call)
    calls = []

    def full(file: int, *arguments: Any) -> Any:
        name = os.readlink(f"/proc/self/fd/{file}")
        if "activations-" in name:
            calls.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if call == "posix_fallocate":
            # The room for both files may be taken already: another pass starts from nothing.
            with pytest.raises(EnvironmentFault, match="GiB of disk") as caught:
                replace(job, folder=setting.folder / "other").run()
            assert not list((setting.folder / "other").glob("activations-*"))
        else:
            with pytest.raises(EnvironmentFault, match="GiB of disk") as caught:
                job.run()
    assert calls and "another output_dir" in str(caught.value.fix)
    seen = stop_at(monkeypatch, -1, -1)
    assert_same(job.run(), wanted)
    assert seen[0] == (3, 0)


def test_too_small_a_disk_is_said_before_anything_is_made(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=activations.RESERVE + 100))
    with pytest.raises(EnvironmentFault, match=r"need 0\.00 GiB of disk"):
        setting.streamed(activation_bytes=0).run()
    assert not list((setting.folder / "work").iterdir())


def test_a_rank_without_samples_finds_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpanLoader, "load", None)
    found = setting.streamed(batches=[]).run()
    assert len(found) == 0
    assert found.routing.shape == (0, DEPTH, 8)
    assert not (setting.folder / "work").exists()


def test_ranks_share_a_cache(setting: Setting) -> None:
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
