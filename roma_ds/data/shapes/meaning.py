"""What a file's columns are taken for, in words."""

from __future__ import annotations

from collections.abc import Iterable

from roma_ds.data.shapes.detection import Chosen

NOT_READ = "not read"
_ASKED, _ANSWER, _PASSAGE = "the question", "the answer", "the passage, before the question"
_SYSTEM, _TOOLS = "the text of a system turn", "the tools that may be called"
_INPUT, _SUBJECT = "put behind the instruction", "the subject"
_TURNS = "the turns: what the assistant says last is the answer"
_EVERY_TURN = "the turns: all that the assistant says is an answer"
MEANINGS = {
    "conversation": {"system": _SYSTEM, "tools": _TOOLS},
    "instruction": {
        "instruction": "the prompt",
        "output": _ANSWER,
        "response": _ANSWER,
        "input": _INPUT,
        "context": _INPUT,
        "system": _SYSTEM,
        "history": "earlier turns",
    },
    "question": {
        "question": _ASKED,
        "prompt": "the prompt, taken verbatim",
        "answer": _ANSWER,
        "answerKey": _ANSWER,
        "choices": "the options",
        "passage": _PASSAGE,
        "context": _PASSAGE,
        "subject": _SUBJECT,
        "skill": _SUBJECT,
        "solution": "the worked solution, shown in solved examples",
        "system": _SYSTEM,
    },
    "question with answers": {
        "question": _ASKED,
        "answers": "the answers, of which the first is learned",
        "passage": _PASSAGE,
        "context": _PASSAGE,
        "subject": _SUBJECT,
    },
    "prompt and completion": {
        "prompt": "the prompt, taken verbatim",
        "completion": _ANSWER,
        "response": _ANSWER,
        "system": _SYSTEM,
        "tools": _TOOLS,
    },
}
"""By name of a shape and our name of a column."""


def meanings(chosen: Chosen, columns: Iterable[str]) -> dict[str, str]:
    """Columns of a file, each with what it is taken for."""
    options = chosen.setting.options.columns
    ignored = chosen.setting.columns.ignore
    known = {"id": "the id", **MEANINGS[chosen.shape.name]}
    found: dict[str, str] = {}
    for column in columns:
        ours = chosen.renamed.get(column, column)
        if column in ignored:
            found[column] = NOT_READ
        elif ours in options:
            found[column] = "the options, one column each"
        elif chosen.shape.name == "conversation" and ours in chosen.setting.keys:
            found[column] = _EVERY_TURN if chosen.setting.every_turn else _TURNS
        else:
            found[column] = known.get(ours, NOT_READ)
    return found
