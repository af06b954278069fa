"""The data stage alone: it needs no ranks and no network, so a mistake in the data shows at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from typing import Any

from roma_ds.config import RunConfig
from roma_ds.data.chat import ChatTemplate
from roma_ds.data.store import OUTPUTS, data_inputs, run_data
from roma_ds.errors import UserError
from roma_ds.pipeline.folders import Folders
from roma_ds.storage.stage import StageRecord


def chat_of(run: RunConfig, folders: Folders, tokenizer: Any = None) -> ChatTemplate | None:
    """What writes the prompts of a run; None where they are plain text.

    tokenizer: the model's, loaded where it is needed and not given. A template that writes the date keeps
    that on which the run's data were first made, so that a run goes on another day with the same prompts.
    Raises UserError where there is no such template or it cannot be used.
    """
    if run.data.template == "plain":
        return None
    if tokenizer is None:
        from roma_ds.checkpoint.loading import load_tokenizer

        tokenizer = load_tokenizer(run.model)
    chat = ChatTemplate.chosen(tokenizer, run.data, _day(folders.record("data")))
    if chat is None and run.roma.tokens == "user1":
        raise UserError(
            "roma.tokens is user1, a place in a chat, but the tokenizer of model.path has no chat template",
            "set roma.tokens=last1, take the chat model's own folder, or give a file by data.chat.template",
        )
    return chat


def _day(record: StageRecord) -> date:
    if not record.path.exists():
        return date.today()
    try:
        return date.fromisoformat(record.read()["inputs"]["template"]["day"])
    except (UserError, LookupError, TypeError, ValueError):
        # Made from plain text or by a template without a date; the stage says itself where it is damaged.
        return date.today()


def make_data(
    run: RunConfig,
    folders: Folders,
    say: Callable[[str], None],
    before_change: Callable[[], None] = lambda: None,
) -> None:
    """Read, check and render all data unless it is up to date. Raises UserError on bad input.

    before_change: called before anything is made or made anew; may refuse that.
    """
    record = folders.record("data")
    chat = chat_of(run, folders)
    inputs = data_inputs(run, chat)
    reason = record.why_stale(inputs)
    if reason is None:
        say("data: up to date")
        return
    before_change()
    say(f"data: {reason}")
    started = time.monotonic()
    manifest = run_data(run, folders.root, lambda line: say(f"data: {line}"), chat)
    facts = {part: manifest[part]["samples"] for part in ("training", "evaluation")}
    record.finish(inputs, list(OUTPUTS), time.monotonic() - started, facts)
    say(f"data: {facts['training']} training and {facts['evaluation']} evaluation samples")
