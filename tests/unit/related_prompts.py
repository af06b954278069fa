"""Random prompts that begin as others do."""

from __future__ import annotations

import random

Ids = tuple[int, ...]


def related(seed: int, count: int = 12, most: int = 140) -> list[Ids]:
    """Equal ones, beginnings of others, strangers and single tokens among them; ids from 3 to `most`."""
    draw = random.Random(seed)
    found: list[Ids] = []
    for _ in range(count):
        base: Ids = ()
        if found and draw.random() < 0.8:
            base = draw.choice(found)
            base = base[: draw.randint(0, len(base))] if draw.random() < 0.6 else base
        own = tuple(draw.randint(3, most) for _ in range(draw.choice((0, 1, 3, 9, 30))))
        found.append((*base, *own) or (draw.randint(3, most),))
    return found
