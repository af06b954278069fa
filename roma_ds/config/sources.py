"""Keys of `data.train[]`: where rows come from, and how their columns are called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from roma_ds.config.constraints import Count, NotEmpty, Text
from roma_ds.config.spelling import did_you_mean

AnswerForm = Literal["letter", "text", "solution"]
JUDGES = ("likely", "final", "number", "letter", "text")
"""Judges that have a name; any other is a function of the user's."""
Paths = Text | Annotated[tuple[Text, ...], NotEmpty()]


@dataclass(frozen=True)
class ColumnsConfig:
    """Names of the columns where they are others than ours; null is our own name or another that is known."""

    given_only: ClassVar[bool] = True

    id: Text | None = None
    """Of the column that tells rows apart."""
    question: Text | None = None
    """Of the question, which is put into a template."""
    prompt: Text | None = None
    """Of a prompt, which is taken verbatim."""
    passage: Text | None = None
    """Of the text that the question is about."""
    choices: Text | Annotated[tuple[Text, ...], NotEmpty()] | None = None
    """Of the options: one column that holds them all, or a list of columns with one each."""
    answer: Text | None = None
    """Of the answer."""
    subject: Text | None = None
    """Of the subject."""
    solution: Text | None = None
    """Of the worked solution."""
    system: Text | None = None
    """Of the text of a system turn."""
    messages: Text | None = None
    """Of a conversation."""
    role: Text | None = None
    """Within a message, of who speaks."""
    content: Text | None = None
    """Within a message, of what is said."""
    tools: Text | None = None
    """Of the tools that a conversation may call."""
    ignore: tuple[Text, ...] = ()
    """Columns that are left out, whatever they hold."""


@dataclass(frozen=True)
class Judge:
    """A judge by name, or MODULE:FUNCTION or FILE.py:FUNCTION."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a text, or None."""
        place, colon, function = value.rpartition(":")
        if value in JUDGES or (colon and place and function.isidentifier()):
            return None
        suggested = did_you_mean(value, JUDGES)
        return f"must be {', '.join(JUDGES)}, MODULE:FUNCTION or FILE.py:FUNCTION, got {value!r}{suggested}"


@dataclass(frozen=True)
class DatasetConfig:
    """One training dataset: by name, or files of your own."""

    name: Text | None = None
    """A dataset that `roma-ds ls tasks` lists, or OWNER/NAME of one on the hub; read from data.data_root or
    from the hub. With path, what its rows are called."""
    path: Paths | None = None
    """A file, folder or pattern like `data/*.parquet`, or a list of these; kinds of files and shapes of rows
    are in docs/data.md."""
    split: Text = "train"
    """Split of a named dataset, or of a folder that has splits; for a file only a label."""
    subset: Text | None = None
    """Configuration of an OWNER/NAME, where it has several."""
    revision: Text | None = None
    """Branch, tag or commit of an OWNER/NAME; null is the default branch."""
    first: Count | None = None
    """Read so many rows from the beginning; of an OWNER/NAME nothing else is downloaded. null reads all."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Our names of columns to yours, as in {question: query, answer: response}."""
    limit: Count | None = None
    """Use this many rows, chosen by train.seed; null takes all."""
    answer: AnswerForm | None = None
    """What is learned. letter: options are listed and the answer is a letter. text: the option's text.
    solution: the whole worked solution of a row, which ends in its answer. null: solution for gsm8k, else
    letter."""
    judge: Annotated[str, Judge()] | None = None
    """What says that the pretrained model answers a sample right. likely: the likelihood of its answer. The
    others, the answers that it generates: final, by the last number, letter or text that a text states,
    whichever the right answer is; number, letter or text, by that alone; MODULE:FUNCTION or FILE.py:FUNCTION,
    by a Python function of yours. null: final where solutions are learned, else likely."""

    @property
    def label(self) -> str:
        """What ids, logs and the manifest call it: the name, or the file's name without endings."""
        return self.name or label_of(self.path)

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        if self.name is None and self.path is None:
            yield "", "give name, path or both"
        if isinstance(self.path, tuple) and self.name is None:
            yield "path", "several paths need a name for their rows, as in {name: mine, path: [a, b]}"
        yield from hub_problems(self.name, self.path, self.subset, self.revision)


def label_of(path: Paths | None) -> str:
    """What rows of a path without name are called: the file's name without endings and signs of patterns."""
    file = Path(str(path))
    name = file.name.partition(".")[0]
    if any(sign in name for sign in "*?"):
        name = re.sub(r"\[[^]]*\]|[*?]", "", name).strip("-_ ")
    return name or (label_of(str(file.parent)) if file.parent != file else "data")


def is_hub_id(name: str | None) -> bool:
    """Whether a name is OWNER/NAME, of a dataset that is not known here."""
    return name is not None and "/" in name


def hub_problems(
    name: str | None, path: Paths | None, subset: str | None, revision: str | None
) -> Iterator[tuple[str, str]]:
    """(key, message) where keys are given that only an OWNER/NAME on the hub has."""
    for key, value in (("subset", subset), ("revision", revision)):
        if value is not None and (path is not None or not is_hub_id(name)):
            yield key, f"goes with a name like OWNER/NAME alone; got {value!r}"
