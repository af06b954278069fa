"""From cached hidden states or by the whole network: the same training and the same evaluation.

Stages run as in `roma_ds.train`, many configs in one start of the ranks.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.projects import Project, contents, largest_difference, make_project, word_rows, write_rows
from stage_runs import run_stages

from roma_ds.comm import World
from roma_ds.errors import EnvironmentFault, Interrupted
from roma_ds.storage.atomic import read_json, read_parquet
from roma_ds.testing.local_ranks import on_ranks

pytestmark = pytest.mark.timeout(600)

FAMILIES = ("olmoe", "qwen3_moe")
CLOZE = "eval.scoring=cloze"

CONFIG = """\
model: {{path: model, dtype: {dtype}}}
data:
  train: [{{path: letters.jsonl}}, {{path: texts.jsonl, answer: text}}, {{path: free.jsonl}}]
  max_tokens: 20
embed: {{model: demo}}
roma: {{layers: last2}}
train: {{epochs: 2, micro_batch: 4, lr: 1.0e-3, log_every: 5}}
eval: {{tasks: [{{name: words, path: test.jsonl}}], batch_size: 4}}
controls: []
output_dir: out
"""


def texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same questions with options of one to four tokens."""
    return [
        {**row, "choices": [" ".join([text] * (1 + n)) for n, text in enumerate(row["choices"])]}
        for row in rows
    ]


