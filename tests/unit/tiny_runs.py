"""Samples in the words of the tiny tokenizer, and what tests need around a tiny model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from roma_ds.config import ModelConfig, RunConfig, parse_run_config
from roma_ds.data.sample import Sample

LETTERS = (" A", " B", " C", " D")


def words(source: random.Random, count: int) -> str:
    return " ".join(f"w{source.randrange(180)}" for _ in range(count))


def letter_sample(place: int, source: random.Random) -> Sample:
    """Four options named by letters; lengths differ from sample to sample."""
    question = words(source, source.randrange(2, 12))
    choices = tuple(words(source, 1) for _ in LETTERS)
    listed = " ".join(f"{letter.strip()} . {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    answer = source.randrange(4)
    return Sample(
        f"t/train/{place}", "t", "train", f"{question} ? {listed} Answer :", question, choices, answer,
        LETTERS[answer], LETTERS,
    )  # fmt: skip


def text_sample(place: int, source: random.Random) -> Sample:
    """Three options of one to three words each."""
    question = words(source, source.randrange(2, 9))
    choices = tuple(words(source, 1 + (place + turn) % 3) for turn in range(3))
    options = tuple(f" {choice}" for choice in choices)
    answer = source.randrange(3)
    return Sample(
        f"x/train/{place}", "x", "train", f"Question : {question} Answer :", question, choices, answer,
        options[answer], options,
    )  # fmt: skip


def free_sample(place: int, source: random.Random) -> Sample:
    """A text answer of one or two words, without options."""
    question = words(source, source.randrange(2, 9))
    target = " " + words(source, 1 + place % 2)
    return Sample(
        f"f/train/{place}", "f", "train", f"Question : {question} Answer :", question, (), -1, target, ()
    )


def letter_samples(count: int, seed: int = 0) -> list[Sample]:
    source = random.Random(seed)
    return [letter_sample(place, source) for place in range(count)]


def model_config(folder: Path, dtype: Any = "float32") -> ModelConfig:
    return ModelConfig(path=str(folder), dtype=dtype)


def stock_class(folder: str | Path) -> Any:
    """The library's class of a checkpoint's causal LM: its own table of them lacks one of the types."""
    from transformers import AutoConfig

    from roma_ds.families.causal_lm import causal_lm_class
    from roma_ds.families.own_models import register_own_models

    register_own_models()
    return causal_lm_class(type(AutoConfig.from_pretrained(folder)))


def stock_network(model: ModelConfig) -> Any:
    """The model as transformers itself loads it, frozen: what our own loading is held against."""
    import torch

    kind = stock_class(model.path)
    network = kind.from_pretrained(model.path, dtype=getattr(torch, model.dtype)).eval()
    network.config.use_cache = False
    return network.requires_grad_(False)


def tiny_run(model: Path, folder: Path, *overrides: str) -> RunConfig:
    """A float32 run on `model` at ZeRO stage 0; its data files need not exist."""
    text = f"""\
model: {{path: {model}, dtype: float32}}
data: {{train: [{{path: train.jsonl}}]}}
roma: {{layers: last2, neighbours: 2, lambda: 1.0, lambda_warmup: 0.0}}
train: {{epochs: 2, micro_batch: 8, lr: 0.01, warmup: 0.1, clip: 1000000.0}}
eval: {{tasks: [{{name: mine, path: test.jsonl}}]}}
deepspeed: zero0
output_dir: {folder / "out"}
"""
    return parse_run_config(text, folder / "run.yaml", ["model.dtype=float32", *overrides])
