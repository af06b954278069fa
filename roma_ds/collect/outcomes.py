"""Outcomes of samples that are judged by the answers that the model generates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from roma_ds.sequences.scores import Scores


@dataclass(frozen=True)
class Generated:
    """The answers to one prompt, one entry an answer, and what was read out of them."""

    texts: tuple[str, ...]
    extracted: tuple[str, ...]
    """Letter, number or text that counts; empty where there is none."""
    right: tuple[bool, ...]
    predicted: tuple[int, ...]
    """Number of the option, -1 where none was given or there are none."""
    new_tokens: tuple[int, ...]
    ended: tuple[bool, ...]
    """Whether an answer ended by itself, not by the limit of new tokens."""

    @property
    def share(self) -> float:
        """Of right ones among the answers."""
        return sum(self.right) / len(self.right)


def with_generated(
    scores: Scores, generated: Sequence[Generated | None], right_share: float
) -> tuple[Scores, dict[str, Any]]:
    """The scores with what the generated answers say, and the columns of these.

    generated: by sample, None where likelihood judges. A sample is right from `right_share` of right ones on,
    its margin is their share, and predicted the option that they give most often. Loss and routing stay.
    """
    predicted, correct, margin = scores.predicted.copy(), scores.correct.copy(), scores.margin.copy()
    for row, one in enumerate(generated):
        if one is not None:
            predicted[row] = Counter(one.predicted).most_common(1)[0][0]
            correct[row], margin[row] = one.share >= right_share, one.share
    columns = {
        name: [list(getattr(one, name)) if one is not None else None for one in generated]
        for name in ("texts", "extracted", "right", "new_tokens")
    }
    columns["generated"] = columns.pop("texts")
    return replace(scores, predicted=predicted, correct=correct, margin=margin), columns


def shares(generated: Sequence[Generated]) -> dict[str, Any]:
    """Facts of one dataset: how many answers, and the shares of right, unread and unfinished ones."""
    right = [right for one in generated for right in one.right]
    return {
        "samples": len(generated),
        "answers": len(right),
        "right": float(np.mean(right)),
        "unread": float(np.mean([not text for one in generated for text in one.extracted])),
        "unfinished": float(np.mean([not ended for one in generated for ended in one.ended])),
    }
