"""Checkpoints that are not whole, and arguments that are not spelled out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from roma_ds.backbone.loading import check_files, load_config, load_model, load_tokenizer
from roma_ds.cli.parser import build_parser
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.testing.tiny_models import save_tiny


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sharded"), shard_size="100KB")


def test_a_missing_shard_is_named_before_loading(sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sharded, folder)
    check_files(ModelConfig(path=str(folder)))
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        check_files(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("load", [load_config, load_tokenizer])
def test_a_checkpoint_that_is_nowhere_is_a_user_error(load: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path"):
        load(ModelConfig(path=str(tmp_path / "absent")))  # type: ignore[operator]


def test_everything_is_frozen_after_loading(sharded: Path) -> None:
    import torch

    network = load_model(ModelConfig(path=str(sharded), dtype="float32"), None, torch.device("cpu"))
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


@pytest.mark.parametrize("line", [["run", "run.yaml", "--rank=2"], ["demo", "--see", "1"]])
def test_options_are_not_guessed_from_their_beginning(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(line)
    assert stopped.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
