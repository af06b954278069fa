"""Checkpoints that are damaged or do not belong to their config: named, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.projects import Finished, Project, contents, roma_ds_here
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
GATE = "model.layers.2.mlp.gate.weight"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def shard_of(model: Path, key: str = GATE) -> Path:
    return model / json.loads((model / INDEX).read_text())["weight_map"][key]


def keep_times(path: Path, content: bytes) -> None:
    """Write as a failing disk does: neither size nor time changes."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flipped(content: bytes, byte: int) -> bytes:
    return content[:byte] + bytes([content[byte] ^ 4]) + content[byte + 1 :]


def leave_out(model: Path, key: str) -> None:
    """The tensor is neither in the index nor in its file."""
    path = shard_of(model, key)
    tensors = load_file(path)
    del tensors[key]
    save_file(tensors, path, metadata={"format": "pt"})
    index = json.loads((model / INDEX).read_text())
    del index["weight_map"][key]
    (model / INDEX).write_text(json.dumps(index))


def flip_in_header(model: Path) -> None:
    path = shard_of(model)
    content = path.read_bytes()
    keep_times(path, flipped(content, content.index(b"data_offsets") + len(b'data_offsets":[')))


def flip_in_gate(model: Path) -> None:
    from roma_ds.storage.tensor_header import read_header

    path = shard_of(model)
    keep_times(path, flipped(path.read_bytes(), read_header(path)[1][GATE].start + 5))


def say_more_experts(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_experts": 16}))


def cut(model: Path) -> None:
    path = shard_of(model)
    path.write_bytes(path.read_bytes()[:-40])


@dataclass(frozen=True)
class Fault:
    """What happens to a checkpoint, and what a run and a merge with it must say; nothing where they work."""

    name: str
    damage: Callable[[Path], object]
    run: tuple[str, ...]
    merge: tuple[str, ...]


NO_HEADER = ("model-0", "no readable safetensors file")
FAULTS = (
    Fault("sound", lambda model: None, (), ()),
    Fault("no router", lambda m: leave_out(m, GATE), (f"missing: {GATE}",), (GATE, "does not have")),
    Fault("no expert", lambda m: leave_out(m, EXPERT), ("layers.1.mlp.experts.gate_up_proj", "7 of"), ()),
    Fault("more experts in the config", say_more_experts, ("shape (8, 32), the config says (16, 32)",), ()),
    Fault("cut", cut, NO_HEADER, ("model-0", "cannot be read")),
    Fault("bit in a header", flip_in_header, NO_HEADER, ("model-0", "cannot be read")),
    Fault("bit in a gate", flip_in_gate, (GATE, "other values than when routing was collected"), ()),
    Fault("absent", lambda m: shard_of(m).unlink(), ("model-0", "is not there"), ("has no model-0",)),
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(
    indexed: Project, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Finished, Finished]]:
    """By fault: how a run up to the neighbours ended, and a merge; both leave everything as it was."""
    folder = tmp_path_factory.mktemp("faults")
    project = indexed.copied(folder / "out")
    router = folder / "router.safetensors"
    model = indexed.folder / "model"
    save_file({GATE: load_file(shard_of(model))[GATE] * 2}, router, metadata={"format": "pt"})
    lines, copies = [], []
    for number, fault in enumerate(FAULTS):
        copy = folder / f"model-{number}"
        shutil.copytree(model, copy)
        fault.damage(copy)
        copies.append(copy)
        lines.append(project.arguments("index", f"model.path={copy}", ranks=1))
        lines.append(["merge", str(copy), str(router), "--out", str(folder / f"merged-{number}")])
    before = contents(project.out), [contents(copy) for copy in copies]
    done = [roma_ds_here(line) for line in lines]
    assert before == (contents(project.out), [contents(copy) for copy in copies])
    merged = sorted(path.name for path in folder.glob("merged-*"))
    assert merged == [f"merged-{number}" for number, fault in enumerate(FAULTS) if not fault.merge]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return {fault.name: (done[2 * number], done[2 * number + 1]) for number, fault in enumerate(FAULTS)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_are_named(fault: Fault, outcomes: dict[str, tuple[Finished, Finished]]) -> None:
    for done, says in zip(outcomes[fault.name], (fault.run, fault.merge), strict=True):
        if not says:
            assert done.code == 0, done
            continue
        assert done.code == 2, done
        assert done.err.count("roma-ds: error") == 1 and "fix: " in done.err, done
        assert "Traceback" not in done.out + done.err, done
        assert all(words in done.err for words in says), done
