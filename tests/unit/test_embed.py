"""The texts that are embedded, and samples that cannot be told apart by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import run_on
from tiny_encoders import text, write_plain, write_whole

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.data.sample import Sample
from roma_ds.embed.stage import check_embeddings, embed, embed_settings
from roma_ds.embed.texts import FORMS, text_of
from roma_ds.errors import UserError

ALONE = World(Ranks(), torch.device("cpu"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whole(write_plain(tmp_path_factory.mktemp("encoders") / "plain"))


def sample(number: int, question: str, passage: str = "", **more: Any) -> Sample:
    choices = more.pop("choices", ("w8", "w9"))
    prompt = " ".join([passage, question, *choices]) + f" {number}"
    fields = {"id": f"a/train/{number}", "task": "a", "split": "train", "subject": "", "options": choices}
    return Sample(
        prompt=prompt,
        question=question,
        choices=choices,
        answer=0,
        target=" A",
        passage=passage,
        **fields,
        **more,
    )


def embedded(
    folder: Path, samples: list[Sample], tmp_path: Path, *keys: str
) -> tuple[dict[str, Any], np.ndarray]:
    """The stage's facts and the training samples' vectors."""
    run = run_on(tmp_path, f"embed.model={folder}", "embed.batch_size=5", *keys)
    facts = embed(ALONE, run, samples, samples[:1], tmp_path / "embed")
    return facts, np.load(tmp_path / "embed" / "embeddings.npy")


def test_the_parts_that_are_embedded() -> None:
    one = sample(0, "q?", "p.", choices=("a", "b"))
    assert [text_of(one, form) for form in FORMS] == ["q?", "q? a b", "p. q?", "p. q? a b", "p. q? a b 0"]
    assert text_of(sample(0, "q?"), "passage_question") == "q?"


def test_one_question_over_many_passages_is_told(whole: Path, tmp_path: Path) -> None:
    samples = [sample(number, "w1 w2", f"w3 w{10 + number}") for number in range(32)]
    facts, vectors = embedded(whole, samples, tmp_path)
    assert len(np.unique(vectors, axis=0)) == 1
    assert facts["training"] == {
        "samples": 32, "distinct_vectors": 1, "shared_vectors": 32, "cut_texts": 0,
    }  # fmt: skip
    [counts, warning, evaluated] = facts["notes"]
    assert counts == "training: 32 samples, 1 distinct vector, 0 texts of more than 16 tokens"
    assert warning.startswith("warning: 32 of 32 training samples (100%) share their vector")
    assert warning.endswith("fix: embed.text=passage_question: 32 distinct texts in place of 1")
    assert evaluated == "evaluation: 1 sample, 1 distinct vector, 0 texts of more than 16 tokens"
    facts, vectors = embedded(whole, samples, tmp_path, "embed.text=passage_question")
    assert len(np.unique(vectors, axis=0)) == 32
    assert not [note for note in facts["notes"] if "warning" in note]


def test_the_narrowest_text_that_tells_samples_apart_is_advised(whole: Path, tmp_path: Path) -> None:
    options = [sample(number, "w1", choices=("w3", f"w{10 + number}")) for number in range(9)]
    facts, _ = embedded(whole, options, tmp_path)
    assert facts["notes"][1].endswith("embed.text=question_choices: 9 distinct texts in place of 1")
    both = [
        sample(number, "w1", f"w{number // 3}", choices=("w3", f"w{10 + number % 3}")) for number in range(9)
    ]
    facts, _ = embedded(whole, both, tmp_path)
    assert "fix: embed.text=passage_question_choices: 9 " in facts["notes"][1]


def test_texts_that_differ_behind_the_limit_are_counted(whole: Path, tmp_path: Path) -> None:
    long = [sample(number, text(20, last=f"w{20 + number}")) for number in range(16)]
    short = [sample(100 + number, text(3, last=f"w{20 + number}")) for number in range(20)]
    facts, vectors = embedded(whole, long + short, tmp_path)
    assert len(np.unique(vectors, axis=0)) == 21
    assert facts["training"]["cut_texts"] == facts["training"]["shared_vectors"] == 16
    apart, cut = facts["notes"][1:3]
    assert "warning: 16 of 36 training samples (44%) share their vector" in apart
    assert "(44%) have texts of up to 22 tokens, of which the encoder reads the first 16" in cut
    assert apart.endswith("fix: embed.max_tokens=22") and cut.endswith("fix: embed.max_tokens=22")
    facts, vectors = embedded(whole, long + short, tmp_path, "embed.max_tokens=22")
    assert len(np.unique(vectors, axis=0)) == 36 and facts["tokens_read"] == 22
    assert facts["training"]["cut_texts"] == 0 and len(facts["notes"]) == 2


def test_what_no_key_can_mend_needs_another_model(whole: Path, tmp_path: Path) -> None:
    longer = [sample(number, text(40, last=f"w{20 + number}")) for number in range(4)]
    facts, _ = embedded(whole, longer, tmp_path)
    assert facts["notes"][1].endswith(f"fix: embed.max_tokens=24, as many as {whole} can read")
    facts, _ = embedded(whole, longer, tmp_path, "embed.max_tokens=24")
    assert facts["notes"][1].endswith("fix: an embed.model that reads longer texts")
    unknown = [sample(number, f"unheard{number}") for number in range(4)]
    facts, _ = embedded(whole, unknown, tmp_path)
    assert facts["notes"][1].endswith("fix: another embed.model: this one reads different texts alike")


def test_few_shared_vectors_and_equal_prompts_are_no_warning(whole: Path, tmp_path: Path) -> None:
    many = [sample(number, f"w{number % 60} w{number // 60}") for number in range(300)]
    few = [*many, sample(300, "w0 w0")]
    facts, _ = embedded(whole, few, tmp_path)
    assert facts["training"]["shared_vectors"] == 2
    assert not [note for note in facts["notes"] if "warning" in note]
    facts, _ = embedded(whole, [many[0]] * 9, tmp_path)
    assert facts["training"]["distinct_vectors"] == 1 and facts["training"]["shared_vectors"] == 0


def test_zero_vectors_are_named() -> None:
    with pytest.raises(UserError, match="1 of 2 embeddings are zero, first for sample b"):
        check_embeddings(np.array([[1, 0], [0, 0]], np.float32), ["a", "b"])


def test_only_what_is_set_makes_embeddings_anew(tmp_path: Path) -> None:
    assert embed_settings(run_on(tmp_path, "embed.batch_size=3").embed) == {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "text": "question",
    }
    for key, value in (
        ("dtype", "float32"),
        ("prompt", "query"),
        ("max_tokens", 99),
        ("trust_remote_code", True),
    ):
        said = str(value).lower() if value is True else value
        assert embed_settings(run_on(tmp_path, f"embed.{key}={said}").embed)[key] == value
