"""Rows of the datasets that the paper trains on and does not evaluate into rows of ours."""

from __future__ import annotations

import re
from typing import Any

from roma_ds.data.shapes.checks import MOST_CHOICES
from roma_ds.data.shapes.row import Row

_LISTED = re.compile(r"\n\s*choice:.*", re.DOTALL)
_ENDS = re.compile(r"^\s*Q:\s*|\s*\n\s*A:\s*$")


def social_iqa(row: dict[str, Any], place: int) -> Row:
    """Three answers to a question about a situation."""
    return {
        "id": str(place),
        "question": f"{row['context'].strip()} {row['question'].strip()}",
        "choices": [row["answerA"], row["answerB"], row["answerC"]],
        "answer": int(row["label"]) - 1 if str(row["label"]).strip() else None,
    }


def cb(row: dict[str, Any], place: int) -> Row:
    """Whether a text entails, contradicts, or leaves open a sentence."""
    return {
        "id": str(place),
        "passage": row["premise"],
        "question": f"{row['hypothesis'].strip()} True, false, or neither?",
        "choices": ["true", "false", "neither"],
        "answer": row["label"],
    }


def rte(row: dict[str, Any], place: int) -> Row:
    """Whether a text entails a sentence."""
    return {
        "id": str(place),
        "passage": row["premise"],
        "question": f"{row['hypothesis'].strip()} True or false?",
        "choices": ["true", "false"],
        "answer": row["label"],
    }


def copa(row: dict[str, Any], place: int) -> Row:
    """Cause or effect of an event."""
    wanted = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}[row["question"]]
    return {
        "id": str(place),
        "question": f"{row['premise'].strip()} {wanted}",
        "choices": [row["choice1"], row["choice2"]],
        "answer": row["label"],
    }


def wic(row: dict[str, Any], place: int) -> Row:
    """Whether a word means the same in two sentences."""
    return {
        "id": str(place),
        "passage": f"{row['sentence1']}\n{row['sentence2']}",
        "question": f'Does the word "{row["word"]}" mean the same in both sentences?',
        "choices": ["no", "yes"],
        "answer": row["label"],
    }


def wsc(row: dict[str, Any], place: int) -> Row:
    """Whether a pronoun stands for a name."""
    return {
        "id": str(place),
        "passage": row["text"],
        "question": f'Does "{row["span2_text"]}" stand for "{row["span1_text"]}"?',
        "choices": ["no", "yes"],
        "answer": row["label"],
    }


def multirc(row: dict[str, Any], place: int) -> Row:
    """Whether a proposed answer to a question about a passage is right."""
    return {
        "id": str(place),
        "passage": row["paragraph"],
        "question": f'{row["question"].strip()} Is "{row["answer"].strip()}" a right answer?',
        "choices": ["no", "yes"],
        "answer": row["label"],
    }


def knowref(row: dict[str, Any], place: int) -> Row:
    """Which of two people the pronoun in brackets stands for."""
    candidates = [row["candidate0"], row["candidate1"]]
    return {
        "id": str(place),
        "question": f"{row['swapped_sentence'].strip()} Whom does the word in brackets stand for?",
        "choices": [name[0] if isinstance(name, list) else name for name in candidates],
        "answer": 0 if row["correct_candidate"] == "candidate_0" else 1,
    }


def bigbench(row: dict[str, Any], place: int) -> Row | None:
    """A task's question without its own list of choices; None where it has none, or not one right answer."""
    choices, scores = list(row["multiple_choice_targets"]), list(row["multiple_choice_scores"])
    fit = 2 <= len(choices) <= MOST_CHOICES and scores.count(1) == 1 and len(set(choices)) == len(choices)
    question = _ENDS.sub("", _LISTED.sub("", row["inputs"])).strip()
    if not (fit and question and all(choice.strip() for choice in choices)):
        return None
    return {"id": str(place), "question": question, "choices": choices, "answer": scores.index(1)}


SUPERGLUE = {"cb": cb, "copa": copa, "rte": rte, "wic": wic, "wsc": wsc}
"""Its parts by their names on the hub, without BoolQ, which is evaluated, MultiRC, which the paper counts by
itself, and ReCoRD, whose answers are no choice among a few."""

BIGBENCH = (
    "abstract_narrative_understanding", "causal_judgment", "cause_and_effect", "date_understanding",
    "disambiguation_qa", "entailed_polarity", "epistemic_reasoning", "fantasy_reasoning",
    "figure_of_speech_detection", "implicatures", "intent_recognition", "logical_args", "logical_deduction",
    "logical_fallacy_detection", "misconceptions", "movie_recommendation", "navigate", "odd_one_out",
    "penguins_in_a_table", "physical_intuition", "presuppositions_as_nli",
    "reasoning_about_colored_objects", "riddle_sense", "ruin_names", "similarities_abstraction", "snarks",
    "sports_understanding", "strange_stories", "strategyqa", "temporal_sequences", "timedial",
    "tracking_shuffled_objects", "understanding_fables", "winowhy",
)  # fmt: skip
"""English multiple-choice tasks, a choice of this project: the paper does not say which it takes. Those
made from evaluated data or from its sources are left out, and a few that would outnumber the rest."""
