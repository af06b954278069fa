"""Layers that hand on more than hidden states, or cannot be packed: what lies in a batch does not matter."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from mechanism_models import (
    CARRYING,
    CPU,
    DEPTH,
    MECHANISMS,
    SEQUENCES,
    checkpoint,
    entering_at,
    logits_of,
    made_up,
    part,
    run,
    together,
)
from stream_setting import Setting

from roma_ds.errors import UserError
from roma_ds.families.entering import Entering
from roma_ds.prefix.feed import FILLER
from roma_ds.sequences.batches import collate
from roma_ds.sequences.found import COLUMNS
from roma_ds.testing.stock_alone import StockAlone
from roma_ds.testing.tiny_models import save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
of_each = pytest.mark.parametrize("model_type", MECHANISMS)


@of_each
def test_routing_and_losses_are_those_of_the_stock_model_on_each_prompt_alone(model_type: str) -> None:
    stock, routed = StockAlone(checkpoint(model_type)), part(checkpoint(model_type))
    batch = collate(SEQUENCES, "last1")
    output = run(routed, batch)
    for row, sequence in enumerate(SEQUENCES):
        alone = stock.routing(sequence.prompt, routed.layout)
        np.testing.assert_allclose(output.routing[row], alone, rtol=0, atol=1e-5)
        logprobs = torch.log_softmax(logits_of(output, batch, row), dim=-1)
        found = logprobs[range(len(sequence.continuation)), sequence.continuation].sum()
        wanted = stock.loglikelihood(sequence.prompt, sequence.continuation)
        assert float(found) == pytest.approx(wanted, rel=0, abs=1e-5)
        # Far from what any prompt would give.
        assert abs(wanted / len(sequence.continuation) + math.log(logprobs.shape[-1])) > 1e-3


@of_each
def test_it_does_not_matter_what_else_lies_in_a_batch(model_type: str) -> None:
    """Alone, among longer and shorter ones in another order, and where all have one length."""
    routed, mine = part(checkpoint(model_type)), SEQUENCES[0]
    alike = made_up((9, 1), (9, 1))
    wanted = run(routed, together(mine))
    for batch, row in (
        (together(*SEQUENCES), 0),
        (together(*reversed(SEQUENCES)), len(SEQUENCES) - 1),
        (together(alike[0], mine, alike[1]), 1),
        (together(SEQUENCES[1], mine), 1),
    ):
        output = run(routed, batch)
        torch.testing.assert_close(logits_of(output, batch, row), wanted.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.routing[row], wanted.routing[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", [0, DEPTH - 1])
@of_each
def test_the_whole_and_the_last_layer_alone_are_fed_with_what_enters_them(
    model_type: str, first: int
) -> None:
    folder, batch = checkpoint(model_type), collate(SEQUENCES, "last1")
    wanted = run(part(folder), batch)
    output = run(part(folder, first), batch, entering_at(folder, first, batch))
    torch.testing.assert_close(output.logits, wanted.logits, rtol=0, atol=2e-6)
    kept = output.routing.shape[1]
    torch.testing.assert_close(output.routing, wanted.routing[:, -kept:], rtol=0, atol=2e-6)
    # Nothing of it comes from the tokens: other numbers in the table give other logits.
    other = run(part(folder, first), batch, entering_at(folder, first, batch).flip(0))
    assert float((other.logits - wanted.logits).abs().max()) > 1e-2


@pytest.mark.parametrize("model_type", [name for name in CARRYING if name != "inkling2_text"])
@pytest.mark.parametrize("first", [3, DEPTH - 1])
def test_in_bfloat16_a_table_keeps_what_is_float32(model_type: str, first: int) -> None:
    folder, batch = checkpoint(model_type), collate(SEQUENCES, "last1")
    table = entering_at(folder, first, batch, "bfloat16")
    routed = part(folder, first, "bfloat16")
    entering = routed.layout.family.entering(routed.network.config, first, "bfloat16")
    kinds = {field.name: field.dtype for field in entering.fields}
    wanted = {
        "glm_moe_dsa": {"hidden_states": "bfloat16", "prev_topk_indices": "int32"},
        "deepseek_v4": {"hidden_states": "bfloat16"},
        "zaya": {"hidden_states": "float32", "prev_router_hidden_states": "bfloat16"},
    }
    assert kinds == wanted[model_type]
    assert table.shape[1] * table.element_size() == entering.token_bytes
    whole, output = run(part(folder, dtype="bfloat16"), batch), run(routed, batch, table)
    torch.testing.assert_close(output.logits, whole.logits, rtol=0, atol=0)
    kept = output.routing.shape[1]
    torch.testing.assert_close(output.routing, whole.routing[:, -kept:], rtol=0, atol=0)


def test_a_type_that_does_not_run_in_bfloat16_is_refused_in_it() -> None:
    with pytest.raises(UserError, match="runs in float32 alone") as caught:
        part(checkpoint("inkling2_text"), None, "bfloat16")
    assert "set model.dtype=float32" in str(caught.value.fix)


@pytest.mark.parametrize("model_type", CARRYING)
def test_layer_by_layer_a_model_gives_what_the_whole_gives(model_type: str, tmp_path: Path) -> None:
    """And leaves the same in a prefix cache: streams, places of keys, states of routers and of blocks."""
    setting = Setting(checkpoint(model_type), tmp_path)
    setting.first = 3
    wanted, tables = setting.resident()
    cache = setting.plan("cache")
    found = setting.streamed(cache=cache).run()
    for name in COLUMNS:
        close = 2**-11 if name == "routing" else 1e-5
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=close)
    entering = setting.whole.entering(setting.first)
    cache.finish()
    for number, table in tables.items():
        one, other = entering.unpack(cache.read([number])), entering.unpack(table)
        for name, values in other.items():
            torch.testing.assert_close(one[name], values, rtol=0, atol=1e-5)


@of_each
def test_what_a_rank_with_nothing_to_do_runs_is_finite(model_type: str) -> None:
    """One token, and a table of zeros, whatever its bytes stand for."""
    folder, batch = checkpoint(model_type), collate([FILLER], "last1")
    for first in (3, DEPTH - 1):
        routed = part(folder, first)
        entering: Entering = routed.layout.family.entering(routed.network.config, first, "float32")
        output = routed(**batch.inputs(CPU), entering=torch.zeros(1, entering.width, dtype=entering.dtype))
        assert bool(output.logits.isfinite().all()) and bool(output.routing.isfinite().all())


@pytest.mark.parametrize("model_type", [*MECHANISMS, "hunyuan_v1_moe"])
def test_the_load_counts_the_experts_that_tokens_go_to(model_type: str) -> None:
    """As the stock model's router chooses them for each sequence alone, in one type more or fewer a layer."""
    folder, batch = checkpoint(model_type), collate(SEQUENCES, "last1")
    routed, stock = part(folder), StockAlone(folder)
    family, chosen = routed.layout.family, dict[int, list[torch.Tensor]]()
    assert family.indices_at is not None
    for site in routed.layout.sites:
        stock.network.get_submodule(site.module).register_forward_hook(
            lambda _, inputs, output, layer=site.layer: chosen.setdefault(layer, []).append(
                output[family.indices_at].reshape(-1)
            )
        )
    for sequence in SEQUENCES:
        stock.logits([*sequence.prompt, *sequence.continuation[:-1]])
    load = run(routed, batch).load
    for place, layer in enumerate(routed.layers):
        if layer != routed.last_layer:
            counts = torch.bincount(torch.cat(chosen[layer]), minlength=load.shape[1])
            torch.testing.assert_close(load[place], counts / counts.sum(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen3_next", {"mlp_only_layers": (0, 5)}),
        ("glm_moe_dsa", {"mlp_layer_types": ("dense", *("sparse",) * 4, "dense")}),
        ("qwen3_moe", {"mlp_only_layers": (5,)}),
    ],
)
def test_the_last_layer_may_be_dense(model_type: str, changes: dict[str, tuple[object, ...]]) -> None:
    folder = save_tiny(
        Path(mkdtemp()), model_type, DEPTH, **{name: list(value) for name, value in changes.items()}
    )
    batch = collate(SEQUENCES, "last1")
    whole = part(folder)
    assert max(whole.layers) == DEPTH - 2
    wanted = run(whole, batch)
    output = run(part(folder, DEPTH - 2), batch, entering_at(folder, DEPTH - 2, batch))
    torch.testing.assert_close(output.logits, wanted.logits, rtol=0, atol=2e-6)
    torch.testing.assert_close(output.routing, wanted.routing[:, -1:], rtol=0, atol=2e-6)
    stock = StockAlone(folder)
    for row, sequence in enumerate(SEQUENCES):
        logits = stock.logits([*sequence.prompt, *sequence.continuation[:-1]])
        torch.testing.assert_close(
            logits_of(output, batch, row), logits[len(sequence.prompt) - 1 :], rtol=0, atol=3e-5
        )
