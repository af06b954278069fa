"""What `roma-ds check` says of weights that lie in no folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from coded_checkpoints import in_codes
from coded_tensors import by_name
from safetensors.torch import load_file

from roma_ds.checkpoint.loading import PACKAGED, load_config
from roma_ds.cli.checking import LOOKS
from roma_ds.cli.subject import Subject
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError


def weights(path: object) -> str:
    run = SimpleNamespace(model=ModelConfig(path=str(path)))
    return "\n".join(LOOKS["weights"](Subject(cast(Any, run), 1)))


def test_a_file_is_no_folder() -> None:
    with pytest.raises(UserError, match=r"config\.json is a file") as refused:
        weights(PACKAGED / "config.json")
    assert refused.value.fix is not None and "folder" in refused.value.fix


@pytest.mark.parametrize("path", ["/nowhere", "./nowhere", "models/of/mine"])
def test_a_path_that_is_not_there_is_not_on_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"'{path}' does not exist") as refused:
        weights(path)
    # The same words as for its config, so that `check` names it once.
    with pytest.raises(UserError) as of_config:
        load_config(ModelConfig(path=path))
    assert str(refused.value) == str(of_config.value)


def test_a_hub_id_is_not_looked_at() -> None:
    assert weights("nobody/no-such-model") == "not looked at: they are on the hub"


def test_what_is_stored_in_codes_is_counted(tiny_qwen3: Path, tmp_path: Path) -> None:
    coded, plain = in_codes(tiny_qwen3, tmp_path, by_name("int4 groups"))
    assert weights(plain).endswith(" tensors in 1 files fit the config")
    size = sum(tensor.nbytes for tensor in load_file(coded / "model.safetensors").values())
    products = 4 * 4 + 4 * 3 * 8
    assert weights(coded) == weights(plain) + (
        f"\n  {products} are stored in codes ({products} as packed integers of compressed-tensors) and "
        f"decoded to bfloat16; {size:,} bytes on disk"
    )
