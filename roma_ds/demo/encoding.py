"""Suite rows as tensors, and the forward pass of the demo model over them.

Shapes: B rows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import OlmoeForCausalLM, PreTrainedTokenizerBase

from roma_ds.demo.skills import SKILLS
from roma_ds.demo.suite import Row, phrasing_group
from roma_ds.demo.taught_experts import Lesson, TaughtExperts


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: ids [B, T]; choices [B, 4]; everything else [B]."""

    ids: Tensor
    last: Tensor
    """Position of the last prompt token."""
    answers: Tensor
    """Token id of the right choice."""
    choices: Tensor
    skills: Tensor
    known: Tensor
    """bool: rows with a known phrasing."""


def encode(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Rows to tensors."""
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    length = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    choices = torch.tensor([tokenizer.convert_tokens_to_ids(row["choices"]) for row in rows])
    answer = torch.tensor([row["answer"] for row in rows])
    names = list(SKILLS)
    return Batch(
        ids=torch.tensor([prompt + [pad] * (length - len(prompt)) for prompt in prompts]),
        last=torch.tensor([len(prompt) - 1 for prompt in prompts]),
        answers=choices.gather(1, answer[:, None])[:, 0],
        choices=choices,
        skills=torch.tensor([names.index(row["skill"]) for row in rows]),
        known=torch.tensor([phrasing_group(row["phrasing"]) == "known" for row in rows]),
    )


def forward(model: OlmoeForCausalLM, blocks: list[TaughtExperts], lesson: Lesson, ids: Tensor) -> Tensor:
    """[B, T] -> final states [B, T, D]. Right padding needs no mask under causal attention."""
    for block in blocks:
        block.lesson = lesson
    states: Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return states


def at(values: Tensor, last: Tensor) -> Tensor:
    """[B, T, ...], [B] -> [B, ...]"""
    return values[torch.arange(len(last)), last]


def right(logits: Tensor, batch: Batch) -> Tensor:
    """[B, V] next-token logits -> bool [B]: the right choice has the highest log-likelihood of the four."""
    best = logits.gather(1, batch.choices).argmax(1, keepdim=True)
    return batch.choices.gather(1, best)[:, 0] == batch.answers


@torch.no_grad()
def accuracy(
    model: OlmoeForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[Row], size: int = 250
) -> float:
    """Share of rows answered right by the stock forward pass, `size` rows at a time."""
    count = 0
    for start in range(0, len(rows), size):
        batch = encode(rows[start : start + size], tokenizer)
        logits = model(input_ids=batch.ids, use_cache=False).logits
        count += int(right(at(logits, batch.last), batch).sum())
    return count / len(rows)
