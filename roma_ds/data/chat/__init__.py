"""Prompts as a chat: turns, and the template that writes them."""

from roma_ds.data.chat.template import ChatTemplate, described
from roma_ds.data.chat.turns import after, templated, turn_of, user_texts

__all__ = ["ChatTemplate", "after", "described", "templated", "turn_of", "user_texts"]
