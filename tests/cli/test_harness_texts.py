"""Texts that the harness asks for: packed trees write what its own class writes."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest

from roma_ds.testing.tiny_models import save_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (extra `eval`)"
    ),
]
PLAIN = {"until": ["w7"], "max_gen_toks": 12, "do_sample": False}
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


def words(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(180)}" for _ in range(count))


def instances(asked: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("generate_until", {}, one, place) for place, one in enumerate(asked)]


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each call leaves to the harness's own class."""
    from lm_eval.models.huggingface import HFLM

    own, found = HFLM.generate_until, list[int]()

    def counted(model: Any, requests: Any, **more: Any) -> Any:
        found.append(len(requests))
        return own(model, requests, **more)

    monkeypatch.setattr(HFLM, "generate_until", counted)
    return found


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_the_same_texts_as_the_harness_s_own_class(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[int]
) -> None:
    """Solved examples before each question, settings that differ, cut contexts, and what is left to `hf`."""
    from roma_ds.evaluation.harness import RoutedHarnessModel, packed_writing

    folder = str(save_tiny(tmp_path, model_type))
    own = RoutedHarnessModel(folder, engine="hf", batch_size=1, **OPTIONS)
    packed = RoutedHarnessModel(folder, batch_size="auto", **OPTIONS)
    shots = words(0, 100)
    questions = [f"{shots} {words(seed, 2 + 3 * seed)}" for seed in range(1, 6)]
    asked = [
        *((question, PLAIN) for question in (*questions, questions[0], "w5")),
        *((question, {"until": "w9", "max_gen_toks": 5}) for question in questions[:2]),
        (questions[0], {"max_new_tokens": 3, "do_sample": False, "temperature": 0.0}),
        (words(9, 900), PLAIN),
        (questions[1], PLAIN | {"num_beams": 2}),
        (questions[2], PLAIN | {"do_sample": True, "temperature": 1e-4}),
    ]
    first = own.generate_until(instances(asked))
    # Words that the model writes, so that answers end at different times.
    stops = [text.split()[2 + place] for place, text in enumerate(first[:3]) if len(text.split()) > 4]
    asked += [(question, PLAIN | {"until": stops, "max_gen_toks": 20}) for question in questions]
    texts = own.generate_until(instances(asked))
    assert len({len(text.split()) for text in texts[-len(questions) :]}) > 1
    left.clear()
    for answers in (packed_writing.MOST_ANSWERS, 2, 1):
        monkeypatch.setattr(packed_writing, "MOST_ANSWERS", answers)
        assert packed.generate_until(instances(asked)) == texts
    # Beams, and a drawn text.
    assert left == [2, 2, 2]


@pytest.mark.parametrize("kind", ["rows", "penalty"])
def test_what_is_left_to_the_harness_s_own_class(kind: str, tmp_path: Path, left: list[int]) -> None:
    """A family whose layers mix tokens otherwise than by attention, and a model with a penalty of its own."""
    from transformers import GenerationConfig

    from roma_ds.evaluation.harness import RoutedHarnessModel

    folder = save_tiny(tmp_path, "qwen3_next" if kind == "rows" else "olmoe")
    if kind == "penalty":
        settings = GenerationConfig.from_pretrained(folder)
        settings.repetition_penalty = 1.5
        settings.save_pretrained(folder)
    asked = instances([(words(seed, 9), PLAIN) for seed in range(3)])
    model = RoutedHarnessModel(str(folder), batch_size="auto", **OPTIONS)
    own = RoutedHarnessModel(str(folder), batch_size=8, engine="hf", **OPTIONS)
    assert model.generate_until(asked) == own.generate_until(asked)
    assert left == [3, 3]


def test_a_special_token_ends_an_answer_as_in_a_batch_of_one(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from roma_ds.evaluation.harness import RoutedHarnessModel

    folder = save_tiny(tmp_path)
    asked = [(words(seed, 9), {"until": ["w199"], "max_gen_toks": 12}) for seed in range(6)]
    said = RoutedHarnessModel(str(folder), **OPTIONS).generate_until(instances(asked))[0].split()
    special = next(word for place, word in enumerate(said) if place > 2 and word not in said[:place])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [special]})
    tokenizer.save_pretrained(folder)
    ending = instances([(text, settings | {"until": [special]}) for text, settings in asked])
    packed = RoutedHarnessModel(str(folder), **OPTIONS).generate_until(ending)
    alone = RoutedHarnessModel(str(folder), engine="hf", batch_size=1, **OPTIONS).generate_until(ending)
    assert packed == alone
    assert packed[0].split() == said[: said.index(special)]
