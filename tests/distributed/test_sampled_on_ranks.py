"""Drawn answers are the same on any number of ranks, and go on with another number than they began with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from distributed.test_span_on_ranks import zero3
from distributed.test_stages_on_ranks import words

from roma_ds.comm import World
from roma_ds.testing.local_ranks import on_ranks
from roma_ds.testing.tiny_models import save_tiny

PROMPTS, EACH = 5, 3
Texts = list[tuple[str, int, bool]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny") / "olmoe"))


def drawn(world: World, folder: str, stage: int, kept_in: str | None = None, some: bool = False) -> Any:
    """Texts on rank 0. kept_in: where answers are saved; some: a signal ends it behind the first batch."""
    from transformers import AutoTokenizer

    from roma_ds.config import ModelConfig
    from roma_ds.errors import Interrupted
    from roma_ds.writing.generation import Asked, Writer
    from roma_ds.writing.kept import KeptAnswers
    from roma_ds.writing.plain import PlainModel
    from roma_ds.writing.sampling import draw_of

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ds: dict[str, Any] = zero3(world, "float32") if stage == 3 else {"zero_optimization": {"stage": stage}}
    model = PlainModel(world, ModelConfig(path=folder, dtype="float32"), ds)
    source = random.Random(1)
    prompts = [tuple(tokenizer(words(source, 2 + 4 * place))["input_ids"]) for place in range(PROMPTS)]
    asked = [
        Asked(prompt, (" w1",), draw=draw_of(0, f"t/train/{place}", number))
        for place, prompt in enumerate(prompts)
        for number in range(EACH)
    ]
    kept = KeptAnswers(Path(kept_in), "same", 3600) if kept_in else None
    writer = Writer(model, tokenizer, 9, temperature=0.8)
    if some:
        whole, turns = writer._batch, iter(range(1000))

        def one_batch(*arguments: Any) -> Any:
            if next(turns) == 1:
                raise Interrupted(15)
            return whole(*arguments)

        writer._batch = one_batch  # type: ignore[method-assign]
        try:
            writer.write(asked, 2, "write", kept)
        except Interrupted:
            return "stopped"
    written = writer.write(asked, 2, "write", kept)
    model.close()
    assert (written is None) != world.is_first
    return None if written is None else [(one.text, one.tokens, one.ended) for one in written]


def test_ranks_and_zero_stages_draw_the_same(folder: str) -> None:
    (alone,) = on_ranks(1, drawn, folder, 0)
    assert len(alone) == PROMPTS * EACH and len({text for text, _, _ in alone}) > PROMPTS
    for stage in (0, 3):
        other, nothing = on_ranks(2, drawn, folder, stage)
        assert nothing is None and other == alone


def test_a_killed_writing_goes_on_with_other_ranks(folder: str, tmp_path: Path) -> None:
    (alone,) = on_ranks(1, drawn, folder, 0)
    kept = tmp_path / "kept"
    assert on_ranks(2, drawn, folder, 0, str(kept), True) == ["stopped", "stopped"]
    assert len(list(kept.glob("answers-*.json"))) == 2
    (further,) = on_ranks(1, drawn, folder, 0, str(kept))
    assert further == alone
    again, _ = on_ranks(2, drawn, folder, 0, str(kept))
    assert again == alone
