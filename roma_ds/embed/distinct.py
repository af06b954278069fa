"""How many samples have a vector of their own, and which key gives one to those that have none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.config import EmbedConfig
from roma_ds.data.sample import Sample
from roma_ds.embed.encoder import Encoder
from roma_ds.embed.texts import FORMS, text_of

MOST = 0.01
"""Largest share of samples without a vector of their own, or with a text that is cut, which is no warning."""


@dataclass(frozen=True)
class Account:
    """What became of n samples. Samples with the same prompt are the same question and may share a vector."""

    kind: str
    """`training` or `evaluation`."""
    samples: Sequence[Sample]
    vector: NDArray[np.int64]
    """[n], equal numbers for equal vectors."""
    length: NDArray[np.int64]
    """[n], tokens of the text that is embedded."""
    cut: NDArray[np.bool_]
    """[n], whether the encoder reads only the beginning of that text."""

    def facts(self) -> dict[str, int]:
        """Counts for the stage's record."""
        return {
            "samples": len(self.samples),
            "distinct_vectors": len(set(self.vector.tolist())),
            "shared_vectors": sum(map(len, self.shared())),
            "cut_texts": int(self.cut.sum()),
        }

    def shared(self) -> list[list[int]]:
        """Groups with one vector and more than one prompt; of evaluation samples, within their task."""
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for place, (sample, number) in enumerate(zip(self.samples, self.vector.tolist(), strict=True)):
            groups[sample.task if self.kind == "evaluation" else "", number].append(place)
        return [
            places
            for places in groups.values()
            if len(places) > 1 and len({self.samples[place].prompt for place in places}) > 1
        ]

    def lines(self, config: EmbedConfig, encoder: Encoder) -> list[str]:
        """The counts in words, and a warning with the key to change where they are too high."""
        facts, count = self.facts(), max(len(self.samples), 1)
        shared, cut = facts["shared_vectors"], facts["cut_texts"]
        lines = [f"{self.kind}: {count_of(len(self.samples), 'sample')}"]
        lines[0] += f", {count_of(facts['distinct_vectors'], 'distinct vector')}"
        if encoder.limit is not None:
            lines[0] += f", {count_of(cut, 'text')} of more than {encoder.limit} tokens"
        of = f"of {count} {self.kind} samples"
        if shared > MOST * count:
            lines.append(
                f"warning: {shared} {of} ({shared / count:.0%}) share their vector with a sample of another"
                f" prompt, so that neighbours among them are arbitrary\n  fix: {self._apart(config, encoder)}"
            )
        if cut > MOST * count:
            fix = self._longer(config, encoder, np.flatnonzero(self.cut).tolist())
            lines.append(
                f"warning: {cut} {of} ({cut / count:.0%}) have texts of up to {int(self.length.max())}"
                f" tokens, of which the encoder reads the first {encoder.limit}\n  fix: {fix}"
            )
        return lines

    def _apart(self, config: EmbedConfig, encoder: Encoder) -> str:
        """What would give their own vectors to samples that share one."""
        places = list(chain.from_iterable(self.shared()))
        texts = {form: len({text_of(self.samples[place], form) for place in places}) for form in FORMS}
        enough = (1 - MOST) * max(texts.values())
        form = next(form for form in FORMS if texts[form] >= enough)
        if texts[form] > texts[config.text]:
            return f"embed.text={form}: {texts[form]} distinct texts in place of {texts[config.text]}"
        cut = [place for place in places if self.cut[place]]
        if cut:
            return self._longer(config, encoder, cut)
        if encoder.dtype != torch.float32:
            return "embed.dtype=float32, or another embed.model: this one reads different texts alike"
        return "another embed.model: this one reads different texts alike"

    def _longer(self, config: EmbedConfig, encoder: Encoder, places: Sequence[int]) -> str:
        """What lets the encoder read the whole text of these samples, or more of it."""
        longest = int(self.length[places].max())
        reach = min(longest, encoder.positions or longest)
        shorter = "" if config.text == "question" else ", or a narrower embed.text"
        if encoder.limit is not None and reach > encoder.limit:
            whole = "" if reach == longest else f", as many as {config.model} can read"
            return f"embed.max_tokens={reach}{whole}{shorter}"
        return f"an embed.model that reads longer texts{shorter}"


def count_of(number: int, noun: str) -> str:
    """`1 text`, `2 texts`"""
    return f"{number} {noun}{'' if number == 1 else 's'}"
