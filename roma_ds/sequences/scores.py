"""What the frozen pass finds for each sample: option log-likelihoods, outcome and routing weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.sequences.encoding import Prompt


@dataclass(frozen=True)
class Scores:
    """Results for n samples, in their order."""

    option_loglikelihoods: list[NDArray[np.float32]]
    """Per sample, float32 [options]: sum of token log-probabilities in nats; empty for free-text answers."""
    target_loglikelihood: NDArray[np.float32]
    """[n], of the true answer"""
    loss: NDArray[np.float32]
    """[n], mean cross-entropy per token of the true answer, in nats"""
    predicted: NDArray[np.int64]
    """[n], most likely option, the first of equals; -1 for free-text answers"""
    correct: NDArray[np.bool_]
    """[n]; a free-text answer is right when greedy decoding yields it"""
    margin: NDArray[np.float32]
    """[n], true answer's log-likelihood minus the best other option's (free text: least token margin)"""
    routing: NDArray[np.float16]
    """[n, MoE layers, experts]"""
    tokens_read: int
    """Tokens of all sequences that were read"""

    @staticmethod
    def assemble(
        prompts: Sequence[Prompt],
        found: Iterable[tuple[int, int, float, bool, float, Any, Any]],
        tokens_read: int,
    ) -> Scores:
        """From per-sequence results: (row, option, loglikelihood, greedy, margin, options, routing)."""
        by_row: dict[int, dict[int, tuple[float, bool, float, Any, Any]]] = {}
        for row, option, *rest in found:
            by_row.setdefault(row, {})[option] = tuple(rest)
        options: list[NDArray[np.float32]] = []
        target, loss, predicted, correct, margin, routing = [], [], [], [], [], []
        for row, prompt in enumerate(prompts):
            parts = by_row[row]
            values = np.zeros(0, np.float32)
            if prompt.single_token_options:
                values = parts[-1][3]
            elif prompt.options:
                # Equal options are read in different batches: they get one value, to the last bit.
                texts = [(prompt.before(number), option) for number, option in enumerate(prompt.options)]
                values = np.array([parts[texts.index(text)][0] for text in texts], np.float32)
            first = parts[min(parts)]
            routing.append(first[4])
            options.append(values)
            if prompt.options:
                answer = prompt.answer
                best = int(values.argmax())
                others = np.delete(values, answer)
                target.append(float(values[answer]))
                predicted.append(best)
                correct.append(best == answer)
                margin.append(float(values[answer] - others.max()) if others.size else 0.0)
            else:
                target.append(first[0])
                predicted.append(-1)
                correct.append(first[1])
                margin.append(first[2])
            loss.append(-target[-1] / len(prompt.target))
        return Scores(
            options,
            np.array(target, np.float32),
            np.array(loss, np.float32),
            np.array(predicted, np.int64),
            np.array(correct, np.bool_),
            np.array(margin, np.float32),
            np.stack(routing).astype(np.float16),
            tokens_read,
        )
