"""The training loop: fits on a screen; what is optional hangs on it as a callback."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roma_ds.comm import World
from roma_ds.comm.traffic import Traffic
from roma_ds.config import RunConfig
from roma_ds.errors import EnvironmentFault, Interrupted, RomaError, UserError
from roma_ds.manifold.schedule import lambda_at
from roma_ds.prefix.feed import Feed
from roma_ds.sequences.request_set import Requests
from roma_ds.training.batch_order import BatchOrder
from roma_ds.training.callbacks import Callback, LogEntry
from roma_ds.training.checkpoints import Checkpoints
from roma_ds.training.engine import RouterEngine
from roma_ds.training.first_batch import try_longest
from roma_ds.training.interruption import Interruption
from roma_ds.training.learning_rate import learning_rate_at
from roma_ds.training.rank_window import Window, peak_memory_bytes
from roma_ds.training.step import StepResult, StepSettings, training_step
from roma_ds.training.targets import Targets

NO_ROOM = -1
"""In place of a signal's number: the disk fills up."""
NAMED = 16
"""Samples that a message names."""


def load_entropy(load: torch.Tensor) -> torch.Tensor:
    """Entropy of expert shares [..., E] over log E: 1 is an even load, 0 all on one expert."""
    entropy: torch.Tensor = torch.special.entr(load).sum(dim=-1) / math.log(load.shape[-1])
    return entropy


