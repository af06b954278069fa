"""The training loop: fits on a screen; what is optional hangs on it as a callback."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from roma_ds.backbone.feed import Feed
from roma_ds.backbone.request_set import Requests
from roma_ds.comm import World
from roma_ds.config import RunConfig
from roma_ds.errors import Interrupted, RomaError, UserError
from roma_ds.manifold.schedule import lambda_at
from roma_ds.training.batch_order import BatchOrder
from roma_ds.training.callbacks import Callback, LogEntry
from roma_ds.training.engine import RouterEngine
from roma_ds.training.interruption import Interruption
from roma_ds.training.learning_rate import learning_rate_at
from roma_ds.training.state import ResumeState, load_newest, save_state
from roma_ds.training.step import StepResult, StepSettings, StepSums, training_step
from roma_ds.training.targets import Targets


@dataclass
class Window:
    """Sums since the last log line, on this rank."""

    sums: StepSums = field(default_factory=StepSums)
    started: float = field(default_factory=time.monotonic)

    def add(self, step: StepSums) -> None:
        """Count one step."""
        for name in ("task", "manifold", "correct", "samples", "empty", "tokens", "micro_batches"):
            setattr(self.sums, name, getattr(self.sums, name) + getattr(step, name))
        if step.load is not None:
            self.sums.load = step.load if self.sums.load is None else self.sums.load + step.load


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the accelerator, or resident on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    interruption: Interruption
    callbacks: Sequence[Callback] = ()
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        lengths = self.requests.lengths
        self.lengths = [lengths[number] for number in self.requests.targets]
        """Tokens of every row."""

    def run_loop(self) -> dict[str, Any]:
        """Train from the newest resume state, or from the start; returns facts for the stage's record.

        A collective. Raises Interrupted after saving when a signal came on any rank, RomaError when the
        gradient is not finite.
        """
        config = self.run.train
        first = self._resume()
        if self.world.is_first:
            for callback in self.callbacks:
                callback.on_start(first)
        window, seconds, tokens = Window(), 0.0, 0
        with self.interruption.defer():
            for step in range(first, self.order.steps):
                done = step + 1
                logged = done % config.log_every == 0 or done in (1, self.order.steps)
                result, weight, rate = self._step(step, logged)
                window.add(result.sums)
                stop = self._agree(result, done)
                self.targets.after_step(done)
                if logged:
                    elapsed, read = self._log(window, result, done, weight, rate)
                    seconds, tokens, window = seconds + elapsed, tokens + read, Window()
                if stop or done % config.save_every == 0 or done == self.order.steps:
                    self._save(done)
                if stop and done < self.order.steps:
                    raise Interrupted(
                        stop, f"stopped after step {done} of {self.order.steps}, which is saved"
                    )
        return {
            "steps": self.order.steps,
            "resumed_at": first,
            "samples": len(self.requests.prompts),
            "tokens_per_second": tokens / seconds if seconds else None,
            "trainable_parameters": self.engine.trainable_parameters,
            "total_parameters": self.engine.total_parameters,
            "layers": list(self.engine.layers),
            "peak_memory_bytes": int(
                self.world.reduce(
                    torch.tensor(float(peak_memory_bytes(self.world.device)), dtype=torch.float64), "max"
                )
            ),
        }

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

    def _agree(self, result: StepResult, done: int) -> int:
        """The signal that any rank got, or 0. Raises RomaError on all ranks if a gradient is not finite."""
        finite = torch.isfinite(
            torch.tensor([result.grad_norm, result.sums.task, result.sums.manifold])
        ).all()
        flags = torch.tensor([float(self.interruption.signum), float(not finite)])
        signum, broken = self.world.reduce(flags, "max").tolist()
        if broken:
            error = RomaError(
                f"loss or gradient is not finite at step {done}; the last saved state is kept",
                "lower train.lr or roma.lambda, or use model.dtype=float32",
            )
            error.agreed = True
            raise error
        return int(signum)

    def _resume(self) -> int:
        found = load_newest(self.folder, self.inputs, self.say) if self.world.is_first else None
        state: ResumeState | None = self.world.from_first(found)
        if state is None:
            return 0
        self.engine.restore(state.masters, state.moments, state.step)
        self.targets.restore(state.index)
        self.say(f"resumed after step {state.step} of {self.order.steps}")
        return state.step

    def _save(self, done: int) -> None:
        state = ResumeState(done, self.engine.masters(), self.engine.moments(), self.targets.state())
        if self.world.is_first:
            save_state(self.folder, state, self.inputs, self.run.train.keep_states)
        self.world.barrier()

    def _log(
        self, window: Window, result: StepResult, done: int, weight: float, rate: float
    ) -> tuple[float, int]:
        sums = window.sums
        counts = [
            sums.task,
            sums.manifold,
            sums.correct,
            sums.samples,
            sums.empty,
            sums.tokens,
            sums.micro_batches,
        ]
        task, manifold, correct, samples, empty, tokens, batches = self.world.reduce(
            torch.tensor(counts, dtype=torch.float64)
        ).tolist()
        shape = (len(self.engine.layers), self.engine.layout.experts)
        load = self.world.reduce(sums.load if sums.load is not None else torch.zeros(shape)).cpu() / batches
        memory = self.world.reduce(
            torch.tensor(float(peak_memory_bytes(self.world.device)), dtype=torch.float64), "max"
        )
        elapsed = time.monotonic() - window.started
        task_loss, manifold_loss = task / samples, manifold / samples
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
            "accuracy": correct / samples,
            "successful": self.targets.successful,
            "index_epoch": self.targets.epoch,
            "empty_neighbourhoods": int(empty),
            "expert_load_entropy": float(load_entropy(load).mean()),
            "tokens_per_second": tokens / elapsed,
            "memory_bytes": int(memory),
        }
        if self.world.is_first:
            for callback in self.callbacks:
                callback.on_log(LogEntry(metrics, load, self.engine.layers, self.order.steps))
        return elapsed, int(tokens)


def check_batches(run: RunConfig, world_size: int) -> int:
    """The global batch in samples. Raises UserError when nothing would be trained."""
    if not run.train.task_loss and run.roma.lambda_ == 0:
        raise UserError(
            "train.task_loss is false and roma.lambda is 0: there is nothing to train on",
            "set roma.lambda above 0 or train.task_loss to true",
        )
    return run.train.micro_batch * run.train.gradient_accumulation * world_size
