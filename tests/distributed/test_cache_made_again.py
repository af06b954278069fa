"""Prefix caches over several starts of one run: what a change makes again, and a pass that goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli.projects import Project, contents
from mixed_project import mixed_project
from stage_runs import run_stages

from roma_ds.comm import World
from roma_ds.errors import EnvironmentFault, Interrupted
from roma_ds.storage.atomic import read_json, write_json
from roma_ds.testing.local_ranks import on_ranks

pytestmark = pytest.mark.timeout(600)

QUICK = ("deepspeed=zero0", "train.epochs=1", "roma.layers=last2")


def keep_each_whole(folder: Path) -> None:
    """Turn a finished cache into one of format 2, in which each sequence is there for itself."""
    from roma_ds.families.entering import Entering
    from roma_ds.prefix.cache_plan import read_plan
    from roma_ds.prefix.prefix_cache import PrefixCache, plan_cache
    from roma_ds.prefix.segments import Segments

    cache = PrefixCache(folder, *read_plan(folder))
    plan = cache.plan
    values = [cache.read([number]) for number in range(len(plan.lengths))]
    shutil.rmtree(folder)
    table = Entering.alone(plan.hidden, "float32")
    flat = plan_cache(folder, Segments.alone(plan.lengths), table, plan.first_layer, plan.fingerprint, 1)
    for number, value in enumerate(values):
        flat.write(number, value)
    flat.finish()
    index = read_json(folder / "index.json")
    for name in ("segments", "tokens_stored", "tree_sha256"):
        del index[name]
    write_json(folder / "index.json", {**index, "format": 2})


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
    keep_each_whole(out / "collect" / "prefix")
    again("lambda", "train.lr=2.0e-3", "roma.lambda=0.5")
    again("off", "train.lr=2.0e-3", "roma.lambda=0.5", "train.prefix_cache=off")
    again("back")
    assert shard.stat().st_size > len(whole), "of format 2 still"
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
    from roma_ds.frozen_pass import stream

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


def test_the_run_says_what_the_caches_take(one_rank: OneRank) -> None:
    """Answers of a letter share nothing in the evaluation; in the collection some options are texts."""
    lines = [line for line in one_rank.said["nothing yet"] if ": prefix cache" in line]
    assert len(lines) == 2
    shown = re.fullmatch(
        r"collect: prefix cache of .*, ([\d,]+) tokens entering layer 2, "
        r"([\d,]+) stored \(([\d.]+) times fewer\)",
        lines[0],
    )
    assert shown, lines
    read, kept = (int(shown[place].replace(",", "")) for place in (1, 2))
    assert kept < read and f"{read / kept:.1f}" == shown[3]
    assert re.fullmatch(r"eval: prefix cache of .*, [\d,]+ tokens entering layer 2", lines[1])


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
