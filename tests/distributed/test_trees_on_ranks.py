"""Texts written by packed trees are the same on any number of ranks, whole or partitioned, and go on."""

from __future__ import annotations

import random
from typing import Any

import pytest
from distributed.test_span_on_ranks import zero3
from distributed.test_stages_on_ranks import words

from roma_ds.comm import World
from roma_ds.testing.local_ranks import on_ranks
from roma_ds.testing.tiny_models import save_tiny

PROMPTS, EACH = 5, 3
NEW = 9


@pytest.fixture(scope="module", params=["olmoe", "gpt_oss", "deepseek_v3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    more = {"sliding_window": 6} if request.param == "gpt_oss" else {}
    return str(save_tiny(tmp_path_factory.mktemp("tiny") / request.param, request.param, **more))


def written(world: World, folder: str, stage: int, temperature: float, by_trees: bool = True) -> Any:
    """Texts on rank 0, with tuned routers; prompts share a long beginning, and end at different times."""
    import torch
    from transformers import AutoTokenizer

    from roma_ds.config import ModelConfig
    from roma_ds.frozen_pass.frozen_model import FrozenModel
    from roma_ds.writing.decoding import Decoder
    from roma_ds.writing.generation import Asked, Writer
    from roma_ds.writing.plain import PlainModel
    from roma_ds.writing.sampling import draw_of
    from roma_ds.writing.tree_decoding import TreeDecoder

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ds: dict[str, Any] = zero3(world, "float32") if stage == 3 else {"zero_optimization": {"stage": stage}}
    model = ModelConfig(path=folder, dtype="float32")
    network = FrozenModel(world, model, ds) if by_trees else PlainModel(world, model, ds)
    network.use_routers({3: torch.randn(8, 32, generator=torch.Generator().manual_seed(0))})
    decoder: Decoder = TreeDecoder(network, model) if isinstance(network, FrozenModel) else network
    source = random.Random(1)
    start = words(source, 70)
    prompts = [
        tuple(tokenizer(f"{start} {words(source, 1 + 4 * place)}")["input_ids"]) for place in range(PROMPTS)
    ]
    asked = [
        Asked(prompt, (" w1", " w7"), draw=draw_of(0, f"t/train/{place}", number))
        for place, prompt in enumerate(prompts)
        for number in range(EACH)
    ]
    found = Writer(decoder, tokenizer, NEW, temperature=temperature).write(asked, 2, "write")
    network.close()
    assert (found is None) != world.is_first
    return None if found is None else [(one.text, one.tokens, one.ended) for one in found]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_ranks_and_zero_stages_write_the_same(folder: str, temperature: float) -> None:
    (library,) = on_ranks(1, written, folder, 0, temperature, False)
    (alone,) = on_ranks(1, written, folder, 0, temperature)
    assert alone == library and len(alone) == PROMPTS * EACH
    for stage in (0, 3):
        other, nothing = on_ranks(2, written, folder, stage, temperature)
        assert nothing is None and other == alone
