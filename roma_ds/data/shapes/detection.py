"""Which shape the rows of a file have, by the keys of its first rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from roma_ds.config.sources import ColumnsConfig
from roma_ds.config.spelling import did_you_mean
from roma_ds.data.shapes import instructions, questions
from roma_ds.data.shapes.chat import read_conversation, read_tools
from roma_ds.data.shapes.options import answer_form, option_columns
from roma_ds.data.shapes.row import Misfit, Row, one_key
from roma_ds.data.shapes.setting import Setting
from roma_ds.errors import UserError

CONVERSATIONS = ("messages", "conversations", "conversation")


class UnknownShape(UserError):
    """Rows have no shape that is known."""


@dataclass(frozen=True)
class Shape:
    """A shape that rows are known to come in."""

    name: str
    form: str
    """As messages show it."""
    needs: tuple[tuple[str, ...], ...]
    """Keys of which each row has one, of every group one."""
    reads: tuple[str, ...]
    """Further keys that it takes."""
    read: Callable[[dict[str, Any], Setting], Row]
    """A row into one of ours, but for its id. Raises Misfit."""

    @property
    def keys(self) -> frozenset[str]:
        """All that is read."""
        return frozenset(key for group in self.needs for key in group) | frozenset(self.reads) | {"id"}


def _conversation(row: dict[str, Any], setting: Setting) -> Row:
    [key] = setting.keys if len(setting.keys) == 1 else (one_key(row, *CONVERSATIONS),)
    if key not in row:
        raise Misfit(f"no {key}")
    columns = setting.columns
    read = read_conversation(row[key], setting.every_turn, columns.role, columns.content, row.get("system"))
    if row.get("tools") and (tools := read_tools(row["tools"])):
        read["tools"] = tools
    return read


QUESTION = Shape(
    "question",
    "question or prompt, answer (or answerKey); choices (or columns A, B, C, ...), passage (or context)",
    (("question", "prompt"), ("answer", "answerKey")),
    questions.KEYS,
    questions.read_question,
)
"""Our own shape."""
SHAPES = (
    Shape(
        "conversation",
        'messages (or conversations): [{"role": "user", "content": "..."}, {"role": "assistant", ...}], or '
        "from and value in place of role and content; system, tools",
        (CONVERSATIONS,),
        ("system", "tools"),
        _conversation,
    ),
    Shape(
        "instruction",
        "instruction, output; input, system, history",
        (("instruction",), ("output", "response")),
        ("input", "context", "system", "history"),
        instructions.read_instruction,
    ),
    QUESTION,
    Shape(
        "question with answers",
        "question, answers (a list, or {text: [...]}); context",
        (("question",), ("answers",)),
        ("context", "passage", "title", "subject"),
        questions.read_answers,
    ),
    Shape(
        "prompt and completion",
        "prompt, completion, each a text or messages",
        (("prompt",), ("completion", "response")),
        ("system", "tools"),
        instructions.read_completion,
    ),
)
"""In the order in which they are looked for."""
KNOWN = "; ".join(f"{place}) {shape.form}" for place, shape in enumerate(SHAPES, start=1))


@dataclass(frozen=True)
class Chosen:
    """The shape of a file, and what its rows need to be read by."""

    shape: Shape
    setting: Setting
    renamed: dict[str, str]
    """Names of its columns, each with ours."""

    @property
    def title(self) -> str:
        """The shape with the keys that it was told by."""
        return f"{self.shape.name} ({', '.join(self.setting.keys)})" if self.setting.keys else self.shape.name

    @property
    def is_plain(self) -> bool:
        """Whether rows have our names already."""
        return not self.renamed and not self.setting.columns.ignore

    @property
    def is_ours(self) -> bool:
        """Whether it is our own shape under our names."""
        other = self.setting.options.columns or "context" in self.setting.keys
        return self.shape is QUESTION and self.is_plain and not other

    @property
    def known(self) -> frozenset[str]:
        """Keys of a row, by our names, that are read."""
        return self.shape.keys | frozenset(self.setting.options.columns)

    def ours(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under our names."""
        if self.is_plain:
            return row
        left = {*self.renamed, *self.setting.columns.ignore}
        named = {self.renamed[key]: value for key, value in row.items() if key in self.renamed}
        return {**{key: value for key, value in row.items() if key not in left}, **named}


