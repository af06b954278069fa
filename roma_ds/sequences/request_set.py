"""Which sequences the network must read to score a set of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.sequences.batches import in_batches, tokens_run
from roma_ds.sequences.encoding import Encoded, Prompt
from roma_ds.sequences.found import Record
from roma_ds.sequences.shared_batches import in_shared_batches
from roma_ds.sequences.token_scores import token_scores


@dataclass(frozen=True)
class Requests:
    """One sequence a prompt where that scores all its options, else one an option."""

    prompts: tuple[Prompt, ...]
    sequences: tuple[Encoded, ...]
    """A sequence's `row` is the number of its prompt."""
    options: tuple[int, ...]
    """By sequence, number of the option that it scores, -1 where it scores the target or all options."""
    targets: tuple[int, ...]
    """By prompt, number of the sequence that ends in the true answer."""

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every sequence."""
        return [sequence.length for sequence in self.sequences]

    @cached_property
    def _batches(self) -> dict[tuple[int, bool], list[list[int]]]:
        """By batch size and whether tokens are shared: a line and a pass ask for the same ones."""
        return {}

    def batches(self, batch_size: int, shared: bool) -> list[list[int]]:
        """Numbers of the sequences in batches; with `shared` those that share tokens lie together."""
        if (batch_size, shared) not in self._batches:
            cut = (
                in_shared_batches(self.sequences, batch_size)
                if shared
                else in_batches(self.lengths, batch_size)
            )
            self._batches[batch_size, shared] = cut
        return self._batches[batch_size, shared]

    def sharing(self, batch_size: int) -> str | None:
        """In words how many tokens shared batches run; None where nothing is shared."""
        batches = self.batches(batch_size, shared=True)
        run = sum(tokens_run([self.sequences[number] for number in batch], shared=True) for batch in batches)
        asked = sum(self.lengths)
        if run == asked:
            return None
        return f"{asked:,} tokens asked, {run:,} run ({asked / run:.1f} times fewer)"


def requests_of(prompts: Sequence[Prompt]) -> Requests:
    """The sequences that score `prompts`."""
    sequences: list[Encoded] = []
    options: list[int] = []
    targets: list[int] = []
    for row, prompt in enumerate(prompts):
        if prompt.single_token_options or not prompt.options:
            targets.append(len(sequences))
            sequences.append(Encoded(row, prompt.prompt, prompt.target, prompt.users[0]))
            options.append(-1)
        else:
            targets.append(len(sequences) + prompt.answer)
            sequences.extend(
                Encoded(row, prompt.before(number), option, prompt.user_before(number))
                for number, option in enumerate(prompt.options)
            )
            options.extend(range(len(prompt.options)))
    return Requests(tuple(prompts), tuple(sequences), tuple(options), tuple(targets))


def read_results(
    requests: Requests,
    numbers: Sequence[int],
    logits: torch.Tensor,
    routing: torch.Tensor,
    row: torch.Tensor | None = None,
) -> list[Record]:
    """Results of the sequences `numbers` from the output of their batch, in its order.

    logits: float32 [P, V]; row: int64 [A], the row of logits that predicts each answer token, one sequence's
    after another's, by default rows in order; routing: float32 [B, M, E].
    """
    weights = routing.to(torch.float16).cpu().numpy()
    answers = [requests.sequences[number].continuation for number in numbers]
    ids = torch.tensor([token for answer in answers for token in answer], device=logits.device)
    chosen, rivals = token_scores(logits, ids, row)
    ends = list(accumulate(map(len, answers), initial=0))
    rows = range(len(ids)) if row is None else row.tolist()
    return [
        _record(requests, number, chosen[start:end], rivals[start:end], logits[rows[start]], weights[index])
        for index, (number, start, end) in enumerate(zip(numbers, ends[:-1], ends[1:], strict=True))
    ]


def result_of(requests: Requests, number: int, logits: torch.Tensor, routing: NDArray[np.float16]) -> Record:
    """Result of the sequence `number`.

    logits: float32 [C, V], of every token of the vocabulary at the places of its continuation; routing:
    [M, E].
    """
    ids = torch.tensor(requests.sequences[number].continuation, device=logits.device)
    chosen, rivals = token_scores(logits, ids)
    return _record(requests, number, chosen, rivals, logits[0], routing)


def _record(
    requests: Requests,
    number: int,
    chosen: torch.Tensor,
    rivals: torch.Tensor,
    first: torch.Tensor,
    routing: NDArray[np.float16],
) -> Record:
    """chosen, rivals: as `token_scores` gives them. first: float32 [V], logits of the first token."""
    sequence = requests.sequences[number]
    prompt = requests.prompts[sequence.row]
    options = None
    if prompt.single_token_options:
        named = torch.tensor([option[0] for option in prompt.options], device=first.device)
        # The answer is one of them.
        lead = first[named] - first[sequence.continuation[0]]
        options = (chosen[0] + lead.cpu()).numpy().astype(np.float32)
    return (
        sequence.row,
        requests.options[number],
        float(chosen.sum()),
        bool((chosen >= rivals).all()),
        float((chosen - rivals).min()),
        options,
        routing,
    )
