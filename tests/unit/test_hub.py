"""A machine without network is not kept waiting: the hub is asked once, and its cache is used."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.loading import load_config, load_tokenizer
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.storage.hub import why_unreachable
from roma_ds.testing.tiny_models import save_tiny

ID = "nobody/no-such-model"


class DeadHub:
    """Takes connections and closes them."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.asked = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.asked += 1
            connection.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DeadHub]:
    dead = DeadHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{dead.server.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    why_unreachable.cache_clear()
    yield dead
    why_unreachable.cache_clear()
    dead.server.close()


def test_the_hub_is_asked_once_for_all_files(hub: DeadHub) -> None:
    model = ModelConfig(path=ID)
    for load in (load_config, load_tokenizer, CheckpointFiles):
        with pytest.raises(UserError) as refused:
            load(model)
        assert "is no folder here and not in the hub's cache" in refused.value.message
        assert f"{constants.ENDPOINT} does not answer" in refused.value.message
        assert "network access" in (refused.value.fix or "")
    assert hub.asked == 1
    assert os.environ["HF_HUB_OFFLINE"] == "1", "ranks that are started now would ask again"


def test_what_is_in_the_cache_serves(hub: DeadHub, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / f"models--{ID.replace('/', '--')}"
    save_tiny(tmp_path / "model")
    shutil.copytree(tmp_path / "model", folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    model = ModelConfig(path=ID)
    assert load_config(model).model_type == "olmoe"
    assert load_tokenizer(model)("w1")["input_ids"]
    assert CheckpointFiles(model).keys
    assert hub.asked == 1


def test_a_folder_asks_nobody(hub: DeadHub, tmp_path: Path) -> None:
    load_config(ModelConfig(path=str(save_tiny(tmp_path / "model"))))
    assert hub.asked == 0 and constants.HF_HUB_OFFLINE is False
