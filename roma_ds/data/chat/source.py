"""Which chat template a run uses: the tokenizer's own, a named one of it, or a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from roma_ds.config.chat import ChatConfig
from roma_ds.config.spelling import did_you_mean
from roma_ds.errors import UserError

DATE = "strftime_now"
"""The function by which templates write today's date."""
_DATED = re.compile(rf"{DATE}\(\s*(['\"])(.*?)\1\s*\)")


def own_templates(tokenizer: Any) -> dict[str, str]:
    """The tokenizer's chat templates by name; a single one is `default`."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, Mapping):
        return {str(name): str(text) for name, text in own.items()}
    return {"default": str(own)} if own else {}


def has_template(tokenizer: Any, chat: ChatConfig) -> bool:
    """Whether there is a template to use."""
    return chat.template is not None or bool(own_templates(tokenizer))


def chosen_templates(tokenizer: Any, chat: ChatConfig) -> dict[str, str]:
    """The templates to use: `default`, and where the tokenizer has one of its own for it, `tool_use`.

    Raises UserError where there is none of that name, or no default among several.
    """
    own = own_templates(tokenizer)
    if chat.template is not None:
        return {"default": _named(own, chat.template)}
    if not own:
        raise UserError(
            "data.template is chat, but the tokenizer of model.path has no chat template",
            "take the chat model's own folder, give a file by data.chat.template, or set data.template=auto, "
            "which goes without",
        )
    if "default" not in own:
        raise UserError(
            f"the tokenizer of model.path has the chat templates {', '.join(sorted(own))} and no default one",
            "name one of them by data.chat.template",
        )
    return {name: own[name] for name in ("default", "tool_use") if name in own}


def _named(own: Mapping[str, str], wanted: str) -> str:
    if wanted in own:
        return own[wanted]
    path = Path(wanted)
    if not path.is_file():
        known = f"the tokenizer's are {', '.join(sorted(own))}" if own else "the tokenizer has none"
        raise UserError(
            f"data.chat.template: '{wanted}' is neither a file nor the name of a chat template"
            f"{did_you_mean(wanted, list(own))}",
            f"give a file with a Jinja template, or a name; {known}",
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"data.chat.template: {path} cannot be read: {reason}", "check the file") from error


def dated(template: str, day: date) -> str:
    """The template with `day` where it would write the date of the moment it is used at."""
    return _DATED.sub(lambda found: json.dumps(day.strftime(found[2]), ensure_ascii=False), template)
