"""What the texts of one training file share with evaluation rows, and in how many texts it stands."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from roma_ds.data.segments import Text
from roma_ds.data.windows import Places

FEW = 10
"""Texts of a file that may share what still gives an evaluation row away."""


@dataclass(frozen=True)
class Overlap:
    """Why a row is dropped."""

    reason: str
    """A key of `decontamination.reasons`."""
    evaluation: int
    """Number of the evaluation row."""
    text: str
    """Units that both share."""


@dataclass(frozen=True)
class SharedRuns:
    """Runs of a text that evaluation rows hold too: their numbers, first places, and places behind."""

    text: Text
    numbers: Places
    first: Places
    behind: Places

    def rare(self, common: np.ndarray) -> Places:
        """Places in `numbers` of runs that are not common and share no unit with a run that is."""
        commons = np.flatnonzero(common[self.numbers])
        rares = np.flatnonzero(~common[self.numbers])
        if not len(commons):
            return rares
        following = np.searchsorted(self.first[commons], self.first[rares])
        ends = np.append(-1, self.behind[commons])[following]
        starts = np.append(self.first[commons], np.iinfo(np.int64).max)[following]
        return rares[(ends <= self.first[rares]) & (starts >= self.behind[rares])]


class Tally:
    """Counts while the rows go by; keeps nothing of what more than FEW texts hold.

    runs: how many runs of evaluation rows there are.
    """

    def __init__(self, runs: int) -> None:
        self.rows = 0
        self._certain: dict[int, Overlap] = {}
        self._texts_with = np.zeros(runs, np.int32)
        self._runs: dict[int, SharedRuns] = {}
        self._rows_of: dict[int, list[int]] = defaultdict(list)
        self._askers: dict[int, set[int]] = defaultdict(set)
        self._asking: dict[int, dict[int, Overlap]] = defaultdict(dict)

    def add_certain(self, row: int, overlap: Overlap) -> None:
        """`overlap` drops the row, whatever others hold."""
        self._certain.setdefault(row, overlap)

    def add_runs(self, row: int, shared: SharedRuns) -> None:
        """The row's text holds these."""
        identity = hash(shared.text.joined)
        if identity not in self._runs:
            if (self._texts_with[shared.numbers] > FEW).all():
                return
            self._runs[identity] = shared
            self._texts_with[np.unique(shared.numbers)] += 1
        self._rows_of[identity].append(row)

    def is_rare(self, question: int) -> bool:
        """Whether so far few rows hold the question."""
        return len(self._askers.get(question, ())) <= FEW

    def add_question(self, question: int, asker: int, row: int, overlap: Overlap | None) -> None:
        """The row, which others equal whose `asker` is the same, holds a question of an evaluation row."""
        if self.is_rare(question):
            self._askers[question].add(asker)
            if overlap is not None:
                self._asking[question].setdefault(row, overlap)

    @property
    def few(self) -> int:
        """Texts or rows that may share what counts: a tenth of the rows, but 2 to FEW."""
        return min(FEW, max(2, self.rows // 10))

    def question_overlaps(self) -> dict[int, Overlap]:
        """What drops rows for their questions, by the rows' numbers."""
        found = dict(self._certain)
        for question, rows in self._asking.items():
            if len(self._askers[question]) <= self.few:
                found = {**rows, **found}
        return found

    def run_overlaps(self, origin: np.ndarray) -> dict[int, Overlap]:
        """The same for runs. origin: the evaluation row of each."""
        common = self._texts_with > self.few
        found: dict[int, Overlap] = {}
        for identity, shared in self._runs.items():
            rare = shared.rare(common)
            if len(rare):
                place = rare[0]
                words = " ".join(shared.text.units[shared.first[place] : shared.behind[place]])
                overlap = Overlap("ngram", int(origin[shared.numbers[place]]), words)
                found.update(dict.fromkeys(self._rows_of[identity], overlap))
        return found
