"""Keys of `collect`: the frozen pass, and the answers that are generated for S."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from roma_ds.config.constraints import Count, NotNegative, Positive, Range


@dataclass(frozen=True)
class CollectConfig:
    """The frozen pass: the pretrained model over all training and evaluation samples, once."""

    engine: Literal["auto", "zero3", "stream"] = "auto"
    """zero3: the network as DeepSpeed holds it, whole on each rank below ZeRO-3. stream: layer by layer from
    the checkpoint's files, for models larger than memory; it cannot generate. auto takes what the estimate
    says is faster, and zero3 where answers are generated."""
    activation_memory: NotNegative = 4.0
    """GiB a rank in which the stream engine keeps hidden states between layers; beyond it they go to disk."""
    save_every: Positive = 60.0
    """Seconds between saves of what is in memory, from which a killed pass goes on."""
    samples: Count = 1
    """Answers generated for each training sample that data.train[].judge judges by generated answers; the
    share of right ones is its margin."""
    temperature: NotNegative = 0.0
    """Of the distribution that tokens of these answers are drawn from; 0 takes the most likely token."""
    seed: Annotated[int, Range(at_least=0, below=2**32)] = 0
    """Of the drawing alone, together with the sample's id."""
    max_new_tokens: Count = 512
    """Longest answer of these, in tokens."""
    right_share: Annotated[float, Range(above=0, at_most=1)] = 0.5
    """Least share of right ones among a sample's answers for which it is in S."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        if self.samples > 1 and self.temperature == 0:
            yield "samples", f"{self.samples} answers at temperature 0 are all the same; set a temperature"
