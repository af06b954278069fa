"""A config.json as people have it: what is harmless loads as the same network, the rest is named."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import MODEL_TYPES, SEQUENCES, checkpoint, run, suffix_of
from tiny_runs import model_config
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from roma_ds.checkpoint.blueprint import blueprint, check_checkpoint
from roma_ds.checkpoint.loading import load_config, load_tokenizer
from roma_ds.cli.main import main
from roma_ds.errors import UserError
from roma_ds.families import published
from roma_ds.families.config_values import settled
from roma_ds.sequences.batches import collate

HARMLESS: list[tuple[str, Any]] = [
    ("router_aux_loss_coef", 0),
    ("attention_dropout", 0),
    ("max_position_embeddings", 512.0),
    ("hidden_size", 32.0),
    ("_attn_implementation", "flash_attention_2"),
    ("attn_implementation", "no_such_implementation"),
    ("_attn_implementation_internal", "flash_attention_3"),
    ("experts_implementation", "grouped_mm"),
    ("torch_dtype", "torch.bfloat16"),
    ("torch_dtype", "auto"),
    ("dtype", "auto"),
    ("dtype", None),
    ("quantization_config", {}),
    ("quantization_config", None),
    ("output_attentions", True),
    ("output_hidden_states", True),
    ("output_router_logits", True),
    ("return_dict", False),
    ("use_cache", False),
    ("is_encoder_decoder", True),
    ("attribute_map", 3),
    ("base_model_tp_plan", [1]),
    ("to_dict", "mine"),
    ("auto_map", {"AutoConfig": "configuration_mine.MyConfig"}),
    ("something_new", [1, {"a": None}]),
]
HARMFUL: list[tuple[str, Any]] = [
    ("rms_norm_eps", "1e-05"),
    ("rms_norm_eps", -1e-5),
    ("rms_norm_eps", float("nan")),
    ("hidden_size", "32"),
    ("hidden_size", 32.5),
    ("hidden_size", True),
    ("hidden_size", None),
    ("hidden_size", [32]),
    ("num_hidden_layers", 0),
    ("num_hidden_layers", 10**9),
    ("num_attention_heads", -4),
    ("vocab_size", 2**70),
    ("hidden_act", "swish_glu"),
    ("tie_word_embeddings", "no"),
    ("pad_token_id", 10**6),
    ("torch_dtype", "bf16"),
    ("torch_dtype", 16),
    ("_attn_implementation", 2),
    ("quantization_config", "gptq"),
    ("compression_config", ["pack-quantized"]),
    ("rope_theta", "10000"),
    ("rope_theta", -1),
    ("rope_scaling", "linear"),
    ("rope_scaling", {"type": "lineal", "factor": 2.0}),
    ("rope_parameters", {"rope_type": "linear", "factor": -2.0, "rope_theta": 10000.0}),
    ("sliding_window", True),
    ("layer_types", 3),
    ("head_dim", {"a": 1}),
    ("per_layer_config", {"0": {"hidden_size": 8}}),
    ("model_type", ["olmoe"]),
]

UNDECLARED = {
    "jetmoe": ("num_attention_heads", "hidden_act"),
    "dbrx": ("rms_norm_eps", "hidden_act"),
    "lfm2_moe": ("rms_norm_eps", "hidden_act"),
    "nemotron_h": ("rms_norm_eps", "hidden_act", "num_hidden_layers"),
    "gemma4_text": ("hidden_act",),
}
"""Keys that a type has under another name or computes, so that nobody reads them."""


def changed(model_type: str, folder: Path, /, **values: Any) -> Path:
    """A checkpoint of that type with other values in its config.json."""
    base = checkpoint(model_type)
    folder.mkdir(exist_ok=True)
    for path in base.iterdir():
        if path.name != "config.json" and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    content = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))
    return folder


def settings(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = load_config(model_config(folder)).to_dict()
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "dtype")}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_is_harmless_gives_the_same_config(model_type: str, tmp_path: Path) -> None:
    wanted = settings(changed(model_type, tmp_path))
    for key, value in HARMLESS:
        found = settings(changed(model_type, tmp_path, **{key: value}))
        found.pop("something_new", None)
        assert {k: v for k, v in found.items() if k != key} == {k: v for k, v in wanted.items() if k != key}
        assert key in ("something_new", "attention_dropout", "router_aux_loss_coef") or (
            found.get(key) == wanted.get(key)
        ), key


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_what_is_harmless_gives_the_same_network(model_type: str, tmp_path: Path) -> None:
    batch = collate(SEQUENCES, "last1")
    wanted = run(suffix_of(checkpoint(model_type)), batch)
    harmless = dict(HARMLESS)
    found = run(suffix_of(changed(model_type, tmp_path, **harmless)), batch)
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.routing, wanted.routing)


def test_how_weights_are_stored_is_left_out(tmp_path: Path) -> None:
    wanted = settings(changed("olmoe", tmp_path))
    said = {"quantization_config": {"quant_method": "fp8"}, "compression_config": {"format": "dense"}}
    assert settings(changed("olmoe", tmp_path, **said)) == wanted


def test_a_whole_number_where_a_fraction_is_meant_is_that_number(tmp_path: Path) -> None:
    config = load_config(model_config(changed("olmoe", tmp_path, clip_qkv=8)))
    assert config.clip_qkv == 8.0 and isinstance(config.clip_qkv, float)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_cannot_be_used_is_named_with_its_value(model_type: str, tmp_path: Path) -> None:
    declared = {field.name for field in fields(CONFIG_MAPPING[model_type])}
    unread = UNDECLARED.get(model_type, ())
    assert declared.isdisjoint(unread)
    for key, value in HARMFUL:
        if key in unread:
            continue
        folder = changed(model_type, tmp_path, **{key: value})
        with pytest.raises(UserError) as caught:
            load_config(model_config(folder))
            blueprint(model_config(folder))
        assert key in caught.value.message and caught.value.fix, key
        shown = json.dumps(value)
        assert shown in caught.value.message or str(value) in caught.value.message, (key, value)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    folder = changed("olmoe", tmp_path, rms_norm_eps="1e-05", hidden_act="foo", torch_dtype="int")
    with pytest.raises(UserError) as caught:
        load_config(model_config(folder))
    said = caught.value.message
    assert 'rms_norm_eps must be float, not "1e-05"' in said and "hidden_act must be an activation" in said


ODD: tuple[Any, ...] = (
    *(0, 1, -1, 3, 10**9, 2**80, 0.5, 4.0, -2.5, 1e300, float("nan"), float("inf"), True, False, None),
    *("", "1e-05", "foo", "auto", [], [0], [1, "a"], [None], {}, {"a": 1}, {"rope_type": 3}),
    *(["full_attention"] * 4, ["sliding_attention"], ["foo"] * 4),
)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_library_s_exception_reaches_the_user(model_type: str, tmp_path: Path) -> None:
    """Any value of any key gives a network that fits its files, or a UserError."""
    source = random.Random(model_type)
    keys = sorted(json.loads((checkpoint(model_type) / "config.json").read_text()))
    keys += ["rope_scaling", "rope_theta", "num_labels", "configuration_files", "_attn_implementation"]
    for _ in range(12):
        key, value = source.choice(keys), source.choice(ODD)
        folder = changed(model_type, tmp_path, **{key: value})
        try:
            check_checkpoint(model_config(folder))
        except UserError as error:
            assert error.fix, (key, value)


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("granitemoe", "embedding_multiplier", None),
        ("granitemoe", "logits_scaling", 0),
        ("olmoe", "attention_dropout", 1.5),
        ("deepseek_v3", "n_group", None),
        ("deepseek_v3", "n_group", 3),
        ("deepseek_v3", "topk_group", 5),
        ("deepseek_v2", "topk_method", "foo"),
        ("deepseek_v2", "n_group", None),
        ("glm4_moe", "partial_rotary_factor", 1.5),
        ("gpt_oss", "partial_rotary_factor", 0.5),
        ("ernie4_5_moe", "moe_layer_start_index", None),
    ],
)
def test_values_that_only_the_forward_pass_would_find(
    model_type: str, key: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        blueprint(model_config(changed(model_type, tmp_path, **{key: value})))
    said = caught.value.message
    assert key in said and (json.dumps(value) in said or str(value) in said)


@pytest.mark.parametrize("content", ["", "[]", "3", "null", "{", '{"model_type": null}', "{}", '"olmoe"'])
def test_a_config_that_is_no_object(content: str, tmp_path: Path) -> None:
    (changed("olmoe", tmp_path) / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.path"):
        load_config(model_config(tmp_path))


@pytest.mark.parametrize("name", published.names())
def test_published_configs_are_taken_as_they_are(name: str) -> None:
    values = dict(published.published_model(name).config)
    kind = CONFIG_MAPPING[values["model_type"]]
    assert kind.from_dict(settled(kind, values, "config.json")).to_dict() == published.config(name).to_dict()


def test_the_command_ends_with_2_and_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed("olmoe", tmp_path, rms_norm_eps="1e-05")
    assert main(["plan", str(folder)]) == 2
    said = capsys.readouterr().err
    assert (
        "config.json, of model type 'olmoe', cannot be used: rms_norm_eps must be float, not \"1e-05\""
        in said
    )


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_a_folder_without_tokenizer_files_says_so(kept: tuple[str, ...], tmp_path: Path) -> None:
    folder = changed("olmoe", tmp_path)
    for name in {"tokenizer.json", "tokenizer_config.json"} - set(kept):
        (folder / name).unlink()
    with pytest.raises(UserError, match="has no tokenizer files") as caught:
        load_tokenizer(model_config(folder))
    assert "copy the tokenizer files" in str(caught.value.fix)


def test_a_tokenizer_that_reads_nothing_is_refused(tmp_path: Path) -> None:
    folder = changed("olmoe", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"zz": 0}, []))).save_pretrained(folder)
    with pytest.raises(UserError, match="has no token for"):
        load_tokenizer(model_config(folder))


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"model": {}}', '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_the_user_s_to_mend(content: str, tmp_path: Path) -> None:
    folder = changed("olmoe", tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.path"):
        load_tokenizer(model_config(folder))
