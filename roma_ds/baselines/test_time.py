"""Methods that change routing at test time: C3PO, and oracle routing, which uses the labels of the test.

Shapes: n samples, k neighbours, M steered layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.baselines.descent import Descent, descend
from roma_ds.baselines.scoring import score
from roma_ds.network.steered import Steering
from roma_ds.network.tail import tail_of
from roma_ds.prefix.feed import Feed
from roma_ds.progress import Progress
from roma_ds.sequences.batches import Batch
from roma_ds.sequences.request_set import Requests
from roma_ds.sequences.scores import Scores
from roma_ds.training.step import task_term

Loss = Callable[[torch.Tensor], torch.Tensor]
"""[B] from routing weights [B, M, E], each sample's own."""
MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a sample's own routing among which kernel regression chooses."""


@dataclass(frozen=True)
class Questions:
    """Samples with their encoded sequences, cached or not."""

    requests: Requests
    feed: Feed
    routing: NDArray[np.floating]
    """[n, M, E], of the pretrained model in the steered layers"""

    def batch(self, rows: Sequence[int]) -> Batch:
        """The sequences of `rows` that end in the true answer."""
        return self.feed.batch([self.requests.targets[row] for row in rows])


@dataclass(frozen=True)
class Reference:
    """Solved samples beside each question, nearest first."""

    questions: Questions
    neighbours: NDArray[np.int64]
    """[n, k], rows of the reference set"""
    similarity: NDArray[np.float64]
    """[n, k], the kernel K of each"""

    def weights(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """[B, k], K divided by its sum over the neighbours."""
        kernel = self.similarity[list(rows)] + 1e-30
        shares: NDArray[np.float64] = kernel / kernel.sum(axis=1, keepdims=True)
        return shares


class TestTime:
    """A network whose routing may be given, and the questions that are asked of it; on this process alone."""

    __test__ = False

    def __init__(
        self, steering: Steering, questions: Questions, device: torch.device, batch_size: int
    ) -> None:
        self.steering = steering
        self.questions = questions
        self.device = device
        self.batch_size = batch_size
        self.tokens = 0
        """Tokens run for other things than the final answers, a backward pass counted as two forward ones."""

    def answer_loss(self, questions: Questions, rows: Sequence[int]) -> Loss:
        """Cross-entropy of the true answers of `rows`.

        The tokens before the first steered one are run here, once; the rest whenever the loss is asked for.
        """
        whole = questions.batch(rows)
        batch = tail_of(self.steering.routed, whole, self.device)
        self.tokens += whole.tokens

        def loss(routing: torch.Tensor) -> torch.Tensor:
            self.tokens += batch.tokens * (3 if torch.is_grad_enabled() else 1)
            output = self.steering.forward(batch, routing, self.device)
            return task_term(output.logits, batch, len(rows))

        return loss

    def neighbour_loss(self, reference: Reference, rows: Sequence[int]) -> Loss:
        """Loss of each question's neighbours under the question's weights, averaged by the kernel."""
        ids = reference.neighbours[list(rows)]
        of_each = self.answer_loss(reference.questions, [int(row) for row in ids.reshape(-1)])
        weights = torch.from_numpy(reference.weights(rows)).to(self.device, torch.float32)

        def loss(routing: torch.Tensor) -> torch.Tensor:
            losses = of_each(routing.repeat_interleave(ids.shape[1], dim=0)).reshape(ids.shape)
            return (weights * losses).sum(dim=1)

        return loss

    def oracle(
        self, questions: Questions, rows: Sequence[int], descent: Descent
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Weights [B, M, E] for `rows` by descent on the loss of their own true answers (eq 1); steps taken.

        It uses the answers of `questions`: on test questions it is an upper bound, no method.
        """

        def adapt(part: Sequence[int], start: torch.Tensor) -> tuple[torch.Tensor, int]:
            return descend(self.answer_loss(questions, part), start, descent)

        return self._adapted(questions, rows, adapt, "oracle routing")

    def descent(self, reference: Reference, descent: Descent) -> tuple[NDArray[np.float32], list[int]]:
        """C3PO's neighbourhood gradient descent: weights [n, M, E] of all questions; steps taken."""

        def adapt(part: Sequence[int], start: torch.Tensor) -> tuple[torch.Tensor, int]:
            return descend(self.neighbour_loss(reference, part), start, descent)

        return self._adapted(self.questions, range(len(self.questions.routing)), adapt, "C3PO descent")

    def regression(self, reference: Reference) -> tuple[NDArray[np.float32], dict[str, int]]:
        """C3PO's kernel regression: weights [n, M, E] of all questions, and how often each mix was best.

        The neighbours' mean by the kernel is mixed with the question's own routing; the share of that is, of
        MIXES, the one under which the neighbours' loss is least.
        """
        chosen = dict.fromkeys(map(str, MIXES), 0)

        def adapt(part: Sequence[int], start: torch.Tensor) -> tuple[torch.Tensor, int]:
            solved = reference.questions.routing[reference.neighbours[list(part)]]
            mean = np.einsum("bk,bkme->bme", reference.weights(part), np.asarray(solved, np.float64))
            goal = torch.from_numpy(mean).to(start)
            mixed = [share * start + (1 - share) * goal for share in MIXES]
            loss = self.neighbour_loss(reference, part)
            with torch.no_grad():
                losses = torch.stack([loss(one) for one in mixed])
            best = losses.argmin(dim=0)
            for place in best.tolist():
                chosen[str(MIXES[place])] += 1
            return torch.stack(mixed)[best, torch.arange(len(part), device=best.device)], 0

        found, _ = self._adapted(self.questions, range(len(self.questions.routing)), adapt, "C3PO regression")
        return found, chosen

    def scores(self, routing: NDArray[np.float32], title: str) -> Scores:
        """The questions answered under weights [n, M, E]; these are what the result holds as routing."""
        questions = self.questions

        def forward(numbers: Sequence[int], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            given = torch.from_numpy(routing[list(batch.rows)]).to(self.device)
            return self.steering.forward(batch, given, self.device).logits, given

        return score(questions.requests, questions.feed, self.batch_size, forward, title)

    def _adapted(
        self,
        questions: Questions,
        rows: Sequence[int],
        adapt: Callable[[Sequence[int], torch.Tensor], tuple[torch.Tensor, int]],
        title: str,
    ) -> tuple[NDArray[np.float32], list[int]]:
        found = np.empty((len(rows), *questions.routing.shape[1:]), np.float32)
        steps: list[int] = []
        with Progress(len(rows), title) as progress:
            for places in _in_parts(len(rows), self.batch_size):
                part = [rows[place] for place in places]
                start = torch.from_numpy(np.asarray(questions.routing[part], np.float32)).to(self.device)
                # Stored as float16: rows do not quite sum to 1.
                start = start / start.sum(dim=-1, keepdim=True)
                routing, taken = adapt(part, start)
                found[places] = routing.cpu().numpy()
                steps.append(taken)
                progress.advance(len(part))
        return found, steps


def _in_parts(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(count, start + size)))


def described(descent: Descent) -> dict[str, Any]:
    """The procedure, for a result file."""
    return {
        "procedure": "projected gradient descent on routing weights, each sample on its own, from the "
        "pretrained router's softmax; the k largest run going forward, the dense mixture going back",
        "lr": descent.lr,
        "final_lr": descent.final_lr,
        "steps": descent.steps,
        "stopping": (
            f"mean loss of a batch moves by less than {descent.tolerance}"
            if descent.tolerance
            else "all steps"
        ),
        "core_experts": descent.core_experts,
    }
