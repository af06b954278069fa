"""Checkpoints that are not whole, and arguments that are not spelled out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from roma_ds.checkpoint.blueprint import check_checkpoint
from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.loading import load_config, load_tokenizer
from roma_ds.cli.parser import build_parser
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.testing.tiny_models import save_tiny

INDEX = "model.safetensors.index.json"
GATE = "model.layers.2.mlp.gate.weight"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sharded"), shard_size="100KB")


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_checkpoint(ModelConfig(path=str(folder)))
    assert caught.value.fix
    return caught.value.message


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object], holding: str) -> None:
    """Rewrite the shard that holds a tensor; the index keeps saying what it said."""
    index = json.loads((folder / INDEX).read_text())
    shard = folder / index["weight_map"][holding]
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    content = json.loads((folder / INDEX).read_text())
    change(content["weight_map"])
    (folder / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize("model_type", ["olmoe", "qwen3_moe"])
def test_sound_checkpoints_pass(model_type: str, tmp_path: Path) -> None:
    check_checkpoint(ModelConfig(path=str(save_tiny(tmp_path, model_type, shard_size="100KB"))))
    check_checkpoint(ModelConfig(path="demo"))


def test_a_missing_shard_is_named_before_loading(copy: Path) -> None:
    first, second = sorted(copy.glob("model-*.safetensors"))[1:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-7])
    said = refusal(copy)
    assert f"{first}, which the checkpoint names, is not there" in said
    assert f"{second} is no readable safetensors file" in said


def test_a_tensor_that_is_not_where_the_index_says(copy: Path) -> None:
    change_tensors(copy, lambda tensors: tensors.pop(GATE), GATE)
    assert f"lacks {GATE}, which the index places there" in refusal(copy)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{"])
def test_an_index_that_is_none(content: str, copy: Path) -> None:
    (copy / INDEX).write_text(content)
    assert INDEX in refusal(copy)


def test_all_that_does_not_fit_is_named_at_once(copy: Path) -> None:
    import torch

    norm, odd = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.gate.bias"
    change_tensors(copy, lambda tensors: tensors.update({norm: torch.ones(5), odd: torch.ones(2)}), norm)
    change_index(copy, lambda places: places.update({odd: places[norm]}))
    change_index(copy, lambda places: places.pop(GATE))
    said = refusal(copy)
    assert f"1 tensors are missing: {GATE}" in said
    assert f"{norm} has shape (5,), the config says (32,)" in said
    assert f"1 tensors belong nowhere: {odd}" in said


@pytest.mark.parametrize("count", [4, 16])
def test_another_number_of_experts_than_in_the_config(count: int, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_experts": count}))
    said = refusal(copy)
    assert f"mlp.gate.weight has shape (8, 32), the config says ({count}, 32)" in said
    assert f"mlp.experts.gate_up_proj has 8 experts, the config says {count}" in said


@pytest.mark.parametrize("layers", [3, 5])
def test_another_number_of_layers_than_in_the_config(layers: int, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    said = refusal(copy)
    assert ("belong nowhere: model.layers.3." if layers == 3 else "missing: model.layers.4.") in said


@pytest.mark.parametrize("load", [load_config, load_tokenizer])
def test_a_checkpoint_that_is_nowhere_is_a_user_error(load: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path"):
        load(ModelConfig(path=str(tmp_path / "absent")))  # type: ignore[operator]


@pytest.mark.parametrize("line", [["run", "run.yaml", "--rank=2"], ["demo", "--see", "1"]])
def test_options_are_not_guessed_from_their_beginning(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(line)
    assert stopped.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_hub_id_is_read_from_the_hub_s_own_folder(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched once serves without a network; a shard that was not is named."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--tiny"
    snapshot = shutil.copytree(sharded, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    model = ModelConfig(path="owner/tiny")
    assert check_checkpoint(model).keys == CheckpointFiles(ModelConfig(path=str(sharded))).keys
    lost = sorted(snapshot.glob("model-*.safetensors"))[2]
    lost.unlink()
    with pytest.raises(UserError, match=f"{lost.name} of 'owner/tiny' is neither here nor on the hub"):
        check_checkpoint(model)


def test_a_folder_without_tokenizer_files_is_named(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(UserError) as caught:
        load_tokenizer(ModelConfig(path=str(copy)))
    assert str(copy) in caught.value.message
    assert "tokenizer.json" in caught.value.message and "copy the tokenizer files" in str(caught.value.fix)
