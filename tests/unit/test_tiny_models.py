"""A tiny checkpoint of each Mixture-of-Experts type of transformers, as the stock class reads and runs it."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from transformers import AutoConfig

from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.testing.moe_types import new_types
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.testing.tiny_sizes import FIRST_TYPES, MOE_TYPES

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS, EXPERTS, HIDDEN = 6, 8, 32
LENGTHS = (23, 14, 5)
"""Tokens of the sequences: some beyond each window and each choice of keys, and one within."""

ROUTER_ROWS = {"doge": 6, "inkling_text": EXPERTS + 2, "longcat_flash": EXPERTS + 3, "zaya": EXPERTS + 1}
"""For product keys, shared experts, zero experts and the class that skips; else one for each expert."""

ROUTER_WIDTHS = {"zaya": 20}

EVERY_LAYER = {
    *("aria_text", "dbrx", "deepseek_v4", "doge", "flex_olmo", "gemma4_text", "gpt_oss", "granitemoe"),
    *("granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "inkling2_text", "jetmoe"),
    *("kolibri1", "longcat_flash", "minimax", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen3_5_moe_text"),
    *("qwen3_moe", "qwen4_exp_text", "solar_open", "zaya"),
}
OTHER_LAYERS = {"jamba": (1, 3, 5), "nemotron_h": (1, 5)}


class Loaded:
    """A saved checkpoint of a type, and what the stock class read of it."""

    def __init__(self, model_type: str) -> None:
        folder = save_tiny(Path(mkdtemp()) / model_type, model_type, LAYERS, EXPERTS, HIDDEN)
        config = AutoConfig.from_pretrained(folder)
        self.model, self.report = causal_lm_class(type(config)).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )

    def logits(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Of tokens [B, T]; [B, T, V]."""
        with torch.no_grad():
            found: torch.Tensor = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        return found


@cache
def loaded(model_type: str) -> Loaded:
    """Written and read once a process; not to be changed."""
    return Loaded(model_type)


def sparse_layers(model_type: str) -> tuple[int, ...]:
    return OTHER_LAYERS.get(model_type, tuple(range(0 if model_type in EVERY_LAYER else 1, LAYERS)))


@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_the_stock_class_reads_all_that_was_saved_and_misses_nothing(model_type: str) -> None:
    found = loaded(model_type)
    assert found.model.config.model_type == model_type
    assert not any(found.report.values()), found.report
    assert all(bool(values.isfinite().all()) for values in found.model.state_dict().values())


@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_a_padded_sequence_is_as_it_is_alone_and_its_start_as_well(model_type: str) -> None:
    """All but doge's, whose router adds up halves of keys of different tokens."""
    numbers = torch.Generator().manual_seed(5)
    sequences = [torch.randint(3, 190, (length,), generator=numbers) for length in LENGTHS]
    tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    together = loaded(model_type).logits(tokens, mask)
    furthest = 0.0
    for row, sequence in enumerate(sequences):
        alone = loaded(model_type).logits(sequence[None])[0]
        assert float(alone.std()) > 0.04
        furthest = max(furthest, float((together[row, : len(sequence)] - alone).abs().max()))
    assert (furthest < 1e-5) == (model_type != "doge")
    start = loaded(model_type).logits(tokens[:1, :11])
    assert (float((together[:1, :11] - start).abs().max()) < 1e-5) == (model_type != "doge")


@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_routers_are_told_from_all_else_by_their_shape(model_type: str) -> None:
    shape = ROUTER_ROWS.get(model_type, EXPERTS), ROUTER_WIDTHS.get(model_type, HIDDEN)
    routers = {
        name: weight
        for name, weight in loaded(model_type).model.named_parameters()
        if weight.shape == shape and name.endswith(".weight")
    }
    layers = Counter(int(re.search(r"\d+", name)[0]) for name in routers)  # type: ignore[index]
    # JetMoE has a router for its heads of attention beside the one for its feed-forward experts.
    assert layers == dict.fromkeys(sparse_layers(model_type), 2 if model_type == "jetmoe" else 1)
    assert all(0.3 < float(weight.std()) < 0.7 for weight in routers.values())


@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_each_kind_of_layer_is_there_twice_and_near_the_end(model_type: str) -> None:
    config = loaded(model_type).model.config
    lists = (getattr(config, name, None) for name in ("layer_types", "indexer_types"))
    for kinds in filter(None, lists):
        assert len(kinds) == LAYERS
        if model_type == "nemotron_h":
            # A layer is one of four parts there, and attention or a dense part has but one of six.
            assert set(kinds) == {"linear_attention", "full_attention", "mlp", "moe"}
        elif len(set(kinds)) > 1:
            assert min(Counter(kinds).values()) >= 2
            assert set(kinds[-3:]) == set(kinds)


@pytest.mark.parametrize("model_type", [name for name in MOE_TYPES if name not in FIRST_TYPES])
def test_no_saved_tensor_is_one_or_zero_or_alike_throughout(model_type: str) -> None:
    for name, values in loaded(model_type).model.state_dict().items():
        # MiniMax saves the decays that it computes.
        if values.is_floating_point() and not name.endswith("_decay"):
            assert values.numel() == 1 or float(values.std()) > 0.01, name
            # Words for padding are zero, and so is the least of a state's rates.
            assert float(((values == 0) | (values == 1)).float().mean()) < 0.3, name


def test_hash_layers_choose_experts_that_differ() -> None:
    tables = [values for name, values in loaded("deepseek_v4").model.named_buffers() if "tid2eid" in name]
    assert len(tables) == 2
    for table in tables:
        assert bool((table[:, 0] != table[:, 1]).all())
        assert set(table.flatten().tolist()) == set(range(EXPERTS))


def test_the_last_layers_use_keys_that_an_earlier_one_chose() -> None:
    for model_type in ("glm_moe_dsa", "hy_v4"):
        assert loaded(model_type).model.config.indexer_types == ["full", "shared"] * 3


def test_no_type_of_this_transformers_is_missing() -> None:
    assert len(set(MOE_TYPES)) == 58
    assert new_types() == ()


def test_a_type_that_is_not_known_is_named() -> None:
    """Recorded on the base model alone, in a config of parts, and not listed by AutoModelForCausalLM."""
    absent = ("dbrx", "gemma4_text", "mistral4", "olmoe")
    assert new_types([name for name in MOE_TYPES if name not in absent]) == absent
