"""One optimizer step: forward, the two terms, backward, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from roma_ds.manifold.loss import manifold_term
from roma_ds.prefix.feed import Feed
from roma_ds.sequences.batches import Batch
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.request_set import Requests
from roma_ds.training.engine import RouterEngine
from roma_ds.training.targets import Targets
from roma_ds.training.term_gradients import TermGradient


@dataclass(frozen=True)
class StepSettings:
    """What stays the same over the steps of a run."""

    layer_reduction: str
    task_loss: bool
    penalty: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Takes the place of the manifold term, for controls: live routing weights [B, M, E] -> float32 [B]."""


@dataclass
class StepSums:
    """Sums over the samples that this rank trained on; means are taken after adding over ranks."""

    task: float = 0.0
    manifold: float = 0.0
    correct: int = 0
    samples: int = 0
    empty: int = 0
    tokens: int = 0
    load: torch.Tensor | None = None
    """float32 [M, E], sum over micro-batches of the experts' shares"""
    micro_batches: int = 0


@dataclass(frozen=True)
class StepResult:
    """Sums of one step and its gradient norms; the terms' norms only where they were asked for."""

    sums: StepSums
    grad_norm: float
    grad_norm_task: float | None
    grad_norm_manifold: float | None
    suspects: tuple[int, ...] = ()
    """Rows of this rank's micro-batches whose loss is not finite"""


def task_term(logits: torch.Tensor, batch: Batch, sequences: int) -> torch.Tensor:
    """L_task per sample, float32 [B]: mean cross-entropy over the tokens of its answer (equation 8)."""
    device = logits.device
    per_token = torch.nn.functional.cross_entropy(logits, batch.answer_ids.to(device), reduction="none")
    owner = batch.answer_sequence.to(device)
    counts = torch.zeros(sequences, device=device).index_add(0, owner, torch.ones_like(per_token))
    return torch.zeros(sequences, device=device).index_add(0, owner, per_token) / counts


def answered_right(logits: torch.Tensor, batch: Batch, prompts: Sequence[Prompt]) -> list[bool]:
    """Which samples of a micro-batch are answered right: best option, or greedy match of a text."""
    right = []
    best = logits.detach().argmax(dim=-1).cpu()
    matched = best == batch.answer_ids
    for index, row in enumerate(batch.rows):
        places = (batch.answer_sequence == index).nonzero()[:, 0]
        prompt = prompts[row]
        if prompt.single_token_options:
            ids = [option[0] for option in prompt.options]
            right.append(int(logits[places[0], ids].argmax()) == prompt.answer)
        else:
            right.append(bool(matched[places].all()))
    return right


def training_step(
    engine: RouterEngine,
    requests: Requests,
    feed: Feed,
    targets: Targets,
    step: int,
    micro_batches: Sequence[Sequence[int]],
    batch_samples: int,
    weight: float,
    learning_rate: float,
    settings: StepSettings,
    with_norms: bool,
) -> StepResult:
    """Update the routers once on this rank's `micro_batches` of a global batch of `batch_samples`.

    feed: gives batches of the sequences of `requests`; a row is the number of a prompt. step: which one it
    is, counted from 1. weight: lambda of this step. Each sample counts 1 / batch_samples whatever rank and
    micro-batch it is in. `with_norms` runs the two terms through backward passes of their own, so that their
    gradients can be told apart; the update is the same up to rounding. A collective.
    """
    sums, suspects = StepSums(), list[int]()
    use_manifold = weight > 0
    terms = [name for name, used in (("task", settings.task_loss), ("manifold", use_manifold)) if used]
    passes = [[name] for name in terms] if with_norms else [terms]
    gradients: Mapping[str, TermGradient] = {name: TermGradient(engine.routed) for name in terms}
    # DeepSpeed averages over ranks; each sample must count the same wherever it is.
    scale = engine.world.size / batch_samples
    for turn, rows in enumerate(micro_batches):
        asked = targets.ask(rows or [0], engine.world.device)
        batch = feed.batch([requests.targets[row] for row in rows])
        share = scale if rows else 0.0
        for number, names in enumerate(passes):
            output = engine.forward(batch)
            if number == 0:
                pull = asked()
                if rows:
                    right = answered_right(output.logits, batch, requests.prompts)
                    # What is not a number must not get into S.
                    if bool(torch.isfinite(output.routing).all()):
                        targets.observe(rows, right, output.routing)
                    sums.correct += sum(right)
                if turn == len(micro_batches) - 1:
                    targets.observed(step)
            task = task_term(output.logits, batch, len(batch.rows))
            if settings.penalty is not None:
                manifold = settings.penalty(output.routing)
            else:
                manifold = manifold_term(
                    output.routing, pull.mean, pull.spread, pull.present, settings.layer_reduction
                )
            # ZeRO-3 releases a module after its backward only if one began at its output: the manifold term
            # alone enters the last layer half-way, so the task term stays in the graph, if with weight 0.
            loss = (share if "task" in names else 0.0) * task.sum()
            if "manifold" in names:
                loss = loss + share * weight * manifold.sum()
            if with_norms:
                gradients[names[0]].watch()
            last = turn == len(micro_batches) - 1 and number == len(passes) - 1
            engine.backward(loss, last)
        if rows:
            sums.task += float(task.detach().sum())
            sums.manifold += float(manifold.detach().sum())
            if not math.isfinite(float((task + manifold).detach().sum())):
                suspects += rows
            sums.samples += len(rows)
            sums.empty += int((~pull.present).sum())
            sums.tokens += batch.asked
            sums.load = output.load if sums.load is None else sums.load + output.load
            sums.micro_batches += 1
    norms = {
        name: gradient.norm(engine.world, dict(engine.routers))
        for name, gradient in gradients.items()
        if with_norms
    }
    grad_norm = engine.step(learning_rate)
    return StepResult(
        sums,
        grad_norm,
        norms.get("task"),
        norms["manifold"] / weight if "manifold" in norms else None,
        tuple(suspects),
    )
