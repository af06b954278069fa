"""What stands before a question: a task's description and solved examples, the same for all its questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from roma_ds.config.schema import RunConfig, TaskConfig
from roma_ds.data.chat import turn_of
from roma_ds.data.message import Message
from roma_ds.data.rows import Row
from roma_ds.data.sample import Sample
from roma_ds.data.sources import Source, shots_source
from roma_ds.data.tasks import Task, shots_of, task_of
from roma_ds.data.templates import solution, solved
from roma_ds.errors import UserError

BETWEEN = "\n\n"
"""Between examples, as lm-evaluation-harness has it."""


@dataclass(frozen=True)
class Preface:
    """The texts before the questions of one task."""

    texts: dict[str, str]
    """By subject where the task tells subjects apart, else all under the empty name."""
    source: str = ""
    """Where the examples come from."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the examples' rows, by the same names."""
    turns: dict[str, tuple[Message, ...]] = field(default_factory=dict)
    """The same as the texts, as turns of a chat."""

    def before(self, row: Row) -> str:
        """The text before the question of `row`."""
        return self.texts[self._name(row)]

    def turns_before(self, row: Row) -> tuple[Message, ...]:
        """The turns before the question of `row`."""
        return self.turns[self._name(row)]

    def _name(self, row: Row) -> str:
        subject = str(row.get("subject") or "")
        return subject if subject in self.texts else ""


def preface(
    run: RunConfig, task: TaskConfig, rows: Sequence[Row], rendered: Callable[[Row], Sample]
) -> Preface:
    """The preface of `task`, whose evaluated questions are `rows`.

    rendered: a row as a sample without preface. Examples are drawn by `eval.seed`, stay in the order of their
    file, and never ask what an evaluated question asks.
    Raises UserError where they cannot be had: no source, or fewer rows than `eval.shots`.
    """
    definition = task_of(task.name)
    apart = bool(definition.description) or definition.shots_by_subject
    subjects = dict.fromkeys(str(row.get("subject") or "") if apart else "" for row in rows)
    count = shots_of(run, task)
    descriptions = {subject: _description(definition, subject) for subject in subjects}
    system = {name: (Message("system", text),) if text else () for name, text in descriptions.items()}
    if not count:
        return Preface(descriptions, turns=dict(system))
    source = shots_source(run, task)
    evaluated = {_content(row) for row in rows}
    pool = [row for row in source.rows() if _content(row) not in evaluated]
    texts, examples, turns = {}, {}, {}
    for subject in subjects:
        own = subject if definition.shots_by_subject else ""
        chosen = _drawn(
            run, count, source, [row for row in pool if not own or row.get("subject") == own], own
        )
        shown = [(row, rendered(row)) for row in chosen]
        texts[subject] = descriptions[subject] + "".join(solved(*one) + BETWEEN for one in shown)
        asked = [turn_of(sample, solution(row, sample)) for row, sample in shown]
        turns[subject] = (*system[subject], *chain.from_iterable(asked))
        examples[subject] = [row["id"] for row in chosen]
    return Preface(texts, source.origin, examples, turns)


def _drawn(run: RunConfig, count: int, source: Source, pool: Sequence[Row], subject: str) -> list[Row]:
    if len(pool) < count:
        of = f" on {subject}" if subject else ""
        raise UserError(
            f"eval.shots is {count}, but {source.origin} ({source.split}) has {len(pool)} rows{of} that are "
            "not evaluated themselves",
            f"set eval.shots to at most {len(pool)}, or name another source by the task's shots_path or "
            "shots_split",
        )
    numbers = random.Random(f"{run.eval.seed}/{source.label}/{source.split}/{subject}").sample(
        range(len(pool)), count
    )
    return [pool[number] for number in sorted(numbers)]


def _description(definition: Task, subject: str) -> str:
    if not (definition.description and subject):
        return ""
    return definition.description.replace("{subject}", subject.replace("_", " "))


def _content(row: Row) -> tuple[str, str]:
    return str(row.get("passage") or "").strip(), str(row.get("question") or row.get("prompt")).strip()
