"""`roma-ds plan`: what it makes of its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from coded_checkpoints import in_codes
from coded_tensors import by_name
from safetensors.torch import load_file

from roma_ds.cli import planning
from roma_ds.cli.main import main
from roma_ds.network import products
from roma_ds.testing.tiny_models import tiny_config


def test_fewer_tokens_than_a_sample_has_make_a_shorter_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "olmoe-1b-7b", "--tokens", "10", "--micro-batch", "8"]) == 0
    assert "8 samples of 10 tokens a rank and step" in capsys.readouterr().out


def test_what_is_kept_of_a_token_is_stated_where_it_is_more_than_hidden_states(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here places of 8 keys, of 4 bytes each, which the last layer takes from the one before."""
    config = tiny_config("glm_moe_dsa", 100)
    config.save_pretrained(tmp_path)
    assert config.indexer_types[-2:] == ["full", "shared"] and config.index_topk == 8
    for layers, text in (("last2", "MB\n"), ("last1", "MB, 96 bytes a token, 64 for hidden states alone\n")):
        assert main(["plan", str(tmp_path), "--layers", layers]) == 0
        said = capsys.readouterr().out
        assert said.partition("prefix cache on disk: ")[2].partition(" ")[2].startswith(text)


@pytest.mark.parametrize("lacks", [False, True])
def test_a_measured_rate_is_that_of_the_products_training_takes(
    lacks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: list[torch.Size] = []

    def counted(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        sizes.append(weight.shape)
        return by_float32(rows, weight)

    by_float32 = products.by_float32
    monkeypatch.setattr(products, "lacks_bfloat16", lambda: lacks)
    monkeypatch.setattr(products, "by_float32", counted)
    monkeypatch.setattr(planning, "MATRIX_SECONDS", 0.0)
    # Elsewhere a product of bfloat16 may be a slow one of this processor: small ones do.
    monkeypatch.setattr(planning, "MATRIX_SIZE", 64)
    assert main(["plan", "olmoe-1b-7b", "--device", "cpu", "--matrix-rate", "measure", "--json"]) == 0
    assert sizes == ([torch.Size([64, 64])] * 2 if lacks else [])
    assert json.loads(capsys.readouterr().out)["rates"]["matrix"] > 0


def test_a_checkpoint_in_codes_is_read_in_the_bytes_that_it_has(
    tiny_qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coded, plain = in_codes(tiny_qwen3, tmp_path, by_name("int4 groups"))
    found = []
    for folder in (coded, plain):
        assert main(["plan", str(folder), "--layers", "last2", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    size = sum(tensor.nbytes for tensor in load_file(coded / "model.safetensors").values())
    assert [one["stored_bytes"] for one in found] == [size, None]
    read = [{(row["engine"], row["zero_stage"]): row["read_bytes"] for row in one["passes"]} for one in found]
    assert read[0]["zero3", 0] == read[0]["stream", 0] == size < read[1]["zero3", 0]
    for one in found:
        for row in one["passes"]:
            del row["read_bytes"], row["seconds"]
    differ = {key for key in found[0] if found[0][key] != found[1][key]}
    assert differ <= {"name", "stored_bytes", "recommendation"}
    assert main(["plan", str(coded), "--layers", "last2"]) == 0
    assert "B in codes, decoded to bfloat16 while they are read" in capsys.readouterr().out
    (coded / "config.json").write_text(
        (coded / "config.json").read_text().replace("compressed-tensors", "unheard-of")
    )
    assert main(["plan", str(coded), "--layers", "last2"]) == 2
    assert "unheard-of" in capsys.readouterr().err
