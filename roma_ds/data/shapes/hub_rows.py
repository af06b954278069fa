"""Rows of the datasets on the hub into rows of ours. `place` is the row's number in its split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from roma_ds.data.shapes.row import Row

Convert = Callable[[dict[str, Any], int], Row | None]
"""None leaves a row out that is no question with options."""


def labelled(question_key: str = "question") -> Convert:
    """Choices with labels and an answer key that names one of them."""

    def convert(row: dict[str, Any], place: int) -> Row:
        labels, key = list(row["choices"]["label"]), row["answerKey"].strip()
        return {
            "id": row["id"],
            "question": row[question_key],
            "choices": list(row["choices"]["text"]),
            "answer": labels.index(key) if key in labels else None,
        }

    return convert


def boolq(row: dict[str, Any], place: int) -> Row:
    """Yes-no questions about a passage; the hub's questions lack their question mark."""
    question = row["question"].strip()
    return {
        "id": str(place),
        "passage": row["passage"],
        "question": question if question.endswith("?") else f"{question}?",
        "choices": ["no", "yes"],
        "answer": int(row["answer"]),
    }


def piqa(row: dict[str, Any], place: int) -> Row:
    """Two ways to a goal."""
    return {
        "id": str(place),
        "question": row["goal"],
        "choices": [row["sol1"], row["sol2"]],
        "answer": row["label"],
    }


def hellaswag(row: dict[str, Any], place: int) -> Row:
    """Endings of a scene; marks in brackets, left over from the source, go as in lm-evaluation-harness."""

    def clean(text: str) -> str:
        marked = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", marked).replace("  ", " ")

    scene = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "id": str(place),
        "question": clean(f"{row['activity_label']}: {scene}"),
        "choices": [clean(ending) for ending in row["endings"]],
        "answer": int(row["label"]) if row["label"] != "" else None,
    }


def winogrande(row: dict[str, Any], place: int) -> Row:
    """Which of two words fills the gap `_`."""
    return {
        "id": str(place),
        "question": row["sentence"],
        "choices": [row["option1"], row["option2"]],
        "answer": int(row["answer"]) - 1 if row["answer"] else None,
    }


def mmlu(row: dict[str, Any], place: int) -> Row:
    """Four choices on one of 57 subjects."""
    return {
        "id": f"{row['subject']}/{place}",
        "subject": row["subject"],
        "question": row["question"],
        "choices": list(row["choices"]),
        "answer": row["answer"],
    }


def gsm8k(row: dict[str, Any], place: int) -> Row:
    """A number after the worked solution."""
    answer = row["answer"].rpartition("####")[2].strip()
    return {"id": str(place), "question": row["question"], "solution": row["answer"], "answer": answer}


def sciq(row: dict[str, Any], place: int) -> Row:
    """The right answer goes to a place that depends on the question alone, since the hub names it apart."""
    choices = [row["distractor1"], row["distractor2"], row["distractor3"]]
    answer = hashlib.sha256(row["question"].encode()).digest()[0] % (len(choices) + 1)
    choices.insert(answer, row["correct_answer"])
    return {"id": str(place), "question": row["question"], "choices": choices, "answer": answer}