def free(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same questions with a text for an answer."""
    return [
        {"id": row["id"], "question": row["question"], "answer": " ".join(row["choices"][: 1 + place % 3])}
        for place, row in enumerate(rows)
    ]


def mixed_project(folder: Path, family: str, dtype: str) -> Project:
    """40 questions of all kinds, some longer than data.max_tokens."""
    project = make_project(folder, family, dtype)
    write_rows(folder / "letters.jsonl", word_rows(16, 0, 20))
    write_rows(folder / "texts.jsonl", texts(word_rows(12, 100, 20)))
    write_rows(folder / "free.jsonl", free(word_rows(12, 200, 20)))
    write_rows(folder / "test.jsonl", texts(word_rows(9, 1000, 20)))
    project.config.write_text(CONFIG.format(dtype=dtype))
    return project


@dataclass(frozen=True)
class Way:
    """One config on so many ranks; it is run with the cache on and off."""

    ranks: int
    family: str
    stage: int
    more: tuple[str, ...] = ()
    dtype: str = "float32"

    def __str__(self) -> str:
        words = (f"{self.ranks} ranks", self.family, f"zero{self.stage}", self.dtype, *self.more)
        return " ".join(words).replace("roma.", "").replace("collect.", "").replace("eval.", "")

    def words(self, out: Path, cache: str) -> list[str]:
        # The same global batch on any number of ranks.
        cut = f"train.gradient_accumulation={2 // self.ranks}"
        given = (f"output_dir={out}", f"train.prefix_cache={cache}", f"deepspeed=zero{self.stage}", cut)
        return [*given, *self.more]


ALL_VARIANTS = "controls=[router_tuning]"
WAYS = (
    Way(1, "olmoe", 0, ("roma.layers=last2", ALL_VARIANTS)),
    Way(1, "olmoe", 3, ("roma.layers=[1,3]", "roma.tokens=last3", CLOZE)),
    Way(1, "qwen3_moe", 0, ("roma.layers=all", CLOZE)),
    Way(1, "qwen3_moe", 3, ("roma.layers=last2", "roma.tokens=last3")),
    Way(2, "olmoe", 0, ("roma.layers=first2", "roma.tokens=last3", CLOZE)),
    Way(2, "olmoe", 3, ("roma.layers=last2", ALL_VARIANTS, CLOZE)),
    Way(2, "qwen3_moe", 0, ("roma.layers=[1,3]", "roma.tokens=last3", CLOZE)),
    Way(2, "qwen3_moe", 3, ("roma.layers=all", "collect.engine=stream")),
)
LONGER = ("train.epochs=4",)
WAYS_IN_BF16 = (Way(1, "qwen3_moe", 3, LONGER, "bfloat16"), Way(2, "olmoe", 0, LONGER, "bfloat16"))


def run_all(world: World, runs: list[tuple[Path, list[str], str]]) -> None:
    for run in runs:
        run_stages(world, *run)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Project]:
    root = tmp_path_factory.mktemp("frozen")
    return {
        (family, dtype): mixed_project(root / family / dtype, family, dtype)
        for family in FAMILIES
        for dtype in ("float32", "bfloat16")
    }


@dataclass(frozen=True)
class Pair:
    """The runs of a way with the cache and without."""

    on: Project
    off: Project


@pytest.fixture(scope="module")
def pairs(projects: dict[tuple[str, str], Project]) -> dict[Way, Pair]:
    found: dict[Way, Pair] = {}
    for ranks in (1, 2):
        runs = []
        for way in (way for way in (*WAYS, *WAYS_IN_BF16) if way.ranks == ranks):
            project = projects[way.family, way.dtype]
            outs = {cache: project.folder / f"{len(found)}-{cache}" for cache in ("on", "off")}
            goal = "train" if way in WAYS_IN_BF16 else "eval"
            runs += [(project.config, way.words(out, cache), goal) for cache, out in outs.items()]
            found[way] = Pair(*(Project(project.folder, out) for out in outs.values()))
        on_ranks(ranks, run_all, runs, timeout_s=300)
    return found


def evaluated(project: Project, variant: str) -> tuple[dict[str, Any], Any]:
    folder = project.out / "eval"
    return read_parquet(folder / f"{variant}.samples.parquet"), np.load(folder / f"{variant}.routing.npy")


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_same_collection(way: Way, pairs: dict[Way, Pair]) -> None:
    pair = pairs[way]
    names = ("routing.npy", "outcome.parquet")
    for name in names:
        assert (pair.on.out / "collect" / name).read_bytes() == (pair.off.out / "collect" / name).read_bytes()
    caches = [pair.on.out / part / "prefix" for part in ("collect", "eval")]
    assert [read_json(folder / "index.json")["complete"] for folder in caches] == [True, True]
    assert [read_json(folder / "index.json")["first_layer"] for folder in caches] == [
        first_layer(pair.on)
    ] * 2
    for project in (pair.on, pair.off):
        assert not list(project.out.glob("*/unfinished"))
    assert not list(pair.off.out.glob("*/prefix"))


def first_layer(project: Project) -> int:
    return min(int(name.split(".")[2]) for name in project.routers())


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_same_losses_and_routers(way: Way, pairs: dict[Way, Pair]) -> None:
    pair = pairs[way]
    for variant in trained(pair.on):
        assert largest_difference(pair.on.routers(variant), pair.off.routers(variant)) <= 1e-6
    terms = ("task", "manifold")
    names = ["loss", "accuracy", "grad_norm", "expert_load_entropy"]
    names += [f"{term}_loss" for term in terms] + [f"grad_norm_{term}" for term in terms]
    lines = [project.metrics() for project in (pair.on, pair.off)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == [1, 5, 10]
    for first, second in zip(*lines, strict=True):
        wanted = {name: second[name] for name in names}
        assert {name: first[name] for name in names} == pytest.approx(wanted, abs=1e-6, rel=1e-6)


def trained(project: Project) -> list[str]:
    controls = project.out / "controls"
    return ["roma", *(path.name for path in (controls.iterdir() if controls.exists() else ()))]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_same_evaluation(way: Way, pairs: dict[Way, Pair]) -> None:
    pair = pairs[way]
    assert (ALL_VARIANTS in way.more) == ("router_tuning" in trained(pair.on))
    for variant in ("base", *trained(pair.on)):
        (cached, cached_routing), (whole, routing) = (evaluated(p, variant) for p in (pair.on, pair.off))
        for name in ("id", "predicted", "correct"):
            assert cached[name] == whole[name], (variant, name)
        for first, second in zip(
            cached["option_loglikelihoods"], whole["option_loglikelihoods"], strict=True
        ):
            np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
        # Two neighbours in float16 below 1.
        np.testing.assert_allclose(cached_routing.astype(np.float32), routing, rtol=0, atol=2**-11)
        assert cached_routing.shape == (9, 4, 8)
    counts = [
        read_json(project.out / "eval" / "roma.stage.json")["extra"]["training_successful"]
        for project in (pair.on, pair.off)
    ]
    assert counts[0] == counts[1]


def test_training_moved_what_is_evaluated(pairs: dict[Way, Pair]) -> None:
    """Or the tests above would show nothing."""
    for way in WAYS:
        (base, base_routing), (tuned, routing) = (evaluated(pairs[way].on, name) for name in ("base", "roma"))
        before, after = (
            np.concatenate([np.array(values) for values in found["option_loglikelihoods"]])
            for found in (base, tuned)
        )
        assert np.abs(before - after).max() > 1e-4
        first = first_layer(pairs[way].on)
        assert (base_routing[:, :first] == routing[:, :first]).all()
        assert (base_routing[:, first:] != routing[:, first:]).any()


def weights(model: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    files = [load_file(path) for path in sorted(model.glob("*.safetensors"))]
    return {name: value.float().numpy() for file in files for name, value in file.items()}


def logit_scale(model: Path) -> float:
    """Root mean square of the logits where the last hidden states, after their norm, are of size 1."""
    head = weights(model)["lm_head.weight"]
    return float(np.sqrt(np.square(head).mean() * head.shape[1]))


@pytest.mark.parametrize("way", WAYS_IN_BF16, ids=str)
def test_bf16_starts_equal_and_stays_within_rounding(way: Way, pairs: dict[Way, Pair]) -> None:
    pair = pairs[way]
    on, off = (project.metrics() for project in (pair.on, pair.off))
    # A product in bfloat16 is rounded by up to 2^-9 of its size. In how large batches it was computed, and so
    # how it was rounded, differs between the two runs; a logit and its normaliser both enter the loss.
    rounding = 2 * 2 * 2**-9 * logit_scale(pair.on.folder / "model")
    assert on[0]["task_loss"] == pytest.approx(off[0]["task_loss"], rel=0, abs=rounding)
    assert on[0]["manifold_loss"] == pytest.approx(off[0]["manifold_loss"], rel=2 * 2**-9 * 2)
    assert on[-1]["step"] == off[-1]["step"] == 20
    # AdamW divides a gradient's rounding by the gradient, so it is the way moved that counts.
    start = weights(pair.on.folder / "model")
    routers, wanted = pair.on.routers(), pair.off.routers()
    for name in wanted:
        moved = np.linalg.norm(wanted[name] - start[name])
        assert np.linalg.norm(routers[name] - wanted[name]) <= 0.05 * moved
        assert moved > 0


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

    from roma_ds.backbone.frozen import FrozenModel
    from roma_ds.config import load_run_config, resolve_deepspeed
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
def facts(projects: dict[tuple[str, str], Project]) -> list[dict[Any, Any]]:
    configs = [projects["olmoe", dtype].config for dtype in ("float32", "bfloat16")]
    return on_ranks(2, engine_facts, *configs)


def test_an_engine_on_cached_states_holds_no_tensor_of_the_prefix(
    facts: list[dict[Any, Any]], projects: dict[tuple[str, str], Project]
) -> None:
    sizes = {
        name: value.size for name, value in weights(projects["olmoe", "float32"].folder / "model").items()
    }
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


QUICK = ("deepspeed=zero0", "train.epochs=1", "roma.layers=last2")


def after_changes(world: World, config: Path, out: Path) -> dict[str, list[str]]:
    """What each run of one output folder says, by what was changed before it; every file by name, too."""
    said: dict[str, list[str]] = {}

    def again(change: str, *words: str) -> None:
        said[change] = run_stages(world, config, [f"output_dir={out}", *QUICK, *words])

    shard = out / "collect" / "prefix" / "hidden-00000.bin"
    again("nothing yet")
    whole = shard.read_bytes()
    again("nothing")
    again("lr", "train.lr=2.0e-3")
    again("lambda", "train.lr=2.0e-3", "roma.lambda=0.5")
    again("off", "train.lr=2.0e-3", "roma.lambda=0.5", "train.prefix_cache=off")
    again("back")
    os.truncate(shard, len(whole) - 1)
    (out / "eval" / "prefix" / "index.json").write_text('{"format": 1')
    again("damaged")
    assert shard.read_bytes() == whole
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(EnvironmentFault, match=r"hidden-00000\.bin has changed .* sequence 0 "):
        again("unseen", "train.lr=3.0e-3")
    again("flipped")
    assert shard.read_bytes() == whole
    lengths = out / "collect" / "prefix" / "lengths.npy"
    lengths.write_bytes(lengths.read_bytes()[:-8] + b"\x01" + bytes(7))
    shutil.rmtree(out / "eval" / "prefix")
    again("lengths")
    assert shard.read_bytes() == whole
    again("layers", "roma.layers=[1,3]")
    assert shard.read_bytes() != whole and shard.stat().st_size == len(whole)
    again("max_tokens", "data.max_tokens=19")
    assert 0 < shard.stat().st_size < len(whole)
    weights_file = next((config.parent / "model").glob("*.safetensors"))
    os.utime(weights_file, (1, 1))
    again("model")
    assert shard.read_bytes() == whole
    shutil.rmtree(out)
    again("off from the start", "train.prefix_cache=off")
    again("on at last", "train.prefix_cache=on")
    assert shard.read_bytes() == whole
    return said


def stopped_in_a_stream(world: World, config: Path, outs: list[Path]) -> list[int]:
    """Steps of a stream pass that is stopped at its head and goes on unasked, and of one that is not."""
    from roma_ds.backbone import stream

    steps: list[int] = []
    through, head = stream._Run._through, stream._Run._head

    def counted(run: Any, step: int, network: Any) -> None:
        steps.append(step)
        through(run, step, network)

    def stopped(run: Any, network: Any) -> Any:
        raise Interrupted(signal.SIGINT)

    def collect(out: Path, engine: str) -> None:
        settings = (f"collect.engine={engine}", "collect.save_every=1.0e-6")
        run_stages(world, config, [f"output_dir={out}", *QUICK, *settings], "collect")

    stream._Run._through, stream._Run._head = counted, stopped
    with pytest.raises(Interrupted):
        collect(outs[0], "stream")
    stream._Run._head = head
    for out, engine in zip(outs, ("auto", "stream"), strict=True):
        steps.append(-1)
        collect(out, engine)
    stream._Run._through = through
    return steps


def on_one_rank(world: World, project: Project, outs: list[Path]) -> tuple[dict[str, list[str]], list[int]]:
    return after_changes(world, project.config, project.out), stopped_in_a_stream(world, project.config, outs)


@dataclass(frozen=True)
class OneRank:
    """What one process said and did."""

    said: dict[str, list[str]]
    steps: list[int]
    outs: list[Path]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> OneRank:
    project = mixed_project(tmp_path_factory.mktemp("changes"), "olmoe", "float32")
    outs = [project.folder / name for name in ("stopped", "whole")]
    return OneRank(*on_ranks(1, on_one_rank, project, outs)[0], outs)


def test_a_stopped_stream_goes_on_at_its_layer(one_rank: OneRank) -> None:
    assert one_rank.steps == [*range(5), -1, -1, *range(5)]
    stopped, whole = (contents(out / "collect", without=("stage.json",)) for out in one_rank.outs)
    assert {"prefix/hidden-00000.bin", "routing.npy", "outcome.parquet"} <= whole.keys()
    assert stopped == whole


STAGES = ("data", "embed", "collect", "index", "train roma", "eval base", "eval roma")
OTHER = "the prefix cache in OUT/PART/prefix was made from another model, data or layers"
GONE = "there is no prefix cache in OUT/PART/prefix"
MADE_AGAIN = {
    "nothing yet": dict.fromkeys(STAGES, "not run yet"),
    "nothing": {},
    "lr": {"train roma": "changed since: train", "eval roma": "changed since: router"},
    "lambda": {"train roma": "changed since: lambda", "eval roma": "changed since: router"},
    "off": {},
    "back": {"train roma": "changed since: lambda, train", "eval roma": "changed since: router"},
    "damaged": {
        "collect": "OUT/collect/prefix/hidden-00000.bin has another size than when it was written",
        "eval base": "OUT/eval/prefix/index.json:1: not JSON: Expecting ',' delimiter",
    },
    "flipped": {"collect": "the prefix cache in OUT/PART/prefix is unfinished"},
    "lengths": {
        "collect": "OUT/collect/prefix/lengths.npy has other content than when it was written",
        "eval base": GONE,
    },
    "layers": {
        "collect": OTHER,
        "train roma": "changed since: layers",
        "eval base": OTHER,
        "eval roma": "changed since: router",
    },
    "max_tokens": {
        "collect": "changed since: max_tokens",
        "index": "changed since: collect",
        "train roma": "changed since: collect, index, layers",
        "eval base": "changed since: max_tokens",
        "eval roma": "changed since: max_tokens, router",
    },
    "model": {
        "collect": "changed since: max_tokens, model",
        "index": "changed since: collect",
        "train roma": "changed since: collect, index",
        "eval base": "changed since: max_tokens, model",
        "eval roma": "changed since: max_tokens, model, router",
    },
    "off from the start": dict.fromkeys(STAGES, "not run yet"),
    "on at last": {"collect": GONE, "eval base": GONE},
}


@pytest.mark.parametrize("change", MADE_AGAIN)
def test_what_a_change_makes_again(change: str, one_rank: OneRank) -> None:
    """Only what the change touches, each with its reason."""
    lines = [line.partition(": ") for line in one_rank.said[change]]
    for stage in STAGES:
        told = [words for name, _, words in lines if name == stage]
        reason = MADE_AGAIN[change].get(stage)
        if reason is None:
            assert told == ["up to date"], stage
        else:
            pattern = re.escape(reason.replace("PART", stage.split()[0])).replace("OUT", ".*")
            assert "up to date" not in told
            assert any(re.fullmatch(pattern, words) for words in told), (stage, told)
