"""The planner: sizes of a network without weights, what ZeRO-3 fetches, operations, memory, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from roma_ds.checkpoint.span import Span, skeleton
from roma_ds.cli.main import main
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import detect, published
from roma_ds.planner.memory import Setting, stream_bytes, training_activations, training_bytes
from roma_ds.planner.model_sizes import ModelSizes, Module, Weight, sizes_of
from roma_ds.planner.operations import layer_forward, model_pass, training_step
from roma_ds.planner.question import Question, Rates, smallest
from roma_ds.planner.size_text import gibibytes, parse_size
from roma_ds.planner.zero3_fetches import Zero3Limits, backward_visits, fetches, held

PAPER = ("olmoe-1b-7b", "deepseekmoe-16b", "qwen3-30b-a3b", "qwen3-235b-a22b")
GIB = 2**30


@cache
def network(name: str, first: int | None = None) -> Any:
    config = published.config(name)
    span = None if first is None else Span.suffix(first, config.num_hidden_layers)
    return skeleton(ModelConfig(path=name), span, config)


@cache
def sizes(name: str) -> ModelSizes:
    whole = network(name)
    layout = detect(whole)
    return sizes_of(whole, layout).training(layout.layers[-5:])


@pytest.mark.parametrize("name", PAPER)
def test_the_part_that_is_trained_is_the_network_that_training_loads(name: str) -> None:
    model = sizes(name)
    first = model.layers - 5
    loaded = network(name, first)
    assert model.total == sum(weight.numel() for weight in network(name).parameters())
    assert model.suffix(first).total == sum(weight.numel() for weight in loaded.parameters())
    assert model.suffix(0) is model
    assert model.trained == model.suffix(first).trained == 5 * model.experts * model.hidden


def test_a_tied_head_is_counted_once_and_goes_with_the_suffix() -> None:
    model = sizes("granite-3.1-1b-a400m")
    embedding = model.outside("embedding")
    assert model.tied and model.head == embedding > 0 and model.outside("head") == 0
    assert model.suffix(20).outside("embedding") == embedding
    assert model.suffix(20).weights[-1].numel == embedding


HYBRID = ("qwen3-next-80b-a3b", "kimi-linear-48b-a3b", "nemotron-3-nano-30b-a3b", "lfm2-8b-a1b")


@pytest.mark.parametrize("name", [*HYBRID, "granite-4.0-h-small", "jamba-v0.1"])
def test_only_attention_pays_for_every_pair_of_tokens(name: str) -> None:
    """Linear attention, state spaces, convolutions and experts alone cost twice for twice as much."""
    model, kinds = sizes(name), published.config(name).layer_types
    assert len(kinds) == model.layers and "full_attention" in kinds
    for layer, kind in enumerate(kinds):
        once, twice = (layer_forward(model, layer, length) for length in (1000, 2000))
        assert (twice > 2 * once) == (kind == "full_attention")
    assert sum(model.with_pairs) == kinds.count("full_attention")


def test_a_layer_that_is_experts_alone_is_run_on_the_tokens_that_are_read() -> None:
    model, kinds = sizes("nemotron-3-nano-30b-a3b"), published.config("nemotron-3-nano-30b-a3b").layer_types
    rows = {module.layer for module in model.modules if module.by_rows}
    assert rows == {layer for layer, kind in enumerate(kinds) if kind == "moe"} == set(model.moe_layers)


def test_activations_are_those_of_what_a_layer_has() -> None:
    model = sizes("nemotron-3-nano-30b-a3b")
    setting = Setting(zero_stage=0, world_size=1, dtype="bfloat16", tokens=100, device="cuda")
    found = training_activations(model, setting)
    dense = replace(model, moe_layers=model.moe_layers[-1:])
    attending = replace(model, with_pairs=(True,) * model.layers)
    # Between the first trained layer and the last lie three of experts.
    assert model.layers - 1 == model.moe_layers[-1] and len(model.moe_layers[-5:-1]) == 4
    expert = 2 * model.expert_width + 2 * model.hidden
    assert found - training_activations(dense, setting) == 3 * 100 * model.top_k * expert * 2
    assert found < training_activations(attending, setting)


def test_layers_of_different_widths_are_taken_for_the_widest() -> None:
    found, config = sizes("gemma-4-26b-a4b").attention, published.config("gemma-4-26b-a4b")
    full = config.per_layer_config[config.layer_types.index("full_attention")]
    assert found.pair == 4 * config.num_attention_heads * full.head_dim


def made_of(layers: int, size: int, router: int = 10) -> ModelSizes:
    """Layers of one dense weight, one stack of experts and a router each."""
    modules = [Module("", None, ()), Module("embed", None, (Weight(7, "embedding"),))]
    for layer in range(layers):
        path = f"layers.{layer}"
        modules += [
            Module(path, layer, ()),
            Module(f"{path}.attention", layer, (Weight(size, "attention"),)),
            Module(f"{path}.mlp", layer, ()),
            Module(f"{path}.mlp.gate", layer, (Weight(router, "router"),)),
            Module(f"{path}.mlp.experts", layer, (Weight(4 * size, "routed experts"),)),
        ]
    modules.append(Module("head", None, (Weight(2 * size, "head"),)))
    like = sizes("olmoe-1b-7b")
    made = replace(like, modules=tuple(modules), layers=layers, moe_layers=tuple(range(layers)))
    return made.training(range(layers - 2, layers))


NO_REUSE = Zero3Limits(persistence=50, prefetch=0, reuse=0, live=10**9)


def test_what_is_kept_is_gathered_once_and_what_is_not_once_a_direction() -> None:
    model = made_of(4, 1000)
    kept = fetches(model, Zero3Limits(50, 0, 10**9, 10**9), 2, backward=True)
    assert kept.gathered == 4 * 5000 + 2000
    # Each router and the embedding are persistent, and made even for two ranks.
    assert kept.persistent == 4 * 10 + 8
    # The layers below the trained ones are released, and of the first trained one what has no gradient.
    assert kept.peak == 4000 + 5000 + 2000 and kept.arriving == 4000 + 2000
    again = fetches(model, NO_REUSE, 2, backward=True)
    # Backward: head, the last layer, and of the one before the experts alone.
    assert again.gathered == kept.gathered + 2000 + 5000 + 4000
    assert again.peak == 4000
    assert fetches(model, NO_REUSE, 2, backward=False).gathered == kept.gathered
    assert fetches(model, NO_REUSE, 1, backward=True).gathered == 0


def test_prefetching_holds_more_and_gathers_no_more() -> None:
    model = made_of(6, 1000)
    plain = fetches(model, NO_REUSE, 2, backward=False)
    ahead = fetches(model, replace(NO_REUSE, prefetch=4000), 2, backward=False)
    bounded = fetches(model, replace(NO_REUSE, prefetch=4000, live=9000), 2, backward=False)
    assert plain.gathered == ahead.gathered == bounded.gathered
    assert plain.peak < bounded.peak < ahead.peak


def test_a_gradient_enters_the_first_trained_layer_through_its_experts_alone() -> None:
    visits = [module.path for module in backward_visits(made_of(4, 1000))]
    assert visits[:2] == ["", "head"]
    assert visits.index("layers.3") < visits.index("layers.3.mlp.experts") < visits.index("layers.2")
    inside = [path for path in visits if path.startswith("layers.2.")]
    assert inside == ["layers.2.mlp", "layers.2.mlp.experts", "layers.2.mlp.gate"]
    assert not [path for path in visits if path.startswith(("layers.0", "layers.1", "embed"))]


def test_ranks_share_what_zero_3_partitions_and_all_hold_small_weights() -> None:
    model = made_of(4, 1001)
    shares, whole = held(model, NO_REUSE, 2)
    assert shares == 4 * (501 + 2002 + 5) + 4 + 1001 and whole == 4 * 10 + 7
    assert held(model, NO_REUSE, 1) == (model.total, 0)


def test_memory_below_zero_3_is_the_network_and_at_it_a_share() -> None:
    model = sizes("olmoe-1b-7b").suffix(11)
    below = training_bytes(model, Setting(2, 8))
    at = training_bytes(model, Setting(3, 8))
    assert below.weights == 2 * model.total and below.gathered == 0
    assert at.resting < below.weights / 7.9 and at.gathered > 0
    assert at.weights - at.resting == 2 * sum(w.numel for w in model.weights if w.numel <= 10**6)
    assert training_bytes(model, Setting(2, 8, tokens=4096)).activations == 2 * below.activations


def test_the_stream_engine_holds_two_neighbouring_steps() -> None:
    model = sizes("deepseekmoe-16b")
    layer = model.in_layer(5)
    assert model.in_layer(0) < layer
    got = stream_bytes(model, Setting(0, 1, tokens=1), 0)
    assert got.weights == 2 * max(2 * layer, layer + model.head + model.hidden)


@pytest.mark.parametrize(("stage", "answer"), [(0, None), (3, 8)])
def test_the_smallest_number_of_devices_fits_and_one_less_does_not(stage: int, answer: int | None) -> None:
    model = sizes("qwen3-235b-a22b")
    question = Question(Setting(stage), (93,), 80 * GIB, 10**6, 150, 0, Rates(1e14, 1e10, 1e9))

    def memory_on(ranks: int) -> Any:
        return training_bytes(model, replace(question.setting, world_size=ranks))

    found = smallest(memory_on, question)
    assert (found is None) == (answer is None)
    if found is not None:
        assert question.fits(memory_on(found)) and not question.fits(memory_on(found - 1))
        assert abs(found - answer) <= 1


def test_a_step_with_the_cache_leaves_out_exactly_the_layers_below() -> None:
    model, lengths = sizes("qwen3-30b-a3b"), [100, 30]
    cached = training_step(model, 43, lengths)
    whole = training_step(model, 43, lengths, cached=False)
    assert whole.backward == cached.backward
    assert whole.forward == pytest.approx(model_pass(model, lengths), rel=1e-12)
    assert 40 / 48 < (whole.forward - cached.forward) / whole.forward < 44 / 48


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 * GIB), ("80GB", 80 * 10**9), ("1.5 TiB", 3 * 2**39), ("7B", 7)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text, "--device-memory") == size


def test_sizes_are_written_with_the_digits_that_help() -> None:
    shown = [gibibytes(size) for size in (0, 5 * 2**20, 12.34 * GIB, 1234 * GIB)]
    assert shown == ["0", "5 MiB", "12.3 GiB", "1,234 GiB"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("80Gib", "80GiB"), ("80gb", "80GB"), ("80G", "80GB or 80GiB"), ("eighty", "80GiB"), ("0B", "less"),
     ("-1GiB", "no size"), ("80", "80GiB"), ("", "no size")],
)  # fmt: skip
def test_sizes_that_are_none_say_what_is_meant(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_size(text, "--device-memory")
    assert says in str(caught.value) and "--device-memory" in str(caught.value)


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_plan_prints_the_same_numbers_as_its_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "olmoe-1b-7b", "--json", "--tokens", "1000", "--length", "100")
    found = json.loads(out)
    assert code == 0 and found["trainable"] == 655_360 and found["layers"] == [11, 12, 13, 14, 15]
    assert sum(found["parameters"].values()) == 6_919_161_856
    assert found["cache_bytes"] == 1000 * 2048 * 2 + 10 * 13
    rows = {(row["zero_stage"], row["prefix_cache"]): row for row in found["training"]}
    # In bfloat16 ZeRO 0 runs as ZeRO 1, which shares out the routers' updates.
    assert (
        len(rows) == 8 and rows[0, True]["gathered_bytes"] == rows[2, False]["gathered_bytes"] == 2 * 655_360
    )
    assert rows[3, True]["gathered_bytes"] > 2 * found["suffix"]
    code, text, _ = plan(capsys, "olmoe-1b-7b", "--tokens", "1000", "--length", "100")
    assert code == 0 and "655,360" in text and "6,919,161,856" in text
    peak = sum(rows[3, False]["memory"][key] for key in ("weights", "gathered", "routers", "activations"))
    assert peak == rows[3, False]["peak_bytes"]
    line = next(line for line in text.splitlines() if line.startswith("3") and " off " in line)
    assert gibibytes(peak) in line


def test_plan_takes_a_config_file_its_folder_and_the_packaged_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from roma_ds.checkpoint.loading import PACKAGED

    file = tmp_path / "config.json"
    file.write_text((PACKAGED / "config.json").read_text())
    answers = [
        json.loads(plan(capsys, str(model), "--json", "--layers", "all")[1])
        for model in ("demo", tmp_path, file)
    ]
    for found in answers:
        del found["name"]
    assert answers[0] == answers[1] == answers[2]
    # Layer 0 is trained: no cache in any row.
    assert {row["prefix_cache"] for row in answers[0]["training"]} == {False}
    assert answers[0]["cache_bytes"] == 0 and not answers[0]["recommendation"]["prefix_cache"]


def test_plan_names_all_mistakes_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("olmoe-1b-7b", "--world-size", "0", "--device-memory", "80Gib", "--tokens", "-5",
             "--link-rate", "fast", "--layers", "newest5")  # fmt: skip
    code, out, err = plan(capsys, *words)
    assert code == 2 and not out and err.count("roma-ds: error") == 1 and "fix: " in err
    for words in ("--world-size", "80GiB", "--tokens", "--link-rate", "--layers"):
        assert words in err


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "olmoe-1b-7b"), ({"model_type": "llama"}, "llama"), ("{", "config"), ({}, "model_type")],
)
def test_plan_refuses_what_is_no_sparse_model(
    content: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    model = "olmoe-1b" if content is None else str(tmp_path)
    code, out, err = plan(capsys, model)
    assert code == 2 and not out and "Traceback" not in err and "fix: " in err and says in err


def test_plan_refuses_more_layers_than_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(capsys, "olmoe-1b-7b", "--layers", "last17")
    assert code == 2 and "16 MoE layers" in err


def test_a_model_that_cannot_be_cut_is_planned_whole() -> None:
    from roma_ds.planner.forecast import forecast

    model = sizes("qwen3-235b-a22b")
    question = Question(
        Setting(0, 8), (92, 93), 80 * GIB, 10**6, 150, 0, Rates(1e14, 1e10, 1e9), uncut="its layers differ"
    )
    found = forecast(model, question)
    assert {row.prefix_cache for row in found.training} == {False} and found.cache_bytes == 0
    assert [row.engine for row in found.passes] == ["zero3", "zero3"]
    assert found.recommendation.engine == "zero3" and not found.recommendation.prefix_cache
    assert any("its layers differ" in reason for reason in found.recommendation.reasons)


def test_a_model_that_fits_nowhere_gets_the_number_of_devices_that_it_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("qwen3-235b-a22b", "--layers", "all", "--world-size", "2", "--json")
    found = json.loads(plan(capsys, *words)[1])
    best = found["recommendation"]
    assert best["ds_config"] == "zero3" and best["engine"] == "stream" and best["devices"] > 2
    row = next(row for row in found["training"] if row["zero_stage"] == 3)
    assert not row["fits"] and row["devices"] == best["devices"]
