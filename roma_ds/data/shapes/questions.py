"""Rows of a question or a prompt, with options or a text as answer."""

from __future__ import annotations

from typing import Any

from roma_ds.config.sources import ColumnsConfig
from roma_ds.data.message import Message
from roma_ds.data.shapes.options import read_options
from roma_ds.data.shapes.row import Misfit, Row, is_text, one_key, shown, unpacked_text
from roma_ds.data.shapes.setting import Setting

KEYS = ("choices", "passage", "context", "subject", "solution", "skill", "phrasing")
"""What rows of ours take beside question and answer; the last two are those of the demo suite."""


def renamed(columns: ColumnsConfig) -> dict[str, str]:
    """Columns that the config names, each with our name."""
    theirs = {
        "id": columns.id,
        "question": columns.question,
        "prompt": columns.prompt,
        "passage": columns.passage,
        "choices": columns.choices,
        "answer": columns.answer,
        "subject": columns.subject,
        "solution": columns.solution,
        "system": columns.system,
        "messages": columns.messages,
        "tools": columns.tools,
    }
    return {name: ours for ours, name in theirs.items() if isinstance(name, str)}


def read_question(row: dict[str, Any], setting: Setting) -> Row:
    """A row of ours in any of its forms; what is wrong with it stays, to be named with all else."""
    if "context" in row:
        passage = row[one_key(row, "passage", "context")]
        row = {key: value for key, value in row.items() if key != "context"} | {"passage": passage}
    read = read_options(row, setting.options)
    if setting.columns.system is not None and read.get("system"):
        return _with_system(read)
    return read


def read_answers(row: dict[str, Any], setting: Setting) -> Row:
    """A question with several right answers, of which the first is learned. Raises Misfit."""
    given = unpacked_text(row.get("answers"))
    texts = given.get("text") if isinstance(given, dict) else given
    listed = texts if isinstance(texts, list) else [texts]
    if not listed or not all(is_text(text) for text in listed):
        raise Misfit(f"answers must be texts, at least one, got {shown(row.get('answers'))}")
    kept = {key: value for key, value in row.items() if key in ("question", "subject", "id")}
    return {**kept, "passage": row.get(one_key(row, "context", "passage")), "answer": listed[0]}


def _with_system(row: Row) -> Row:
    """A row with a system text as the turns of a chat. Raises Misfit where it has options or a passage."""
    if row.get("choices") or row.get("passage"):
        raise Misfit("a system text goes with a question or prompt alone, not with options or a passage")
    asked = row.get("question") if row.get("prompt") is None else row["prompt"]
    if not isinstance(asked, str) or not isinstance(row["system"], str):
        raise Misfit(f"system and question must be texts, got {shown(row['system'])} and {shown(asked)}")
    kept = {key: value for key, value in row.items() if key in ("id", "answer", "subject")}
    turns = (Message("system", row["system"]), Message("user", asked))
    return {**kept, "question": asked, "messages": turns}
