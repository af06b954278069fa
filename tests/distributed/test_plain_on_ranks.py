"""Scores and generated texts of the library's own forward pass are the same on any number of ranks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from distributed.test_span_on_ranks import zero3
from distributed.test_stages_on_ranks import samples, words

from roma_ds.comm import World
from roma_ds.testing.local_ranks import on_ranks
from roma_ds.testing.tiny_models import save_tiny

ASKED = 7
"""No multiple of the ranks, and with two ranks one has a batch more than the other."""
Found = tuple[list[tuple[str, int, bool]], list[list[float]], list[int]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from roma_ds.testing.tiny_models import save_tokenizer

    dense = tmp_path_factory.mktemp("tiny") / "dense"
    config = AutoConfig.for_model(
        "llama", vocab_size=save_tokenizer(dense), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(dense)
    return {"dense": dense, "olmoe": save_tiny(dense.parent / "olmoe")}


def measured(world: World, folder: str, stage: int) -> Found | None:
    """Texts and scores on rank 0; with tuned routers where there are any."""
    import torch
    from transformers import AutoTokenizer

    from roma_ds.config import ModelConfig
    from roma_ds.sequences.encoding import encode
    from roma_ds.writing.generation import Asked, Writer
    from roma_ds.writing.plain import PlainModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ds: dict[str, Any] = zero3(world, "float32") if stage == 3 else {"zero_optimization": {"stage": stage}}
    model = PlainModel(world, ModelConfig(path=folder, dtype="float32"), ds)
    if not folder.endswith("dense"):
        generator = torch.Generator().manual_seed(0)
        model.use_routers({3: torch.randn(8, 32, generator=generator)})
    source = random.Random(1)
    prompts = [tuple(tokenizer(words(source, 2 + 4 * place))["input_ids"]) for place in range(ASKED)]
    asked = [Asked(prompt, (" w1",)) for prompt in prompts]
    written = Writer(model, tokenizer, 9).write(asked, 2, "write")
    scores = model.score(encode(samples(), tokenizer, 200), 3, "score")
    model.close()
    assert (written is None) == (scores is None) == (not world.is_first)
    if written is None or scores is None:
        return None
    values = [row.tolist() for row in scores.option_loglikelihoods]
    return [(one.text, one.tokens, one.ended) for one in written], values, scores.predicted.tolist()


@pytest.mark.parametrize("kind", ["olmoe", "dense"])
def test_ranks_and_zero_stages_write_and_score_the_same(kind: str, folders: dict[str, Path]) -> None:
    folder = str(folders[kind])
    (alone,) = on_ranks(1, measured, folder, 0)
    texts, values, predicted = alone
    assert len(texts) == ASKED and len({tokens for _, tokens, _ in texts}) > 1
    for stage in (0, 3):
        other, nothing = on_ranks(2, measured, folder, stage)
        assert nothing is None
        assert (other[0], other[2]) == (texts, predicted)
        for mine, theirs in zip(other[1], values, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-5)


def test_ranks_with_texts_of_other_lengths_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """A model whose batches have prompts of one length, and modules that run once there are enough tokens."""
    import torch

    from roma_ds.comm.ranks import Ranks

    folder = str(save_tiny(tmp_path / "model", "deepseek_v4"))
    alone = measured(World(Ranks(), torch.device("cpu")), folder, 0)
    other, nothing = on_ranks(2, measured, folder, 3)
    assert alone is not None and nothing is None and (other[0], other[2]) == (alone[0], alone[2])
    for mine, theirs in zip(other[1], alone[1], strict=True):
        assert mine == pytest.approx(theirs, abs=2e-5)
