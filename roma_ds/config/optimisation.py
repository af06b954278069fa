"""The section `train` of a run's YAML file: optimisation of the routers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from roma_ds.config.constraints import Count, NotNegative, Positive, Range, Share


@dataclass(frozen=True)
class BatchSplit:
    """The samples of one update, and how each rank runs its share of them."""

    samples: int
    """Over all ranks."""
    passes: int
    """Micro-batches of each rank."""
    micro_batch: int
    """Samples of a micro-batch, at most and on average."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of the routers."""

    epochs: Count = 3
    """Passes over the training samples."""
    samples: Count | None = None
    """Train on this many of the collected samples, chosen by train.seed, and take neighbours from them alone;
    null takes all. Unlike data.train.limit it changes no cache."""
    batch: Count | None = None
    """Samples of an update, over all ranks and however many they are; the last one of an epoch has what is
    left. null takes train.micro_batch x train.gradient_accumulation x ranks, so that another number of ranks
    trains something else."""
    micro_batch: Count = 8
    """Samples that a rank runs at once, at most and on average: an update's samples are grouped by length and
    dealt out such that all micro-batches have about as many tokens, none more than so many of the longest
    samples. With train.batch a rank runs as many micro-batches in an update as that takes."""
    gradient_accumulation: Count = 1
    """Micro-batches of a rank in an update where train.batch is null; with train.batch it follows."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; cosine and linear end at 0."""
    warmup: Share = 0.1
    """Fraction of the steps over which the learning rate rises linearly from 0."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay of AdamW."""
    gate_dtype: Literal["as_stored", "float32"] = "float32"
    """What a forward pass sees of the routers that are trained: float32, or their values rounded to the type
    in which the checkpoint stores its gates, so that the router file holds what a model served in that type
    computes with. Masters and optimizer are float32 in both."""
    clip: NotNegative = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    seed: Annotated[int, Range(at_least=0, below=2**32)] = 0
    """The one seed: choice of rows, order of batches, random neighbours."""
    save_every: Count = 200
    """Optimizer steps between resume states."""
    log_every: Count = 10
    """Optimizer steps between lines of metrics.jsonl."""
    keep_states: Count = 2
    """Resume states kept on disk; older ones are deleted."""
    keep_best: bool = True
    """Keep also the state with the smallest training loss since the state before it."""
    result: Literal["last", "best"] = "last"
    """Which routers training ends with: those of the last step, or of the best state that is kept."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What follows where a loss or gradient is not finite on any rank: stop, or leave the step out on all.
    Either names the samples."""
    task_loss: bool = True
    """False trains on the manifold term alone."""
    prefix_cache: Literal["auto", "on", "off"] = "auto"
    """Train and evaluate from cached hidden states that enter the first trained layer; auto does where some
    layers come before it and the disk has room, and says why not otherwise."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        if self.batch is not None and self.gradient_accumulation != 1:
            yield (
                "gradient_accumulation",
                f"is {self.gradient_accumulation}, but follows from train.batch {self.batch}, "
                "train.micro_batch and the number of ranks; delete it",
            )
        if self.result == "best" and not self.keep_best:
            yield "result", "the best state is not kept; set keep_best to true"

    def split(self, ranks: int) -> BatchSplit:
        """How `ranks` ranks share an update."""
        if self.batch is None:
            passes = self.gradient_accumulation
            return BatchSplit(self.micro_batch * passes * ranks, passes, self.micro_batch)
        passes = -(-self.batch // (self.micro_batch * ranks))
        return BatchSplit(self.batch, passes, -(-self.batch // (passes * ranks)))


@dataclass(frozen=True)
class GuardsConfig:
    """What ends a run, or does not let it begin, before time is lost."""

    collective_timeout: Positive = 1800.0
    """Seconds that a rank waits for the others in one exchange; then the run ends with exit code 3 and names
    the stage and the ranks that did not come. Longer than the longest time that ranks work apart."""
    free_disk: NotNegative = 1.0
    """GiB that stay free on the disk of output_dir: less ends training, after its state is saved."""
    first_batch: bool = True
    """Try a batch of the longest samples, forward and backward, before training: memory that does not suffice
    shows in seconds."""
    lost_after: Positive | None = 60.0
    """Seconds without a sign of life after which a rank, with its host, counts as lost and all others stop,
    whatever they do; null does not look for signs of life."""
