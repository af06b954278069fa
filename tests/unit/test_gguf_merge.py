"""Routers in a GGUF file: gates alone change, of any other model none is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import EXPERTS, HIDDEN, Tiny, metadata, tensors, tuned
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.export.merge_gguf import merge_gguf
from roma_ds.storage import fingerprint
from roma_ds.training.stage import write_router_file

TINY = Tiny()


def gate(layer: int) -> str:
    return f"blk.{layer}.ffn_gate_inp.weight"


def merged(folder: Path, tiny: Tiny = TINY, **more: Any) -> tuple[Path, Path, Any]:
    base = tiny.write(folder / "model.gguf")
    out = folder / "out" / "tuned.gguf"
    return base, out, merge_gguf(base, tiny.router(folder, **more), out)


def test_gates_alone_change_whatever_the_rest_is_quantised_to(tmp_path: Path) -> None:
    base, out, facts = merged(tmp_path)
    before, after = tensors(base), tensors(out)
    assert before["blk.2.ffn_up_exps.weight"][0] == "Q8_0"
    assert list(before) == list(after)
    assert [name for name in before if before[name] != after[name]] == [gate(2), gate(3)]
    for layer, weight in tuned().items():
        assert after[gate(layer)] == ("F32", (HIDDEN, EXPERTS), weight.numpy().tobytes())
    assert facts["routers"] == 2 and facts["tensors"] == len(before)
    assert (facts["architecture"], facts["kind"], facts["compared"]) == ("olmoe", "F32", None)
    assert facts["files"] == [out] and os.listdir(out.parent) == [out.name]


def test_the_values_section_is_byte_for_byte_that_of_the_base_but_for_gates(tmp_path: Path) -> None:
    base, out, _ = merged(tmp_path)
    old, new = gguf.GGUFReader(base), gguf.GGUFReader(out)
    was = bytearray(base.read_bytes()[old.data_offset :])
    for tensor in old.tensors:
        if tensor.name in (gate(2), gate(3)):
            start = tensor.data_offset - old.data_offset
            was[start : start + tensor.n_bytes] = tuned()[int(tensor.name.split(".")[1])].numpy().tobytes()
    assert out.read_bytes()[new.data_offset :] == bytes(was)
    assert new.data_offset > old.data_offset and new.data_offset % new.alignment == 0


def test_the_metadata_say_where_the_gates_are_from(tmp_path: Path) -> None:
    base, out, _ = merged(tmp_path)
    before, after = metadata(base), metadata(out)
    assert {key: after.pop(key) for key in before} == before, "lists too"
    assert after.pop("roma_ds.version")
    assert after == {
        "roma_ds.base_model": "OWNER/tiny",
        "roma_ds.layers": "2,3",
        "roma_ds.method": "roma",
        "roma_ds.router_sha256": fingerprint.of_file(tmp_path / "router.safetensors"),
    }


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 99),
    blocks=st.integers(2, 6),
    alignment=st.sampled_from([None, 8, 64, 256]),
    kind=st.sampled_from(["F32", "F16", "BF16"]),
    data=st.data(),
)
def test_any_model_merges(
    tmp_path_factory: Any, seed: int, blocks: int, alignment: int | None, kind: str, data: st.DataObject
) -> None:
    layers = st.sets(st.integers(0, blocks - 1), min_size=1)
    sparse = tuple(sorted(data.draw(layers)))
    trained = tuple(sorted(data.draw(st.sets(st.sampled_from(sparse), min_size=1))))
    tiny = Tiny(blocks, sparse, kind, seed, alignment=alignment)
    base, out, facts = merged(tmp_path_factory.mktemp("any"), tiny, layers=trained)
    before, after = tensors(base), tensors(out)
    assert {name for name in before if before[name] != after[name]} == {gate(layer) for layer in trained}
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    for layer, weight in tuned(trained).items():
        stored = torch.frombuffer(bytearray(after[gate(layer)][2]), dtype=dtype)
        assert torch.equal(stored, weight.to(dtype).flatten())
    assert facts["compared"] is None and facts["kind"] == kind


@pytest.mark.parametrize("empty_first", [False, True])
@pytest.mark.parametrize("named", [0, 1])
def test_a_split_model_is_merged_part_by_part(tmp_path: Path, empty_first: bool, named: int) -> None:
    split = {"split_max_tensors": 5, "small_first_shard": empty_first}
    TINY.write(tmp_path / "model.gguf", **split)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    count = len(parts)
    assert count > 2
    facts = merge_gguf(parts[named], TINY.router(tmp_path), tmp_path / "out" / "tuned.gguf")
    names = [path.name for path in facts["files"]]
    assert names == [f"tuned-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    assert sorted(os.listdir(tmp_path / "out")) == names
    changed = []
    for number, (old, new) in enumerate(zip(parts, facts["files"], strict=True)):
        before, after = tensors(old), tensors(new)
        changed += [name for name in before if before[name] != after[name]]
        assert ("roma_ds.layers" in metadata(new)) == (number == 0)
        touched = {gate(2), gate(3)} & before.keys()
        assert (old.read_bytes() == new.read_bytes()) == (number > 0 and not touched)
    assert sorted(changed) == [gate(2), gate(3)]
    again = tmp_path / "again" / f"tuned-00001-of-{count:05d}.gguf"
    assert [
        path.name for path in merge_gguf(parts[0], tmp_path / "router.safetensors", again)["files"]
    ] == names


def refused(base: Path, router: Path, out: Path, message: str, **more: Any) -> None:
    """A UserError with a fix; nothing is written."""
    there = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        merge_gguf(base, router, out, **more)
    assert caught.value.fix
    assert sorted(out.parent.rglob("*")) == there


OTHER_MODELS = {
    "other gates": (Tiny(seed=1), "has other gates in layers 2-3 than the base"),
    "a dense layer more": (Tiny(5, (1, 2, 3)), "has 5 layers, the base of the router file 4"),
    "a sparse layer more": (Tiny(4, (0, 1, 2, 3)), r"has routers in layers 0-3, the base .* in layers 1-3"),
    "too few layers": (Tiny(3, (1, 2)), r"the router file has layer 3, .* has routers in layers 1-2"),
    "no routers": (Tiny(4, ()), "has no router: no tensor is named blk.N.ffn_gate_inp.weight"),
    "a quantised gate": (Tiny(kind="Q8_0"), "blk.2.ffn_gate_inp.weight of .* is quantised, as Q8_0"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_another_model_is_refused(tmp_path: Path, name: str) -> None:
    other, message = OTHER_MODELS[name]
    base = other.write(tmp_path / "model.gguf")
    router = TINY.router(tmp_path)
    refused(base, router, tmp_path / "tuned.gguf", message)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    base = TINY.write(tmp_path / "model.gguf")
    router = tmp_path / "router.safetensors"
    write_router_file(router, tuned((2,), (EXPERTS, 16)), {2: "model.layers.2.mlp.gate.weight"}, {})
    refused(base, router, tmp_path / "tuned.gguf", r"has shape \(8, 32\) in .*, \(8, 16\) in the router file")


def test_without_a_digest_shapes_and_layers_alone_are_compared_and_that_is_said(tmp_path: Path) -> None:
    base = Tiny(seed=1).write(tmp_path / "model.gguf")
    facts = merge_gguf(base, TINY.router(tmp_path, digests=False), tmp_path / "tuned.gguf")
    assert facts["compared"] == "the router file was written without a digest of its base's gates"


def test_metadata_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    base = TINY.write(tmp_path / "model.gguf")
    facts = {"base_layers": "many", "moe_layers": "1,,x", "base_model": ""}
    write_router_file(tmp_path / "r.safetensors", tuned((2,)), {2: "model.layers.2.mlp.gate.weight"}, facts)
    assert merge_gguf(base, tmp_path / "r.safetensors", tmp_path / "tuned.gguf")["routers"] == 1


def test_blocks_that_predict_further_tokens_are_no_layers(tmp_path: Path) -> None:
    """They have a router too, behind those of the network."""
    trained = Tiny(4, (1, 2, 3))
    stored = Tiny(5, (1, 2, 3, 4), more={"olmoe.nextn_predict_layers": 1})
    base = stored.write(tmp_path / "model.gguf")
    assert merge_gguf(base, trained.router(tmp_path), tmp_path / "tuned.gguf")["compared"] is None


def test_a_merged_file_is_not_merged_again(tmp_path: Path) -> None:
    _, out, _ = merged(tmp_path)
    refused(out, tmp_path / "router.safetensors", tmp_path / "again.gguf", "has merged routers already")


def test_a_type_that_rounds_is_refused_where_float32_is_asked_for(tmp_path: Path) -> None:
    base = Tiny(kind="BF16").write(tmp_path / "model.gguf")
    refused(base, TINY.router(tmp_path), tmp_path / "t.gguf", "stored in BF16, in which", exact=True)
    base = TINY.write(tmp_path / "float32.gguf")
    assert merge_gguf(base, TINY.router(tmp_path), tmp_path / "t.gguf", exact=True)["kind"] == "F32"


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = Tiny(kind="F16").write(tmp_path / "model.gguf")
    router = tmp_path / "router.safetensors"
    write_router_file(router, {2: tuned()[2] * 1e6}, {2: "model.layers.2.mlp.gate.weight"}, {})
    refused(base, router, tmp_path / "tuned.gguf", "layer 2 is stored in F16, and has a value too large")


def test_the_byte_order_of_other_machines_is_refused_by_name(tmp_path: Path) -> None:
    base = TINY.write(tmp_path / "model.gguf", gguf.GGUFEndian.BIG)
    refused(base, TINY.router(tmp_path), tmp_path / "tuned.gguf", "model.gguf is big-endian")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.3, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path: Path, share: float) -> None:
    base = TINY.write(tmp_path / "model.gguf")
    content = base.read_bytes()
    base.write_bytes(content[: int(len(content) * share)])
    refused(base, TINY.router(tmp_path), tmp_path / "t.gguf", "is no GGUF file|cannot be read as GGUF")


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_changed_header_never_ends_in_a_traceback(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Merged or refused by a message: nothing else."""
    folder = tmp_path_factory.mktemp("changed")
    base = TINY.write(folder / "model.gguf")
    content = bytearray(base.read_bytes())
    header = gguf.GGUFReader(base).data_offset
    place = data.draw(st.integers(0, header - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    base.write_bytes(content)
    try:
        merge_gguf(base, TINY.router(folder), folder / "tuned.gguf")
    except UserError as error:
        assert error.fix
        assert not (folder / "tuned.gguf").exists()
    assert not list(folder.glob(".*"))


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    router = TINY.router(tmp_path)
    refused(tmp_path / "text.gguf", router, tmp_path / "t.gguf", "is no GGUF file")
    refused(tmp_path / "absent.gguf", router, tmp_path / "t.gguf", "cannot be read: No such file")
    refused(router, router, tmp_path / "t.gguf", "is no GGUF file")


def test_outputs_that_are_there_are_left_alone(tmp_path: Path) -> None:
    base = TINY.write(tmp_path / "model.gguf")
    router = TINY.router(tmp_path)
    refused(base, router, base, "model.gguf exists")
    refused(base, router, tmp_path / "folder", "does not end in .gguf")
    TINY.write(tmp_path / "split.gguf", split_max_tensors=5)
    first = min(tmp_path.glob("split-*.gguf"))
    last = max(tmp_path.glob("split-*.gguf")).name.replace("split", "tuned")
    (tmp_path / last).write_text("mine")
    refused(first, router, tmp_path / "tuned.gguf", f"{last} exists")
    assert (tmp_path / last).read_text() == "mine"


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    TINY.write(tmp_path / "split.gguf", split_max_tensors=5)
    router = TINY.router(tmp_path)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    third = parts[2].read_bytes()
    parts[2].unlink()
    refused(parts[0], router, tmp_path / "t.gguf", f"{parts[2].name}, a part of .*, is not there")
    parts[2].write_bytes(parts[1].read_bytes())
    refused(parts[0], router, tmp_path / "t.gguf", r"says that it is part 1 of \d+, not 2 of")
    parts[2].write_bytes(third)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(parts[0].read_bytes())
    refused(alone, router, tmp_path / "t.gguf", r"is one of \d+ parts, and is not named so")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a split model the second part does not fit."""
    TINY.write(tmp_path / "model.gguf", split_max_tensors=5)
    router = TINY.router(tmp_path)
    synced = []

    def full(number: int) -> None:
        synced.append(number)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("roma_ds.export.gguf_copy.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        merge_gguf(min(tmp_path.glob("model-*.gguf")), router, tmp_path / "out" / "tuned.gguf")
    assert os.listdir(tmp_path / "out") == []


def test_names_that_cannot_all_be_taken_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TINY.write(tmp_path / "model.gguf", split_max_tensors=5)
    router = TINY.router(tmp_path)
    moves: list[str] = []

    def move(source: Path, target: Path) -> None:
        if moves:
            raise OSError(5, "Input/output error")
        moves.append(target.name)
        source.rename(target)

    monkeypatch.setattr("roma_ds.export.merge_gguf.os.replace", move)
    with pytest.raises(OSError, match="Input/output"):
        merge_gguf(min(tmp_path.glob("model-*.gguf")), router, tmp_path / "out" / "tuned.gguf")
    assert "00001-of" not in moves[0], "the part that llama.cpp is given comes last"
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("place", ["gate", "expert", "metadata"])
def test_what_reads_back_changed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As a disk does that loses a bit."""
    from roma_ds.export import merge_gguf as module

    base = TINY.write(tmp_path / "model.gguf")
    name = {"gate": gate(3), "expert": "blk.1.ffn_up_exps.weight"}.get(place)
    right = module.write_copy

    def wrong(source: Any, target: Path, *more: Any) -> None:
        right(source, target, *more)
        reader = gguf.GGUFReader(target)
        found = [tensor.data_offset + 5 for tensor in reader.tensors if tensor.name == name]
        content = bytearray(target.read_bytes())
        content[found[0] if found else content.index(b"w17")] ^= 1
        target.write_bytes(content)

    monkeypatch.setattr(module, "write_copy", wrong)
    message = {"gate": gate(3), "expert": "a tensor within bytes", "metadata": "its header"}[place]
    refused(base, TINY.router(tmp_path), tmp_path / "tuned.gguf", f"{message}.* differs after writing")


def test_no_more_than_a_piece_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roma_ds.export.gguf_copy.PIECE_BYTES", 100)
    base, out, _ = merged(tmp_path)
    assert tensors(out)["blk.1.ffn_up_exps.weight"] == tensors(base)["blk.1.ffn_up_exps.weight"]


def test_a_missing_package_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = TINY.write(tmp_path / "model.gguf")
    router = TINY.router(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(EnvironmentFault, match="needs the package gguf") as caught:
        merge_gguf(base, router, tmp_path / "tuned.gguf")
    assert caught.value.fix == "pip install 'roma_ds[gguf]'" and caught.value.exit_code == 3


def test_the_experts_of_the_merged_file_decode_as_before(tmp_path: Path) -> None:
    base, out, _ = merged(tmp_path)
    name = "blk.3.ffn_up_exps.weight"
    values = [
        gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for path in (base, out)
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name == name
    ]
    assert values[0].shape == (EXPERTS, 64, HIDDEN) and np.array_equal(*values)