def choose_shape(
    name: str, rows: Sequence[dict[str, Any]], columns: ColumnsConfig, every_turn: bool
) -> Chosen:
    """The shape of a file that begins with these rows. name: what to call it.

    Raises UnknownShape where they have none that is known, UserError where they are pairs to prefer between,
    or where the config names a column that none of them has.
    """
    _refuse_absent(name, rows, columns)
    mapped = questions.renamed(columns)
    for renamed in (mapped, {**_lowered(rows), **mapped}):
        chosen = Chosen(QUESTION, Setting(columns, every_turn), renamed)
        heads = [chosen.ours(row) for row in rows]
        # What is there, and in some row not empty.
        keys = {key for row in heads for key, value in row.items() if value is not None}
        _refuse_pairs(name, heads, keys)
        for shape in SHAPES:
            told_by = [key for group in shape.needs for key in group if key in keys]
            if all(any(key in told_by for key in group) for group in shape.needs):
                setting = chosen.setting
                if shape is QUESTION:
                    given = columns.choices if isinstance(columns.choices, tuple) else option_columns(keys)
                    listed = () if "choices" in keys else given
                    setting = replace(setting, options=answer_form(heads, listed))
                    told_by += [key for key in ("choices", *listed, "context") if key in keys]
                return replace(chosen, shape=shape, setting=replace(setting, keys=tuple(told_by)))
    known = QUESTION.keys | set(columns.ignore)
    if any(key not in known for row in rows for key in row):
        raise _unknown(name, rows)
    return Chosen(QUESTION, Setting(columns, every_turn), mapped)


def _lowered(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Columns that differ from names of ours in upper case alone, where that is beyond doubt."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lower = [key.strip().lower() for key in keys]
    ours = {key for shape in SHAPES for key in shape.keys}
    return {
        key: "answerKey" if name == "answerkey" else name
        for key, name in zip(keys, lower, strict=True)
        if lower.count(name) == 1 and key != name and (name in ours or name == "answerkey")
    }


def _refuse_pairs(name: str, rows: Sequence[dict[str, Any]], keys: set[str]) -> None:
    pairs = {"chosen", "rejected"} <= keys
    labelled = {"prompt", "completion", "label"} <= keys and any(
        isinstance(row.get("label"), bool) for row in rows
    )
    if pairs or labelled:
        what = "chosen and rejected" if pairs else "prompt, completion and label"
        raise UserError(
            f"{name}: its rows say which answers are preferred ({what}), and training takes one right answer "
            "a prompt",
            "write the answers to learn into a file of their own, under prompt and completion",
        )


def _unknown(name: str, rows: Sequence[dict[str, Any]]) -> UnknownShape:
    keys = ", ".join(map(repr, dict.fromkeys(key for row in rows for key in row))) or "none"
    return UnknownShape(
        f"{name}: the rows have no shape that is known; their keys are {keys}",
        "name its columns, as in columns: {question: query, answer: response}, or bring the rows into one of "
        f"these shapes: {KNOWN}",
    )


def _refuse_absent(name: str, rows: Sequence[dict[str, Any]], columns: ColumnsConfig) -> None:
    there = {key for row in rows for key in row}
    for spec in fields(columns):
        given = getattr(columns, spec.name)
        if rows and spec.name not in ("role", "content"):
            for theirs in given if isinstance(given, tuple) else (given,):
                if theirs is not None and theirs not in there:
                    raise UserError(
                        f"{name}: columns.{spec.name} names {theirs!r}, which none of the first rows has"
                        f"{did_you_mean(theirs, there)}",
                        f"name one of {', '.join(map(repr, sorted(there)))}",
                    )
