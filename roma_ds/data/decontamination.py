"""Training samples that an evaluation sample gives away."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from roma_ds.data.sample import Sample

NGRAM = 13
"""Words in a row that count as the same text."""
REASONS = {
    "exact_question": "the question is that of an evaluation sample",
    "ngram": f"{NGRAM} words in a row are also in an evaluation sample",
}
"""Why a sample can be dropped, by the key that the manifest uses."""


class Decontamination:
    """Compares samples with the questions and passages of evaluation samples. Options are not compared."""

    def __init__(self, evaluation: Iterable[Sample]) -> None:
        self._questions: set[str] = set()
        self._ngrams: set[int] = set()
        for sample in evaluation:
            self._questions.add(_normalised(sample.question))
            self._ngrams.update(_ngrams(sample))

    def reason(self, sample: Sample) -> str | None:
        """The key in REASONS for which `sample` must not be trained on, or None."""
        if _normalised(sample.question) in self._questions:
            return "exact_question"
        return "ngram" if any(ngram in self._ngrams for ngram in _ngrams(sample)) else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _normalised(question: str) -> str:
    """Words alone; a question of signs alone stays as it is."""
    return " ".join(_words(question)) or question.strip()


def _ngrams(sample: Sample) -> Iterator[int]:
    words = _words(f"{sample.passage} {sample.question}")
    return (hash(tuple(words[start : start + NGRAM])) for start in range(len(words) - NGRAM + 1))
