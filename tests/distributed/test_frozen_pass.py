"""From cached hidden states or by the whole network: the same training and the same evaluation.

Stages run as in `roma_ds.train`, many configs in one start of the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.projects import Project, largest_difference
from mixed_project import mixed_project, weights
from stage_runs import run_stages

from roma_ds.comm import World
from roma_ds.storage.atomic import read_json, read_parquet
from roma_ds.testing.local_ranks import on_ranks

pytestmark = pytest.mark.timeout(600)

FAMILIES = ("olmoe", "qwen3_moe")
CLOZE = "eval.scoring=cloze"


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
    """By family and dtype, with a run that is made up to the embeddings, which no way changes."""
    root = tmp_path_factory.mktemp("frozen")
    made = {
        (family, dtype): mixed_project(root / family / dtype, family, dtype)
        for family in FAMILIES
        for dtype in ("float32", "bfloat16")
    }
    on_ranks(1, run_all, [(each.config, [f"output_dir={each.out}"], "embed") for each in made.values()])
    return made


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
            copies = {
                cache: project.copied(project.folder / f"{len(found)}-{cache}") for cache in ("on", "off")
            }
            goal = "train" if way in WAYS_IN_BF16 else "eval"
            runs += [(project.config, way.words(copy.out, cache), goal) for cache, copy in copies.items()]
            found[way] = Pair(**copies)
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
    collect, evaluation = (read_json(folder / "index.json") for folder in caches)
    assert collect["tokens_stored"] < 0.9 * collect["tokens"], "options that are texts share their prompt"
    shared = 0.7 if CLOZE in way.more else 1.0
    assert (evaluation["tokens_stored"] < shared * evaluation["tokens"]) == (CLOZE in way.more)
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
