"""One evaluation from stub models: what is reported is what they know, whatever the number of options."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import question, run_on, write_rows

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.data import load_evaluation
from roma_ds.data.sample import Sample
from roma_ds.evaluation.stage import evaluate
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.scores import Scores
from roma_ds.storage.atomic import read_parquet
from roma_ds.writing.generation import Written

ALONE = World(Ranks(), torch.device("cpu"))
COUNT = 41
Prefer = Callable[[Prompt], int]


def evaluated(
    folder: Path,
    prefer: Prefer,
    say: Callable[[Sample], str] | None = None,
    scoring: str = "letter",
    rows: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], dict[str, list[Any]], list[Sample]]:
    """Results, sample records and samples of a stub that prefers an option and says a text."""
    source = random.Random(0)
    if not rows:
        sizes = [source.randint(3, 5) for _ in range(COUNT)]
        rows = [
            question(place, choices=[f"{place}-{n}" for n in range(size)], answer=source.randrange(size))
            for place, size in enumerate(sizes)
        ]
    write_rows(folder / "test.jsonl", rows)
    run = run_on(folder, f"eval.scoring={scoring}")
    samples = load_evaluation(run)
    options = [tuple((n,) for n in range(len(sample.options))) for sample in samples]
    prompts = [
        Prompt(row, (9,), (0,), options[row], sample.answer, row % 5 == 0)
        for row, sample in enumerate(samples)
    ]

    def score(prompts: Sequence[Prompt]) -> Scores:
        values = [np.full(len(prompt.options), -5.0, np.float32) for prompt in prompts]
        for prompt, own in zip(prompts, values, strict=True):
            if prompt.options:
                own[prefer(prompt)] = -1.0
        none = np.zeros((0, 0), np.float16)
        found = [
            (prompt.row, -1, -1.0, False, 0.0, own, none) for prompt, own in zip(prompts, values, strict=True)
        ]
        return Scores.assemble(prompts, found, 0)

    def write(prompts: Sequence[Prompt]) -> list[Written | None]:
        return [Written(say(sample), 7, True) if say else None for sample in samples]

    facts = evaluate(
        ALONE, run, "stub", samples, prompts, folder / "eval", score, write if say else None, {"mine": 50}
    )
    result = json.loads((folder / "eval" / "stub.json").read_text())
    assert facts["average"] == result["average"] == result["tasks"]["mine"]["accuracy"]
    return result["tasks"]["mine"], read_parquet(folder / "eval" / "stub.samples.parquet"), samples


def test_one_that_always_prefers_c_scores_the_share_of_c(tmp_path: Path) -> None:
    result, records, samples = evaluated(tmp_path, lambda prompt: 2)
    share = sum(sample.answer == 2 for sample in samples) / COUNT
    assert result["accuracy"] == share and result["predicted"] == {"C": COUNT}
    assert records["predicted"] == [2] * COUNT
    assert records["correct"] == [sample.answer == 2 for sample in samples]
    assert result["f1"] < share


def test_one_that_knows_the_answers_scores_one(tmp_path: Path) -> None:
    for scoring in ("letter", "cloze"):
        result, records, samples = evaluated(tmp_path, lambda prompt: prompt.answer, scoring=scoring)
        assert (result["accuracy"], result["stderr"], result["f1"]) == (1.0, 0.0, 1.0)
        assert {len(values) for values in records["option_loglikelihoods"]} == {3, 4, 5}
        counts = [sum(sample.answer == n for sample in samples) for n in range(5)]
        assert result["majority_baseline"] == max(counts) / COUNT
        letters = dict(zip("ABCDE", counts, strict=True))
        assert result["predicted"] == {letter: count for letter, count in letters.items() if count}
    assert result["accuracy_norm"] == 1.0


def test_every_sample_is_counted_once_and_cut_prompts_too(tmp_path: Path) -> None:
    result, records, samples = evaluated(tmp_path, lambda prompt: 0)
    assert result["n"] == len(set(records["id"])) == COUNT and records["id"] == [one.id for one in samples]
    assert (result["rows"], result["split"], result["scoring"], result["shots"]) == (50, "test", "letter", 0)
    assert result["truncated"] == len(range(0, COUNT, 5))


def test_what_is_said_last_counts_and_not_what_is_likely(tmp_path: Path) -> None:
    def aloud(sample: Sample) -> str:
        wrong = (sample.answer + 1) % len(sample.options)
        return f" {'ABCDE'[sample.answer]} may be right, I thought. The answer is {'ABCDE'[wrong]}."

    result, records, _ = evaluated(tmp_path, lambda prompt: prompt.answer, aloud, "generate")
    assert result["accuracy"] == 0.0 and result["unfinished"] == 0
    assert all(len(text) == 1 for text in records["extracted"]) and records["new_tokens"] == [7] * COUNT

    def corrected(sample: Sample) -> str:
        return f" A, B or C? Option {'ABCDE'[sample.answer]}"

    assert evaluated(tmp_path, lambda prompt: 0, corrected, "generate")[0]["accuracy"] == 1.0
    silent, records, _ = evaluated(
        tmp_path, lambda prompt: prompt.answer, lambda sample: " Well ...", "generate"
    )
    assert silent["accuracy"] == 0.0 and silent["predicted"] == {"none": COUNT}
    assert records["predicted"] == [-1] * COUNT


def test_numbers_of_worked_solutions(tmp_path: Path) -> None:
    rows = [{"id": str(n), "question": f"{n} x 2?", "answer": str(2 * n)} for n in range(1, 8)]

    def solve(sample: Sample) -> str:
        number = int(sample.target)
        return f" It is {number // 2} + {number // 2} = {number}.\n#### {number if number != 6 else 7}"

    result, records, _ = evaluated(tmp_path, lambda prompt: 0, solve, "generate", rows)
    assert result["accuracy"] == pytest.approx(6 / 7) and result["f1"] is None
    assert records["extracted"] == ["2", "4", "7", "8", "10", "12", "14"]
    assert result["predicted"] == {"text": 7}
