"""Keys of `embed` and `collect`: what the frozen models are asked for, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from roma_ds.config.constraints import Count, NotNegative, Positive, Range, Text

EmbeddedText = Literal[
    "question", "question_choices", "passage_question", "passage_question_choices", "prompt"
]


@dataclass(frozen=True)
class EmbedConfig:
    """The frozen text-embedding model E that says which samples are alike."""

    model: Text = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder or hub id of a sentence-transformers model; `demo` is the packaged MiniLM."""
    text: EmbeddedText = "question"
    """What of a sample is embedded. The passage, where a row has one, and the options belong to it where many
    samples ask the same question of different passages or options."""
    batch_size: Count = 64
    """Texts embedded at once."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type in which the encoder computes; null takes that of its weights. Vectors are float32 either way."""
    prompt: Text | None = None
    """Name of one of the encoder's prompts, put before each text; null takes the encoder's default."""
    max_tokens: Count | None = None
    """Tokens that are read of a text, from its beginning; null takes the encoder's own limit."""
    trust_remote_code: bool = False
    """Run code that comes with the encoder."""


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