@dataclass
class Training:
    """One training of the routers; `run_loop` is the whole of it."""

    world: World
    run: RunConfig
    engine: RouterEngine
    requests: Requests
    feed: Feed
    targets: Targets
    settings: StepSettings
    order: BatchOrder
    folder: Path
    """Resume states go here."""
    inputs: str
    """Fingerprint of what the run is made from."""
    names: Sequence[str]
    """Id of every row, for messages."""
    interruption: Interruption
    callbacks: Sequence[Callback] = ()
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        lengths = self.requests.lengths
        self.lengths = [lengths[number] for number in self.requests.targets]
        """Tokens of every row."""
        self.traffic = Traffic().watch()
        self.skipped = 0
        self.checkpoints = Checkpoints(
            self.world, self.run, self.engine, self.targets, self.folder, self.inputs, self.say
        )

    def run_loop(self) -> dict[str, Any]:
        """Train from the newest resume state, or from the start; returns facts for the stage's record.

        A collective. Raises Interrupted after saving when a signal came on any rank, EnvironmentFault after
        saving when the disk fills up, and UserError when the gradient is not finite and that is to stop it.
        """
        config = self.run.train
        self.checkpoints.require_room()
        if self.run.guards.first_batch:
            self._try_first_batch()
        first = self.checkpoints.resume()
        if first:
            self.skipped = first - self.engine.updates
            self.say(f"resumed after step {first} of {self.order.steps}")
        if self.world.is_first:
            for callback in self.callbacks:
                callback.on_start(first)
        window, seconds, tokens, stage = Window(self.traffic), 0.0, 0, self.world.place.stage
        with self.interruption.defer():
            for step in range(first, self.order.steps):
                done = step + 1
                self.world.at(stage, done)
                logged = done % config.log_every == 0 or done in (1, self.order.steps)
                result, weight, rate = self._step(step, logged)
                stop = self._agree(result, done, window)
                self.targets.after_step(done)
                if logged:
                    elapsed, read = self._log(window, result, done, weight, rate)
                    seconds, tokens, window = seconds + elapsed, tokens + read, Window(self.traffic)
                last = done == self.order.steps
                if stop or done % config.save_every == 0 or last:
                    self.checkpoints.save(done)
                if stop > 0 or (stop and not last):
                    raise self._stopped(stop, done)
        return {
            "steps": self.order.steps,
            "resumed_at": first,
            "samples": len(self.requests.prompts),
            "tokens_per_second": tokens / seconds if seconds else None,
            "trainable_parameters": self.engine.trainable_parameters,
            "total_parameters": self.engine.total_parameters,
            "layers": list(self.engine.layers),
            "skipped_steps": self.skipped,
            "peak_memory_bytes": int(
                self.world.reduce(
                    torch.tensor(float(peak_memory_bytes(self.world.device)), dtype=torch.float64), "max"
                )
            ),
        }

    def routers(self) -> dict[int, torch.Tensor]:
        """What training made, float32 [experts, hidden] by layer. A collective."""
        best = self.checkpoints.best() if self.run.train.result == "best" else None
        return self.engine.as_seen(self.engine.masters() if best is None else best)

    def _try_first_batch(self) -> None:
        try_longest(
            self.world,
            self.engine,
            self.requests,
            self.feed,
            self.lengths,
            self.run.train.split(self.world.size).micro_batch,
            self.say,
        )

    def _stopped(self, signum: int, done: int) -> RomaError:
        """What ends the run after a step that is saved."""
        saved = f"stopped after step {done} of {self.order.steps}, which is saved"
        if signum > 0:
            return Interrupted(signum, saved)
        fault = EnvironmentFault(
            f"less than guards.free_disk={self.run.guards.free_disk:g} GiB is free at {self.folder}: {saved}",
            "make room there and rerun the same command to go on",
        )
        fault.agreed = True
        return fault

    def _step(self, step: int, logged: bool) -> tuple[StepResult, float, float]:
        roma, config, order = self.run.roma, self.run.train, self.order
        weight = lambda_at(step, order.steps, roma.lambda_, roma.lambda_warmup)
        rate = learning_rate_at(step, order.steps, config.lr, config.warmup, config.lr_schedule)
        result = training_step(
            self.engine,
            self.requests,
            self.feed,
            self.targets,
            step + 1,
            order.share(step, self.world.rank, self.world.size, config.micro_batch, self.lengths),
            len(order.rows(step)),
            weight,
            rate,
            self.settings,
            with_norms=logged,
        )
        return result, weight, rate

    def _agree(self, result: StepResult, done: int, window: Window) -> int:
        """The signal that any rank got, NO_ROOM where rank 0 has none on disk, or 0; counts the step.

        A step whose gradient is not finite has changed nothing, on any rank. It raises UserError on all of
        them, or is left out.
        """
        short = done % self.run.train.log_every == 0 and self.checkpoints.is_short_of_disk()
        broken = not math.isfinite(result.grad_norm)
        flags = torch.tensor([float(self.interruption.signum), float(broken), float(short)])
        told = self.traffic.timed(lambda: self.world.reduce(flags, "max").tolist())
        if told[1]:
            self._not_finite(result, done)
            window.steps += 1
        else:
            window.add(result.sums)
            sums = result.sums
            loss = sums.task if self.settings.task_loss else sums.manifold
            self.checkpoints.observe(loss, sums.samples)
        return int(told[0]) or (NO_ROOM if told[2] else 0)

    def _not_finite(self, result: StepResult, done: int) -> None:
        """Name the samples, and stop where that is asked for. A collective."""
        rank, size, order = self.world.rank, self.world.size, self.order
        mine = order.share(done - 1, rank, size, self.run.train.micro_batch, self.lengths)
        told = self.world.gather_objects((list(result.suspects), [row for rows in mine for row in rows]))
        suspects = [row for found, _ in told for row in found]
        rows = suspects or [row for _, own in told for row in own]
        names = [self.names[row] for row in rows[:NAMED]]
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        what = f"loss or gradient is not finite at step {done}; samples: {', '.join(names)}{more}"
        if self.run.train.on_non_finite == "skip":
            self.skipped += 1
            self.say(f"{what}; the step is skipped")
            return
        error = UserError(
            f"{what}; the last saved state is kept",
            "lower train.lr or roma.lambda, use model.dtype=float32, look at those samples, or set "
            "train.on_non_finite=skip and rerun to go on without such steps",
        )
        error.agreed = True
        raise error

    def _log(
        self, window: Window, result: StepResult, done: int, weight: float, rate: float
    ) -> tuple[float, int]:
        table = window.exchange(self.world, (len(self.engine.layers), self.engine.layout.experts))
        # A window of steps that were all left out has no samples.
        samples, batches = table.total("samples") or math.nan, max(1.0, table.total("micro_batches"))
        load, elapsed = table.load / batches, float(table.counts["seconds"].max())
        task_loss, manifold_loss = table.total("task") / samples, table.total("manifold") / samples
        total = weight * manifold_loss + (task_loss if self.settings.task_loss else 0.0)
        metrics = {
            "step": done,
            "epoch": done / self.order.steps_per_epoch,
            "loss": total,
            "task_loss": task_loss,
            "manifold_loss": manifold_loss,
            "lambda": weight,
            "grad_norm_task": result.grad_norm_task,
            "grad_norm_manifold": result.grad_norm_manifold,
            "grad_norm": result.grad_norm,
            "lr": rate,
            "accuracy": table.total("correct") / samples,
            "successful": self.targets.successful,
            "index_epoch": self.targets.epoch,
            "empty_neighbourhoods": int(table.total("empty")),
            "expert_load_entropy": float(load_entropy(load).mean()),
            "tokens_per_second": table.total("tokens") / elapsed,
            "memory_bytes": int(table.counts["memory"].max()),
            "skipped_steps": self.skipped,
            **table.facts(),
        }
        if self.world.is_first:
            for callback in self.callbacks:
                callback.on_log(LogEntry(metrics, load, self.engine.layers, self.order.steps))
        return elapsed, int(table.total("tokens"))


def check_batches(run: RunConfig, world_size: int) -> int:
    """Samples of an update. Raises UserError when nothing would be trained."""
    if not run.train.task_loss and run.roma.lambda_ == 0:
        raise UserError(
            "train.task_loss is false and roma.lambda is 0: there is nothing to train on",
            "set roma.lambda above 0 or train.task_loss to true",
        )
    return run.train.split(world_size).samples
