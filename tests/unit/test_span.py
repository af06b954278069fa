"""Spans hold what the whole model holds, and read nothing else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import stock_network
from transformers import AutoConfig, AutoModelForCausalLM

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.conversion import Conversion
from roma_ds.checkpoint.span import Span, load_span, skeleton, total_parameters
from roma_ds.config import ModelConfig
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.families import detect, family_of
from roma_ds.families.dense_layers import NoDenseLayers
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Encoded
from roma_ds.testing.tiny_models import save_tiny

CPU = torch.device("cpu")
DEPTH = 4
SPANS = [Span.suffix(first, DEPTH) for first in range(DEPTH + 1)] + [
    Span(0, 2, embedding=True, head=False),
    Span(1, 2, embedding=False, head=False),
    Span(0, 0, embedding=True, head=False),
]


def configured(folder: Path, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(path=str(folder), dtype=dtype)  # type: ignore[arg-type]


def changed(folder: Path, target: Path, **values: Any) -> Path:
    """A checkpoint of the same kind with other config values and new random weights."""
    config = AutoConfig.from_pretrained(folder, **values)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(
        target, max_shard_size="60KB"
    )
    return target


def assert_equal_to_whole(folder: Path, span: Span, dtype: str = "float32") -> Any:
    whole = stock_network(configured(folder, dtype))
    network = load_span(configured(folder, dtype), span, None, CPU)
    wanted, found = whole.state_dict(), network.state_dict()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, wanted[name]), name
    layers = {
        f".layers.{number}.{name}"
        for number in range(span.first, span.last)
        for name in whole.base_model.layers[0].state_dict()
    }
    all_sparse = isinstance(family_of(whole.config).dense, NoDenseLayers)
    assert not all_sparse or sum(".layers." in name for name in found) == len(layers)
    assert ("model.embed_tokens.weight" in found) == span.embedding
    assert ("lm_head.weight" in found) == span.head
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    assert not network.config.use_cache
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    return network


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor_is_that_of_the_whole_model(tiny_model: Path, span: Span, dtype: str) -> None:
    assert_equal_to_whole(tiny_model, span, dtype)


@pytest.mark.parametrize("saved", ["bfloat16", "float32"])
@pytest.mark.parametrize("model_type", ["olmoe", "qwen3_moe"])
def test_sharded_checkpoints_in_either_type(model_type: str, saved: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, model_type, dtype=saved, shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > DEPTH
    for dtype in ("float32", "bfloat16"):
        assert_equal_to_whole(folder, Span.suffix(2, DEPTH), dtype)
        assert_equal_to_whole(folder, Span.suffix(0, DEPTH), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_are_computed_in_float32(tiny_model: Path, dtype: str) -> None:
    whole = stock_network(configured(tiny_model, dtype))
    network = load_span(configured(tiny_model, dtype), Span.suffix(3, DEPTH), None, CPU)
    for name, buffer in whole.named_buffers():
        found = network.get_buffer(name)
        assert found.dtype == torch.float32
        assert torch.equal(found, buffer)


@pytest.mark.parametrize("cut", range(DEPTH))
def test_two_spans_in_turn_are_the_whole_network(tiny_model: Path, cut: int) -> None:
    batch = collate([Encoded(0, tuple(range(3, 14)), (7, 9)), Encoded(1, (40, 41), (8,))], "last1")
    whole = stock_network(configured(tiny_model))
    parts = []
    for span in (Span(0, cut, True, False), Span(cut, DEPTH, False, True)):
        network = load_span(configured(tiny_model), span, None, CPU)
        layout = detect(network, range(span.first, span.last))
        parts.append(RoutedLM(network, layout, layout.layers, span.first).attach())
    with torch.no_grad():
        entering, _ = parts[0].through(cut, **batch.inputs(CPU))
        found = parts[1](**replace(batch, entering=entering).inputs(CPU)).logits
        wanted = whole(input_ids=batch.input_ids[None, :12]).logits[0, -2:]
    torch.testing.assert_close(found[:2], wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_only_layers": [0, 3]},
        {"decoder_sparse_step": 2},
        {"decoder_sparse_step": 3, "mlp_only_layers": [2], "num_hidden_layers": 6},
    ],
    ids=str,
)
def test_dense_layers_stay_where_they_are(tiny_qwen3: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = changed(tiny_qwen3, tmp_path, **changes)
    whole = stock_network(configured(folder))
    depth = whole.config.num_hidden_layers
    routers = detect(whole).layers
    assert len(routers) < depth
    for first in range(depth):
        network = assert_equal_to_whole(folder, Span.suffix(first, depth))
        kinds = [type(layer.mlp) for layer in whole.base_model.layers[first:]]
        assert [type(layer.mlp) for layer in network.base_model.layers[first:]] == kinds
        if any(layer >= first for layer in routers):
            kept = tuple(layer for layer in routers if layer >= first)
            assert detect(network, range(first, depth)).layers == kept


@pytest.mark.parametrize(
    "span", [Span.suffix(0, DEPTH), Span.suffix(2, DEPTH), Span(0, 1, True, False)], ids=str
)
def test_tied_embeddings(tiny_model: Path, span: Span, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in CheckpointFiles(configured(folder)).keys
    network = assert_equal_to_whole(folder, span)
    if span.embedding and span.head:
        assert network.lm_head.weight is network.model.embed_tokens.weight


def test_the_prefix_is_never_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_tiny(
        tmp_path, family_of(AutoConfig.from_pretrained(tiny_model)).model_types[0], shard_size="60KB"
    )
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    prefix = ("model.embed_tokens.", "model.layers.0.", "model.layers.1.", "model.layers.2.")
    needed = {file for key, file in names.items() if not key.startswith(prefix)}
    idle = set(names.values()) - needed
    assert len(idle) >= 3
    wanted = load_span(configured(folder), Span.suffix(3, DEPTH), None, CPU).state_dict()
    for name in idle:
        (folder / name).unlink()
    found = load_span(configured(folder), Span.suffix(3, DEPTH), None, CPU).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    with pytest.raises(UserError, match="is not there"):
        load_span(configured(folder), Span.suffix(0, DEPTH), None, CPU)


def test_only_the_span_s_tensors_are_read(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = CheckpointFiles.read_flat
    monkeypatch.setattr(
        CheckpointFiles, "read_flat", lambda files, key, *span: seen.append(key) or read(files, key, *span)
    )
    load_span(configured(tiny_model), Span(1, 3, embedding=False, head=False), None, CPU)
    assert len(seen) == len(set(seen))
    files = CheckpointFiles(configured(tiny_model))
    layers = {*files.under("model.layers.1."), *files.under("model.layers.2.")}
    assert set(seen) == {*layers, "model.norm.weight"}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "model.layers.2.input_layernorm.weight",
            "1 tensors are missing: model.layers.2.input_layernorm.weight",
        ),
        ("model.layers.3.mlp.gate.weight", "1 tensors are missing: model.layers.3.mlp.gate.weight"),
        ("model.norm.weight", "missing: model.norm.weight"),
        ("lm_head.weight", "missing: lm_head.weight"),
        ("model.layers.3.mlp.experts.5.up_proj.weight", "model.layers.3.*8 of .*7 of"),
        ("model.layers.3.mlp.experts.5.down_proj.weight", "model.layers.3.*has 7 experts, .* 8"),
    ],
)
def test_missing_tensors_are_refused(tiny_model: Path, key: str, message: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors[key]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message) as caught:
        load_span(configured(folder), Span.suffix(2, DEPTH), None, CPU)
    assert caught.value.fix
    if "layers" in key:
        load_span(configured(folder), Span(1, 2, embedding=False, head=False), None, CPU)


def test_weights_of_another_shape_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(3, 5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"q_proj.weight has shape \(3, 5\), the config says \(32, 32\)"):
        load_span(configured(folder), Span.suffix(0, DEPTH), None, CPU)


def test_damaged_files_are_refused(tiny_olmoe: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_olmoe, tmp_path / "model")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-100], content[:50], b"", b"\xff" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="no readable safetensors file"):
            load_span(configured(folder), Span.suffix(0, DEPTH), None, CPU)
    weights.unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        CheckpointFiles(configured(folder))


def test_a_model_that_is_nowhere_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"model\.path"):
        CheckpointFiles(configured(Path("nobody/nothing")))


def test_a_tied_head_with_a_bias_is_refused_for_what_it_is(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "phimoe")
    skeleton(configured(folder))
    config = json.loads((folder / "config.json").read_text())
    assert config["lm_head_bias"] is True
    config["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"shares its weight with the embedding .* has a bias of its own"):
        skeleton(configured(folder))
    config["lm_head_bias"] = False
    (folder / "config.json").write_text(json.dumps(config))
    skeleton(configured(folder))


def test_too_little_memory_is_a_fault_of_the_environment(
    tiny_olmoe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(files: CheckpointFiles, key: str, start: int, stop: int) -> torch.Tensor:
        return torch.empty(1 << 55, dtype=torch.uint8)

    monkeypatch.setattr(CheckpointFiles, "read_flat", full)
    with pytest.raises(EnvironmentFault, match="not enough memory"):
        load_span(configured(tiny_olmoe), Span.suffix(3, DEPTH), None, CPU)


def test_files_read_as_the_library_reads_them(tiny_model: Path, tmp_path: Path) -> None:
    files = CheckpointFiles(configured(tiny_model))
    stored = load_file(tiny_model / "model.safetensors")
    assert set(files.keys) == set(stored)
    for key, tensor in stored.items():
        assert torch.equal(files.read(key), tensor)
        part = files.read_flat(key, 3, 8)
        assert torch.equal(part, tensor.reshape(-1)[3:8]) and part.untyped_storage().nbytes() == part.nbytes
    layer = "model.layers.1."
    wanted = sum(tensor.nbytes for key, tensor in stored.items() if key.startswith(layer))
    assert sum(files.place(key).size for key in files.under(layer)) == wanted
    odd = {
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.randn(3).half(),
        "numbers": torch.arange(5),
    }
    save_file(odd, tmp_path / "model.safetensors")
    files = CheckpointFiles(configured(tmp_path))
    for key, tensor in odd.items():
        found = files.read(key)
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)


@pytest.mark.parametrize("piece_bytes", [1, 20_000, 1 << 30])
def test_experts_are_fused_alike_in_pieces_of_any_size(
    tiny_model: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roma_ds.checkpoint.conversion.PIECE_BYTES", piece_bytes)
    sizes = []
    applied = Conversion._applied

    def counted(*arguments: Any) -> Any:
        sizes.append(max(len(keys) for keys in arguments[3].values()))
        return applied(*arguments)

    monkeypatch.setattr(Conversion, "_applied", counted)
    monkeypatch.setattr(Conversion, "problem", lambda *arguments: None)
    assert_equal_to_whole(tiny_model, Span.suffix(3, DEPTH))
    assert max(sizes) == {1: 1, 1 << 30: 8}.get(piece_bytes, max(sizes))
    assert len(sizes) >= 2


def test_large_networks_show_their_progress(
    tiny_olmoe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_span(configured(tiny_olmoe), Span.suffix(0, DEPTH), None, CPU)
    assert "load:" not in capsys.readouterr().err
    monkeypatch.setattr("roma_ds.checkpoint.span.SHOWN_BYTES", 1)
    monkeypatch.setattr("roma_ds.checkpoint.span.MB", 1000)
    load_span(configured(tiny_olmoe), Span.suffix(0, DEPTH), None, CPU)
    done, total = re.search(r"load: (\d+)/(\d+) MB", capsys.readouterr().err).groups()  # type: ignore[union-attr]
    assert int(total) - 6 <= int(done) <= int(total) and int(total) > 400


def test_parameters_are_counted_without_weights(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stock_network(configured(tiny_model))
    monkeypatch.setattr(CheckpointFiles, "read_flat", None)
    assert total_parameters(configured(tiny_model)) == sum(p.numel() for p in whole.parameters())
    assert all(tensor.is_meta for tensor in skeleton(configured(tiny_model)).parameters())
    assert detect(skeleton(configured(tiny_model))) == detect(whole)
