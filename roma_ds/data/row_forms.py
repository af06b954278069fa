"""Forms of rows that are taken beside our own: answers as letters or texts, options with labels, no ids."""

from __future__ import annotations

import string
from typing import Any


def accepted(row: Any) -> Any:
    """The row with options as texts and the answer as an index, where that is beyond doubt; else as it is.

    Options may come as {"text": [...], "label": [...]} or [{"text", "label"}, ...], and an answer as label,
    letter, text of an option or a float without fraction, also under `answerKey`.
    """
    if not isinstance(row, dict) or row.get("choices") is None:
        return row
    choices, labels = _choices(row["choices"])
    read = {**row, "choices": choices}
    if not isinstance(choices, list):
        return {"answer": row["answerKey"], **read} if "answerKey" in row else read
    if isinstance(row.get("answerKey"), str):
        read["answerKey"] = _index(choices, labels, row["answerKey"])
    if "answer" in row:
        read["answer"] = _index(choices, labels, row["answer"])
    elif "answerKey" in row:
        read["answer"] = _index(choices, labels, row["answerKey"])
    return read


def _choices(given: Any) -> tuple[Any, list[Any] | None]:
    """Options and their labels, if they have any."""
    if isinstance(given, dict) and set(given) == {"text", "label"}:
        texts, labels = given["text"], given["label"]
        both = isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels)
        return (texts, labels) if both else (given, None)
    pairs = isinstance(given, list) and given and all(isinstance(one, dict) for one in given)
    if pairs and all({"text", "label"} <= set(one) for one in given):
        return [one["text"] for one in given], [one["label"] for one in given]
    return given, None


def _index(choices: list[Any], labels: list[Any] | None, answer: Any) -> Any:
    """The number of the option that `answer` means; `answer` itself where that is not sure."""
    if isinstance(answer, float) and answer.is_integer():
        return int(answer)
    if not isinstance(answer, str):
        return answer
    wanted = answer.strip()
    texts = [choice.strip() if isinstance(choice, str) else choice for choice in choices]
    if labels is not None:
        names = [str(label).strip() for label in labels]
    else:
        names = list(string.ascii_uppercase[: len(choices)])
        wanted = wanted if wanted in texts else wanted.strip("().").upper()
    by_name = [place for place, name in enumerate(names) if name == wanted]
    by_text = [place for place, text in enumerate(texts) if text == answer.strip()]
    meant = {*by_name, *by_text}
    return meant.pop() if len(meant) == 1 else answer
