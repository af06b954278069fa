"""Rivals that train something else than routers, on the same data in the same order, with the same steps.

A plain loop on one process: they need no partitioning, and nothing of the manifold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from roma_ds.baselines.networks import Build, Rival, adapted, dense, virtual_tokens
from roma_ds.config import TrainConfig
from roma_ds.errors import RomaError
from roma_ds.prefix.feed import Feed
from roma_ds.sequences.batches import Batch
from roma_ds.sequences.request_set import Requests
from roma_ds.training.batch_order import BatchOrder
from roma_ds.training.learning_rate import learning_rate_at
from roma_ds.training.step import task_term


@dataclass(frozen=True)
class RivalKind:
    """A rival by name."""

    description: str
    build: Callable[[Build], Rival]
    merges: bool = False
    """Whether it can be merged into the weights, so that answering costs nothing more."""


RIVALS: dict[str, RivalKind] = {
    "lora": RivalKind(
        "LoRA on attention, as many parameters as the routers", lambda b: adapted(b, "lora", None), True
    ),
    "lora_r8": RivalKind("LoRA on attention, rank 8", lambda b: adapted(b, "lora", 8), True),
    "dora": RivalKind(
        "DoRA on attention, as many parameters as the routers", lambda b: adapted(b, "dora", None), True
    ),
    "dora_r8": RivalKind("DoRA on attention, rank 8", lambda b: adapted(b, "dora", 8), True),
    "lora_mixture": RivalKind(
        "mixture of LoRA experts in each product, as many parameters as the routers",
        lambda b: adapted(b, "mixture", None),
    ),
    "prompt_tuning": RivalKind(
        "20 trained embeddings before the prompt", lambda b: virtual_tokens(b, "prompt")
    ),
    "prefix_tuning": RivalKind(
        "trained keys and values in every layer, as many parameters as the routers",
        lambda b: virtual_tokens(b, "prefix"),
    ),
    "dense_bp": RivalKind("all routers and attention norms of the whole network", dense, True),
}


@dataclass(frozen=True)
class RivalResult:
    """What a rival's training did."""

    steps: int
    first_loss: float
    last_loss: float
    """Mean task loss of the first and of the last step."""


def train_rival(
    rival: Rival,
    config: TrainConfig,
    requests: Requests,
    feed: Feed,
    rows: Sequence[int],
    say: Callable[[str], None] = print,
) -> RivalResult:
    """Train what is trainable: batches, order, learning rate, clipping and loss as for the routers.

    rows: the samples that are trained on. Raises RomaError when the loss is not finite.
    """
    order = BatchOrder(len(rows), config.epochs, config.split(1).samples, config.seed, rows)
    lengths = [requests.lengths[target] for target in requests.targets]
    optimizer = torch.optim.AdamW(rival.trained, lr=config.lr, weight_decay=config.weight_decay)
    losses: list[float] = []
    for step in range(order.steps):
        batch_samples = len(order.rows(step))
        total = 0.0
        for part in order.share(step, 0, 1, config.micro_batch, lengths):
            if not part:
                continue
            batch: Batch = feed.batch([requests.targets[row] for row in part])
            task = task_term(rival.forward(batch), batch, len(part)).sum() / batch_samples
            torch.autograd.backward(task)
            total += float(task.detach())
        if total != total:
            raise RomaError(f"the loss is not finite at step {step + 1}", "lower train.lr")
        if config.clip:
            torch.nn.utils.clip_grad_norm_(rival.trained, config.clip)
        rate = learning_rate_at(step, order.steps, config.lr, config.warmup, config.lr_schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        if (step + 1) % config.log_every == 0:
            say(f"step {step + 1}/{order.steps} task {total:.4f} lr {rate:.2e}")
    return RivalResult(order.steps, losses[0], losses[-1])
