"""Rows of the demo suite: a deterministic function of the split, the count and the seed.

A row is what the rest of the package takes as a dataset row::

    {"id": "test-0-17", "prompt": "Question : ... Options : a , b , c , d . Answer :",
     "question": "...?", "choices": [4 words], "answer": 2, "skill": "sum", "phrasing": 305}

The model sees `prompt`, and the right choice follows after one space. `question` leaves the options out and
is what the task embedding sees.

split       | cue            | frame            | use
base        | known or rare  | any              | base training only
known       | known          | known            | accuracy where the routers were trained
train       | known or rare  | known or train   | router training
validation  | rare           | validation       | choice of hyperparameters
test        | rare           | test             | reported, looked at once
"""

from __future__ import annotations

import random
import re
from typing import Any

from roma_ds.demo.phrasings import FRAMES, KNOWN_CUES, RARE_CUES, cue_text
from roma_ds.demo.skills import FAMILIES, SKILLS, Item

Row = dict[str, Any]

SPLITS = ("base", "known", "train", "validation", "test")
CHOICES = 4
BASE_KNOWN_SHARE = 0.6
"""Share of known phrasings in the base mixture; the rest pairs any cue with any frame."""
TRAIN_KNOWN_SHARE = 0.5
"""Share of known phrasings in the router-training split."""

_FRAME_OFFSETS = {
    name: sum(len(FRAMES[earlier]) for earlier in list(FRAMES)[:place]) for place, name in enumerate(FRAMES)
}
_ALL_FRAMES = tuple(frame for frames in FRAMES.values() for frame in frames)


def generate(split: str, count: int, seed: int) -> list[Row]:
    """`count` rows of a split, every skill as often as any other, up to one row."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    rows: list[Row] = []
    order: list[str] = []
    for number in range(count):
        if not order:
            order = list(SKILLS)
            rng.shuffle(order)
        rows.append(_row(f"{split}-{seed}-{number}", split, order.pop(), rng))
    return rows


def phrasing_group(phrasing: int) -> str:
    """known, train, validation or test; `mixed` for pairs of cue and frame that only base training has."""
    cue, frame = divmod(phrasing, 100)
    group = next(name for name in reversed(FRAMES) if frame >= _FRAME_OFFSETS[name])
    rare = cue >= len(next(iter(KNOWN_CUES.values())))
    return group if rare == (group != "known") else "mixed"


def _row(identity: str, split: str, skill: str, rng: random.Random) -> Row:
    cue, frame = _phrasing(split, skill, rng)
    items = FAMILIES[SKILLS[skill]]
    item = rng.choice(items)
    slots = _shuffled_pair(item, skill, rng)
    body = _ALL_FRAMES[frame].format(cue=cue_text(skill, cue).format(**slots))
    choices = _choices(skill, item, items, rng)
    return {
        "id": identity,
        "prompt": f"Question : {body} Options : {' , '.join(choices)} . Answer :",
        "question": natural(body),
        "choices": choices,
        "answer": choices.index(item.answers[skill]),
        "skill": skill,
        "phrasing": 100 * cue + frame,
    }


def _phrasing(split: str, skill: str, rng: random.Random) -> tuple[int, int]:
    """(cue, frame) numbers of one row of the split."""
    known, rare = len(KNOWN_CUES[skill]), len(RARE_CUES[skill])
    share = {"base": BASE_KNOWN_SHARE, "known": 1.0, "train": TRAIN_KNOWN_SHARE}.get(split, 0.0)
    if rng.random() < share:
        return rng.randrange(known), rng.randrange(len(FRAMES["known"]))
    if split == "base":
        return rng.randrange(known + rare), rng.randrange(len(_ALL_FRAMES))
    return known + rng.randrange(rare), _FRAME_OFFSETS[split] + rng.randrange(len(FRAMES[split]))


def _shuffled_pair(item: Item, skill: str, rng: random.Random) -> dict[str, str]:
    """Two numbers in either order, where the order does not change the answer."""
    if "b" in item.slots and skill != "difference" and rng.random() < 0.5:
        return {"a": item.slots["b"], "b": item.slots["a"]}
    return item.slots


def _choices(skill: str, item: Item, items: tuple[Item, ...], rng: random.Random) -> list[str]:
    """The right answer, up to two answers of sibling skills, and answers of this skill to other items."""
    siblings = [word for name, word in item.answers.items() if name != skill]
    rng.shuffle(siblings)
    choices = [item.answers[skill], *siblings[:2]]
    while len(choices) < CHOICES:
        other = rng.choice(items).answers[skill]
        if other not in choices:
            choices.append(other)
    rng.shuffle(choices)
    return choices


def natural(text: str) -> str:
    """Word-level text as people write it: no space before punctuation, a capital at the start."""
    text = re.sub(r" ([?.,])", r"\1", text)
    return text[0].upper() + text[1:]
