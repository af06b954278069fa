"""Models that cannot be padded everywhere are scored and write as each sequence alone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_plain import mixed_samples
from tiny_runs import model_config
from transformers import AutoConfig, PreTrainedTokenizerFast

from roma_ds.checkpoint.loading import load_config
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.families.batching import mixing_reason, scoring_batches, writing_batches
from roma_ds.families.library_network import library_class
from roma_ds.sequences.encoding import encode
from roma_ds.testing.tiny_models import save_tiny, tiny_config
from roma_ds.writing.generation import Asked, Writer
from roma_ds.writing.plain import PlainModel

ALONE = World(Ranks(), torch.device("cpu"))
ZERO0 = {"zero_optimization": {"stage": 0}}
NEW = 6
WRITING = {
    "deepseek_v4": "equal",
    "doge": "alone",
    "llama4_text": "equal",
    "minimax": "equal",
    "minimax_m3_vl_text": "equal",
}
LENGTHS = (2, 5, 11, 5, 17, 5, 5)


class Watched(PlainModel):
    """Remembers what it was asked to run together."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ALONE, model_config(folder), ZERO0)
        self.together: list[list[int]] = []

    def decoding(self, numbers: Any, prompts: Any) -> Any:
        self.together.append([len(one) for one in prompts])
        return super().decoding(numbers, prompts)


@pytest.mark.parametrize("model_type", WRITING)
def test_scores_and_texts_are_those_of_each_sequence_alone(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", model_type)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    kind = library_class(load_config(model_config(folder)))
    stock = kind.from_pretrained(folder, dtype=torch.float32).eval()
    model = Watched(folder)
    assert model.batching == WRITING[model_type]

    prompts = encode(mixed_samples(6), tokenizer, 200)
    scores = model.score(prompts, 4, "score")
    assert scores is not None
    for prompt, values in zip(prompts, scores.option_loglikelihoods, strict=True):
        for number, option in enumerate(prompt.options):
            before = prompt.before(number)
            tokens = torch.tensor([*before, *option])
            with torch.no_grad():
                logits = stock(input_ids=tokens[None, :-1], use_cache=False).logits[0]
            own = logits[len(before) - 1 :].float().log_softmax(dim=-1)
            wanted = own.gather(1, tokens[len(before) :, None]).sum()
            assert values[number] == pytest.approx(float(wanted), abs=2e-5)

    source = random.Random(5)
    asked = [Asked(tuple(source.randrange(3, 190) for _ in range(length)), ()) for length in LENGTHS]
    written = Writer(model, tokenizer, NEW).write(asked, 3, "write")
    assert written is not None
    for one, found in zip(asked, written, strict=True):
        ids = torch.tensor([one.prompt])
        tokens = stock.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0]
        assert found.text == tokenizer.decode(tokens[len(one.prompt) :], skip_special_tokens=True)
    most = {"equal": 3, "alone": 1}.get(model.batching, len(LENGTHS))
    assert all(len(batch) <= most for batch in model.together)
    alike = all(len(set(batch)) == 1 for batch in model.together)
    assert alike == (model.batching != "padded")
    assert Counter(length for batch in model.together for length in batch) == Counter(LENGTHS)


def test_what_a_model_can_have_in_a_batch_follows_from_its_config() -> None:
    sparse = tiny_config("minimax_m3_vl_text", 192)
    dense = tiny_config("minimax_m3_vl_text", 192, layer_types=["full_attention"] * 4)
    assert [writing_batches(one) for one in (sparse, dense)] == ["equal", "padded"]
    assert [scoring_batches(one) for one in (sparse, dense)] == ["padded", "padded"]
    mixing, plain = (AutoConfig.for_model("doge", is_moe=sparse) for sparse in (True, False))
    assert [scoring_batches(one) for one in (mixing, plain)] == ["alone", "padded"]
    assert mixing_reason(plain) is None and "mixes the tokens of a batch" in str(mixing_reason(mixing))
    assert writing_batches(AutoConfig.for_model("llama4")) == "equal"
