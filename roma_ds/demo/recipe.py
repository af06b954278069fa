"""What base training of the demo model depends on."""

from __future__ import annotations

from dataclasses import dataclass

from roma_ds.demo.suite import BASE_KNOWN_SHARE


@dataclass(frozen=True)
class Recipe:
    """Everything that base training depends on."""

    steps: int = 400
    batch: int = 128
    lr: float = 2e-3
    router_lr: float = 1e-2
    """Of the taught routers."""
    warmup: int = 100
    seed: int = 0
    weight_decay: float = 0.01
    router_share: float = 0.04
    """Probability that the router learns from a row whose phrasing is not a known one."""
    pair_jitter: float = 0.15
    """Half width of the noise on the weight of the first expert of a forced pair."""
    language: float = 0.1
    """Weight of the language-model loss on the prompt."""
    words: float = 0.5
    """Weight of the loss that has the state at the last prompt token name the words of the cue."""
    router: float = 1.0
    balance: float = 0.02

    def known_share(self) -> float:
        """Share of known phrasings in the data, fixed by the suite."""
        return BASE_KNOWN_SHARE
