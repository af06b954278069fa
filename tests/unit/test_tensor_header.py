"""Headers of safetensors files: every change that would give other tensors is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from roma_ds.storage.tensor_header import Place, read_header

REFUSED = (OSError, ValueError)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {
        "a.weight": torch.randn(8, 3),
        "a.bias": torch.zeros(8, dtype=torch.bfloat16),
        "b.weight": torch.arange(6).reshape(3, 2),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def described(places: dict[str, Place]) -> list[Any]:
    return sorted((place.start, place.size, place.shape, place.dtype) for place in places.values())


def test_no_flipped_bit_of_a_header_gives_other_tensors(file: Path) -> None:
    content = file.read_bytes()
    _, places = read_header(file)
    length = 8 + int.from_bytes(content[:8], "little")
    passed = 0
    for bit in range(8 * length):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            _, found = read_header(file)
        except REFUSED:
            continue
        # Names and metadata are all that may differ; a changed name is missed when the network is filled.
        assert described(found) == described(places), bit
        assert len(found) == len(places)
        passed += 1
    assert 0 < passed < 8 * length / 2


@pytest.mark.parametrize("cut", [1, 16, 100])
def test_a_cut_or_longer_file_is_refused(file: Path, cut: int) -> None:
    content = file.read_bytes()
    for changed in (content[:-cut], content + bytes(cut)):
        file.write_bytes(changed)
        with pytest.raises(REFUSED):
            read_header(file)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]},
        {"dtype": "F99", "shape": [6], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [6.0], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [6], "data_offsets": [4, 28]},
        {"dtype": "F32", "shape": [6], "data_offsets": [24, 0]},
        {"dtype": "F32", "shape": [6], "data_offsets": [0.0, 24.0]},
        {"dtype": "F32", "shape": [6], "data_offsets": ["0", "24"]},
        {"dtype": "F32", "shape": [6], "data_offsets": [0, 24, 24]},
        {"dtype": "F32", "shape": [6], "data_offsets": None},
        {"dtype": "F32", "shape": "6", "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 24]},
        {"dtype": ["F32"], "shape": [6], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [6]},
        [],
        None,
        3,
    ],
    ids=str,
)
def test_entries_that_cannot_be(entry: Any, tmp_path: Path) -> None:
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    with pytest.raises(REFUSED):
        read_header(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "x": {}}',
        b'{"__metadata__": "text"}',
        b'{"__metadata__": []}',
        b'{"__metadata__": {"step": 3}}',
        b"[" * 100_000,
        b'{"x": ' + b"7" * 5000 + b"}",
        "{}".encode("utf-16"),
        b"[]",
        b"null",
    ],
    ids=lambda header: str(header[:30]),
)
def test_headers_that_cannot_be(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(REFUSED):
        read_header(path)
