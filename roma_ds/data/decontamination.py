"""Training rows that an evaluation row gives away.

A training row is dropped where it
- asks what an evaluation row asks: the same passage, question and options, the options in any order;
- holds all that an evaluation row asks within longer texts; or
- shares a run of so many words with an evaluation row's passage or question.

What many training rows hold is an instruction, a template, or a question asked of many passages, and gives
nothing away by itself: runs, and questions shorter than a run, count where they stand in few texts of the
training file (`Tally`), and runs where they share no word with a run that many texts hold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np

from roma_ds.data.asked import SHORTEST, Asked
from roma_ds.data.segments import WORD, Text
from roma_ds.data.tally import Overlap, SharedRuns, Tally
from roma_ds.data.windows import Known, Places, Windows

_AT_ONCE = 1_000
_LOOSE = 8 * WORD
"""Weight from which on a text is found in the middle of a sentence."""
_ALIKE = 64
"""Evaluation rows with one text in common that are compared one by one."""


def reasons(size: int) -> dict[str, str]:
    """Why a row can be dropped, by the key that the manifest uses."""
    return {
        "exact_question": "the question is that of an evaluation sample",
        "ngram": f"{size} words in a row are also in an evaluation sample",
    }


class Decontamination:
    """The evaluation rows, prepared to be looked for. size: words in a row that count as the same text."""

    def __init__(self, evaluation: Sequence[Asked], size: int) -> None:
        self._evaluation, self._run = evaluation, size * WORD
        self._worded: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(evaluation):
            self._worded[row.wording].append(number)
        questions_of = Windows([row.question for row in evaluation])
        self._questions = Known(questions_of.hashes(questions_of.starts, questions_of.ends))
        self._asking = Counter(row.question.joined for row in evaluation)
        questions: dict[str, set[str]] = defaultdict(set)
        for row in evaluation:
            for text in row.beside:
                questions[text.joined].add(row.question.joined)
        # What stands beside several questions is the template of the prompts and not asked.
        self._needed = [
            tuple(text for text in row.texts if len(questions.get(text.joined, "1")) == 1)
            for row in evaluation
        ]
        self._wholes = [hash(tuple(text.joined for text in texts)) for texts in self._needed]
        self._index_texts()
        self._index_runs()

    def overlaps(self, rows: Iterable[Asked]) -> dict[int, Overlap]:
        """What gives an evaluation row away among the rows of one training file, by their numbers."""
        tally = self.begin()
        remaining = iter(rows)
        while batch := list(islice(remaining, _AT_ONCE)):
            self.take(tally, batch)
        return self.found(tally)

    def begin(self) -> Tally:
        """The tally of one training file, before its first rows."""
        return Tally(len(self._runs.hashes))

    def found(self, tally: Tally) -> dict[int, Overlap]:
        """The same as `overlaps` of all rows that were taken."""
        return dict(sorted((tally.run_overlaps(self._origin) | tally.question_overlaps()).items()))

    def _index_texts(self) -> None:
        """Every evaluation row by that text of it that the fewest others hold."""
        held = Counter(text.joined for texts in self._needed for text in texts)
        keys = [min(texts, key=lambda text: (held[text.joined], -text.weight)) for texts in self._needed]
        windows = Windows(keys)
        hashes = windows.hashes(windows.starts, windows.ends)
        self._keys = Known(hashes)
        self._rows_with: dict[int, list[int]] = defaultdict(list)
        for row, number in enumerate(self._keys.find(hashes)[1].tolist()):
            self._rows_with[number].append(row)
        self._apart_lengths = {len(key.units) for key in keys if SHORTEST <= key.weight < _LOOSE}
        self._loose_lengths = {len(key.units) for key in keys if _LOOSE <= key.weight < self._run}
        first, behind = windows.runs(self._run)
        opening = np.isin(first, windows.starts)
        texts = windows.text_of[first[opening]].tolist()
        self._long_lengths: dict[int, set[int]] = defaultdict(set)
        for run, text in zip(windows.hashes(first, behind)[opening].tolist(), texts, strict=True):
            self._long_lengths[run].add(len(keys[text].units))

    def _index_runs(self) -> None:
        texts = list(chain.from_iterable(row.texts for row in self._evaluation))
        rows = np.repeat(
            np.arange(len(self._evaluation), dtype=np.int32), [len(row.texts) for row in self._evaluation]
        )
        windows = Windows(texts)
        first, behind = windows.runs(self._run)
        hashes = windows.hashes(first, behind)
        self._runs = Known(hashes)
        self._origin = np.zeros(len(self._runs.hashes), np.int32)
        self._origin[self._runs.find(hashes)[1]] = rows[windows.text_of[first]]

    def take(self, tally: Tally, batch: Sequence[Asked]) -> None:
        """Count what further rows share with the evaluation rows."""
        texts = list(chain.from_iterable([asked.texts for asked in batch]))
        counts = np.array([len(asked.contexts) + 1 for asked in batch], np.int64)
        rows = np.repeat(np.arange(len(batch)), counts)
        windows = Windows(texts)
        questions = np.cumsum(counts) - counts
        alike, _ = self._questions.find(windows.hashes(windows.starts[questions], windows.ends[questions]))
        for row in alike.tolist():
            self._look_up(tally, batch[row], tally.rows + row)
        first, behind = windows.runs(self._run)
        hashes = windows.hashes(first, behind)
        hits, numbers = self._runs.find(hashes)
        first, behind = first[hits], behind[hits]
        holders = windows.text_of[first]
        for part in np.split(np.arange(len(hits)), np.flatnonzero(np.diff(holders)) + 1):
            if len(part):
                holder = int(holders[part[0]])
                start = windows.starts[holder]
                shared = SharedRuns(texts[holder], numbers[part], first[part] - start, behind[part] - start)
                tally.add_runs(tally.rows + int(rows[holder]), shared)
        found: dict[int, set[int]] = defaultdict(set)
        long_texts = self._long_texts(windows, first, hashes[hits].tolist())
        for place, key in chain(self._short_texts(windows, texts), long_texts):
            found[int(rows[windows.text_of[place]])].add(key)
        for row, keys in found.items():
            self._compare(tally, batch[row], tally.rows + row, keys)
        tally.rows += len(batch)

    def _look_up(self, tally: Tally, asked: Asked, row: int) -> None:
        """Whether `asked` is an evaluation row."""
        for number in self._worded.get(asked.wording, ()):
            if self._evaluation[number].options == asked.options:
                tally.add_certain(row, Overlap("exact_question", number, asked.question.joined.strip()))
                return

    def _short_texts(self, windows: Windows, texts: Sequence[Text]) -> Iterator[tuple[int, int]]:
        """(place, number of the key text) where a key text shorter than a run stands.

        The shortest ones stand between boundaries; none beside a number or sign that would belong to it.
        """
        for length in sorted({*self._apart_lengths, *self._loose_lengths}):
            first = np.arange(len(windows.text_of))
            first = first[first + length <= windows.ends[windows.text_of]]
            hits, numbers = self._keys.find(windows.hashes(first, first + length))
            for place, number in zip(first[hits].tolist(), numbers.tolist(), strict=True):
                holder = int(windows.text_of[place])
                text, start = texts[holder], place - int(windows.starts[holder])
                before, after = text.units[start - 1 : start], text.units[start + length : start + length + 1]
                begins, ends = start in text.boundaries, start + length in text.boundaries
                if length not in self._loose_lengths and not (begins and ends):
                    continue
                if (begins or not _belongs(before)) and (ends or not _belongs(after)):
                    yield place, number

    def _long_texts(self, windows: Windows, opened: Places, runs: list[int]) -> Iterator[tuple[int, int]]:
        """The same for texts as long as a run or longer. opened: where runs of evaluation rows begin."""
        for first, run in zip(opened.tolist(), runs, strict=True):
            if run in self._long_lengths:
                behind = first + np.array(sorted(self._long_lengths[run]))
                behind = behind[behind <= windows.ends[windows.text_of[first]]]
                hashes = windows.hashes(np.full(len(behind), first), behind)
                yield from ((first, number) for number in self._keys.find(hashes)[1].tolist())

    def _compare(self, tally: Tally, asked: Asked, row: int, keys: Iterable[int]) -> None:
        """Whether `asked` holds evaluation rows whose key texts it holds."""
        inside = "\n".join(text.joined for text in asked.texts)
        for number in chain.from_iterable(self._rows_with[key][:_ALIKE] for key in keys):
            whole, needed = self._wholes[number], self._needed[number]
            certain = sum(text.weight for text in needed) >= self._run
            if not (certain or tally.is_rare(whole)) or any(text.joined not in inside for text in needed):
                continue
            other = self._evaluation[number]
            options = all(option in asked.options or option in inside for option in other.options)
            run = any(text.weight >= self._run for text in needed)
            overlap = Overlap("ngram" if run else "exact_question", number, other.question.joined.strip())
            if certain and options:
                tally.add_certain(row, overlap)
                continue
            alike = options or (self._asking[other.question.joined] <= 2 and _answered_alike(asked, other))
            asker = hash((asked.wording, asked.options))
            tally.add_question(whole, asker, row, overlap if alike else None)


def _answered_alike(one: Asked, other: Asked) -> bool:
    """Whether two rows with one question can be one: an answer without options, or the same right option."""
    return not one.options or not other.options or one.answer == other.answer


def _belongs(neighbour: list[str]) -> bool:
    """Whether the unit beside a question is part of what is asked: a number or a sign."""
    return bool(neighbour) and (neighbour[0].isdigit() or not neighbour[0][0].isalnum())
