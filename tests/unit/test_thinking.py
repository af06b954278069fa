"""Where a model thinks, and which stop sequences end what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.data.tasks import OWN, TASKS
from roma_ds.families.batching import Batching
from roma_ds.writing.generation import Asked, Writer, Written
from roma_ds.writing.thinking import answered, is_thinking, stop_place


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("C", ["C"]),
        ("<think>A</think> C", ["", " C"]),
        ("A </think>C", ["C"]),
        ("so <THINKING>A</THINKING>B<think>x</think>C", ["so ", "B", "C"]),
        ("<think>A", [""]),
        ("C <think>A", ["C "]),
        ("<think><think>A</think>C", ["", "C"]),
        ("<|channel|>analysis<|message|>A<|channel|>final<|message|>C", ["", "C"]),
        ("", [""]),
    ],
)
def test_what_stands_outside_thinking(text: str, outside: list[str]) -> None:
    assert [text[start:end] for start, end in answered(text)] == outside


def test_a_prompt_that_ends_with_an_opening_tag_begins_the_thinking() -> None:
    assert is_thinking("Why?\n<think>\n") and not is_thinking("Think between <think> and </think>. Why?")
    assert not is_thinking("Use the tag <think> first. Why?") and not is_thinking("")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\nC\n\nand more", "\n\nC"),
        ("\n\n", None),
        ("C", None),
        ("<think>\n\nA\n\n</think>\n\nC\n\nmore", "<think>\n\nA\n\n</think>\n\nC"),
        ("<think>\n\nA\n\n", None),
        ("\n\nQuestion: x", "\n\n"),
    ],
)
def test_stop_sequences_count_once_the_answer_has_begun(text: str, said: str | None) -> None:
    place = stop_place(text, ("\n\n",))
    assert (None if place is None else text[:place]) == (said if said and said.strip() else None)


ALONE = World(Ranks(), torch.device("cpu"))
WORDS = ["<eos>", "\n\n", "C", " more", "<think>", "</think>", "Question:", " A", "\n"]


class _Speaker:
    """Says given words in turn, whatever the prompt is."""

    world = ALONE
    partitioned = False
    batching: Batching = "padded"
    generation_config = SimpleNamespace(eos_token_id=0)

    def __init__(self, said: Sequence[str]) -> None:
        self.said = [WORDS.index(word) for word in said]

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Any:
        tokens = iter(self.said)
        return lambda chosen: torch.eye(len(WORDS))[[next(tokens)]]


def spoken(said: Sequence[str], stop: tuple[str, ...], anywhere: bool = False, prompt: str = "C") -> Written:
    tokenizer = SimpleNamespace(
        eos_token_id=0, decode=lambda ids, skip_special_tokens: "".join(WORDS[one] for one in ids if one)
    )
    asked = Asked((WORDS.index(prompt),), stop, anywhere)
    (written,) = Writer(_Speaker(said), tokenizer, len(said)).write([asked], 1, "write") or []
    return written


def test_a_blank_line_before_the_answer_or_in_its_thinking_does_not_end_it() -> None:
    begun = spoken(["\n\n", "C", "\n\n", " more"], ("\n\n",))
    assert (begun.text, begun.ended, begun.tokens) == ("\n\nC", True, 3)
    thought = spoken(["<think>", " A", "\n\n", "</think>", "\n\n", "C", "\n\n", " A"], ("\n\n",))
    assert (thought.text, thought.ended) == ("<think> A\n\n</think>\n\nC", True)
    opened = spoken([" A", "\n\n", "</think>", "C", "\n\n", " A"], ("\n\n",), prompt="<think>")
    assert (opened.text, opened.ended) == (" A\n\n</think>C", True)


def test_what_is_cut_is_not_finished() -> None:
    assert not spoken(["<think>", "\n\n", " A"], ("\n\n",)).ended
    assert not spoken(["\n\n", "\n"], ("\n\n",)).ended
    assert spoken(["C", "<eos>", " A"], ("\n\n",)).ended
    harness = spoken(["\n\n", "C"], ("\n\n",), anywhere=True)
    assert (harness.text, harness.ended, harness.tokens) == ("", False, 1)


def test_no_task_stops_at_a_blank_line() -> None:
    assert all(
        "\n" not in one.replace("\nQuestion:", "") for task in (OWN, *TASKS.values()) for one in task.stop
    )
