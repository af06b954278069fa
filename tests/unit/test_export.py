from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import model_config
from transformers import AutoModelForCausalLM

from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.errors import UserError
from roma_ds.export.merge import merge
from roma_ds.export.shard import Shard, open_shard, rewrite
from roma_ds.frozen_pass.frozen_model import FrozenModel
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Encoded
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.training.stage import write_router_file

ALONE = World(Ranks(), torch.device("cpu"))
IDS = torch.tensor([[5, 6, 7, 8, 9]])
LAYERS = (2, 3)


def key(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate.weight"


def tuned(shape: tuple[int, int] = (8, 32)) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {layer: torch.randn(shape, generator=generator) for layer in LAYERS}


def router_file(folder: Path, weights: dict[int, torch.Tensor] | None = None) -> Path:
    path = folder / "router.safetensors"
    weights = weights or tuned()
    write_router_file(
        path, weights, {layer: key(layer) for layer in weights}, {"method": "roma", "layers": "2,3"}
    )
    return path


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("sharded") / "base", shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.fixture(params=["tiny_olmoe", "tiny_qwen3", "sharded"])
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


@torch.no_grad()
def stock_logits(folder: Path) -> torch.Tensor:
    found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits
    return found


def frozen_model(folder: Path, dtype: str = "float32") -> FrozenModel:
    return FrozenModel(ALONE, model_config(folder, dtype), {"zero_optimization": {"stage": 0}})


def packed_logits(routed: RoutedLM) -> torch.Tensor:
    """At every position of IDS: [sequences * tokens, vocabulary]."""
    rows = [tuple(ids) for ids in IDS.tolist()]
    batch = collate([Encoded(row, ids[:1], (*ids[1:], 0)) for row, ids in enumerate(rows)], "last1")
    logits: torch.Tensor = routed(**batch.inputs(IDS.device)).logits
    return logits


def test_stock_transformers_gives_what_the_tuned_model_gives(base: Path, tmp_path: Path) -> None:
    before = content(base)
    out = tmp_path / "merged"
    facts = merge(base, router_file(tmp_path), out)
    frozen = frozen_model(base)
    frozen.use_routers(tuned())
    with torch.no_grad():
        wanted = packed_logits(frozen.routed)
        merged = packed_logits(frozen_model(out).routed)
    assert torch.equal(merged, wanted)
    torch.testing.assert_close(stock_logits(out).flatten(0, 1), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(stock_logits(base).flatten(0, 1), wanted, rtol=0, atol=1e-3)
    assert content(base) == before, "the base is as it was"
    assert facts["routers"] == 2
    assert facts["tensors"] == len(tensors(base))


def test_every_other_tensor_and_file_is_that_of_the_base(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(base, router_file(tmp_path), out)
    old, new = tensors(base), tensors(out)
    assert old.keys() == new.keys()
    for name, value in new.items():
        wanted = tuned()[int(name.split(".")[2])] if name in (key(2), key(3)) else old[name]
        assert torch.equal(value, wanted), name
        assert value.dtype == wanted.dtype
    assert sorted(os.listdir(out)) == sorted(os.listdir(base))
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            assert (out / path.name).read_bytes() == path.read_bytes()


def test_only_shards_with_a_router_are_written_anew(sharded: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    facts = merge(sharded, router_file(tmp_path), out)
    placement = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    touched = {placement[key(layer)] for layer in LAYERS}
    assert facts["shards_rewritten"] == len(touched)
    assert touched < set(placement.values())
    for shard in set(placement.values()):
        linked = os.path.samefile(sharded / shard, out / shard)
        assert linked == (shard not in touched), shard
        with safe_open(out / shard, framework="pt") as file:
            assert (file.metadata() or {}).get("format") == "pt"


def test_where_no_link_can_be_made_shards_are_copied(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    merge(sharded, router_file(tmp_path), tmp_path / "merged")
    assert tensors(tmp_path / "merged").keys() == tensors(sharded).keys()
    for path in sharded.iterdir():
        assert not os.path.samefile(path, tmp_path / "merged" / path.name)


def test_a_checkpoint_of_links_is_merged_and_the_links_are_followed(tiny_olmoe: Path, tmp_path: Path) -> None:
    """The layout of a hub cache: names in a snapshot point to blobs."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in tiny_olmoe.iterdir():
        (snapshot / path.name).symlink_to(path)
    merge(snapshot, router_file(tmp_path), tmp_path / "merged")
    assert not any(path.is_symlink() for path in (tmp_path / "merged").iterdir())
    assert torch.equal(tensors(tmp_path / "merged")[key(2)], tuned()[2])


def test_routers_of_a_bfloat16_base_keep_their_small_updates(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", dtype="bfloat16")
    weights = {2: load_file(base / "model.safetensors")[key(2)].float() * (1 + 2**-12)}
    merge(base, router_file(tmp_path, weights), tmp_path / "merged")
    found = tensors(tmp_path / "merged")
    assert torch.equal(found[key(2)], weights[2])
    assert found[key(1)].dtype == torch.bfloat16
    frozen = frozen_model(base, "bfloat16")
    frozen.use_routers(weights)
    with torch.no_grad():
        merged = packed_logits(frozen_model(tmp_path / "merged", "bfloat16").routed)
        assert torch.equal(merged, packed_logits(frozen.routed))


def test_of_both_layouts_the_one_that_transformers_loads_is_merged(tiny_olmoe: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_olmoe, base)
    single = base / "model.safetensors"
    shutil.copy(single, base / "model-00001-of-00001.safetensors")
    placement = dict.fromkeys(load_file(single), "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placement}))
    merge(base, router_file(tmp_path), tmp_path / "merged")
    assert not torch.equal(stock_logits(tmp_path / "merged"), stock_logits(base))


def refused(base: Path, router: Path, out: Path, message: str) -> None:
    """A UserError with a fix, and nothing beside what was there."""
    there = sorted(os.listdir(out.parent))
    inside = content(out) if out.is_dir() else None
    with pytest.raises(UserError, match=message) as caught:
        merge(base, router, out)
    assert caught.value.fix
    assert sorted(os.listdir(out.parent)) == there
    assert (content(out) if out.is_dir() else None) == inside


def test_what_is_no_router_is_refused(base: Path, tmp_path: Path) -> None:
    other = "model.layers.2.self_attn.q_proj.weight"
    write_router_file(tmp_path / "router.safetensors", {2: torch.zeros(32, 32)}, {2: other}, {})
    refused(base, tmp_path / "router.safetensors", tmp_path / "out", f"{other}, which is no router of")


def test_a_router_given_twice_is_refused(base: Path, tmp_path: Path) -> None:
    path = router_file(tmp_path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    entry = json.dumps({key(2): json.loads(header)[key(2)]})[1:-1].encode()
    header = b"{" + entry + b"," + header[1:]
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    refused(base, path, tmp_path / "out", f"the key '{key(2)}' is given twice")


def test_values_that_are_no_finite_numbers_are_refused(base: Path, tmp_path: Path) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        weights = tuned()
        weights[3][0, 0] = value
        refused(
            base, router_file(tmp_path, weights), tmp_path / "out", r"layers\.3\..* holds NaN or infinity"
        )
    weights = {2: torch.ones(8, 32, dtype=torch.int32)}
    refused(base, router_file(tmp_path, weights), tmp_path / "out", "has the type torch.int32, no weight")


def test_an_unknown_key_is_refused(base: Path, tmp_path: Path) -> None:
    router = router_file(tmp_path, {2: tuned()[2], 9: tuned()[3]})
    refused(base, router, tmp_path / "out", r"model\.layers\.9\.mlp\.gate\.weight, which .* does not have")


def test_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    refused(
        base,
        router_file(tmp_path, tuned((8, 31))),
        tmp_path / "out",
        r"has shape \(8, 32\) in .*, \(8, 31\) in",
    )


def test_a_missing_shard_is_refused(sharded: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(sharded, base)
    shard = sorted(base.glob("*.safetensors"))[0]
    shard.unlink()
    refused(base, router_file(tmp_path), tmp_path / "out", f"has no {shard.name}")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("which", ["with a router", "without"])
def test_a_cut_shard_is_refused(sharded: Path, tmp_path: Path, share: float, which: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(sharded, base)
    placement = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    name = placement[key(2)] if which == "with a router" else placement["model.embed_tokens.weight"]
    whole = (base / name).read_bytes()
    (base / name).write_bytes(whole[: int(len(whole) * share)])
    refused(base, router_file(tmp_path), tmp_path / "out", name)


def test_an_index_that_is_no_index_is_refused(sharded: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(sharded, base)
    for text in ("{", "{}", "[]"):
        (base / "model.safetensors.index.json").write_text(text)
        refused(base, router_file(tmp_path), tmp_path / "out", r"model\.safetensors\.index\.json")


def test_an_existing_output_is_refused_and_an_empty_folder_is_used(tiny_olmoe: Path, tmp_path: Path) -> None:
    router = router_file(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    refused(tiny_olmoe, router, out, "exists and is not empty")
    (out / "precious.txt").unlink()
    merge(tiny_olmoe, router, out)
    assert (out / "model.safetensors").exists()


def test_an_output_that_is_a_file_is_refused(tiny_olmoe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    refused(tiny_olmoe, router_file(tmp_path), tmp_path / "out", "exists")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["absent", "router.safetensors", "empty"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    router = router_file(tmp_path)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / name, router, tmp_path / "out", name)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_cut_router_file_is_refused(tiny_olmoe: Path, tmp_path: Path, share: float) -> None:
    router = router_file(tmp_path)
    whole = router.read_bytes()
    router.write_bytes(whole[: int(len(whole) * share)])
    refused(tiny_olmoe, router, tmp_path / "out", "cannot be read as a router file")


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_an_absent_router_file_is_refused(tiny_olmoe: Path, tmp_path: Path, name: str) -> None:
    refused(tiny_olmoe, tmp_path / name, tmp_path / "out", "cannot be read as a router file")


def test_a_router_file_without_routers_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "router.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="holds no router"):
        read_router_file(tmp_path / "router.safetensors")


def test_a_failure_in_the_middle_leaves_nothing(
    tiny_olmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = router_file(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roma_ds.export.merge.rewrite", full)
    with pytest.raises(OSError, match="No space"):
        merge(tiny_olmoe, router, tmp_path / "out")
    assert os.listdir(tmp_path) == ["router.safetensors"]


def test_a_written_router_that_reads_back_changed_is_noticed(
    tiny_olmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = router_file(tmp_path)

    def spoil(shard: Shard, target: Path, replaced: Any, gone: Any) -> None:
        rewrite(shard, target, replaced, gone)
        values = load_file(target)
        save_file({**values, "lm_head.weight": values["lm_head.weight"] + 1e-3}, target)

    monkeypatch.setattr("roma_ds.export.merge.rewrite", spoil)
    refused(tiny_olmoe, router, tmp_path / "out", r"lm_head\.weight differs after writing")


def test_a_rewritten_file_is_what_safetensors_reads_whatever_types_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roma_ds.export.shard.PIECE_BYTES", 7)
    values = {
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, 5).bfloat16(),
        "router": torch.randn(3, 3).bfloat16(),
        "long": torch.arange(3),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.5),
    }
    save_file(values, tmp_path / "old.safetensors", metadata={"format": "pt", "other": "kept"})
    router = torch.randn(3, 3)
    rewrite(open_shard(tmp_path / "old.safetensors"), tmp_path / "new.safetensors", {"router": router})
    found = load_file(tmp_path / "new.safetensors")
    assert found.keys() == values.keys()
    for name, wanted in {**values, "router": router}.items():
        assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted), name
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "other": "kept"}


def test_a_shard_is_never_in_memory_whole(tmp_path: Path) -> None:
    size = 2**28
    save_file({"a": torch.zeros(size, dtype=torch.uint8), "b": torch.zeros(2)}, tmp_path / "old")
    line = (
        "import resource, sys, torch; from pathlib import Path; from roma_ds.export import shard; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; folder = Path(sys.argv[1]); "
        "old, weight = shard.open_shard(folder / 'old'), {'b': torch.ones(2)}; "
        "shard.rewrite(old, folder / 'new', weight); "
        "assert shard.differing(old, shard.open_shard(folder / 'new'), weight) is None; "
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", line, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < size / 8


def test_a_router_file_round_trip(tmp_path: Path) -> None:
    weights = tuned()
    transposed = {2: weights[2], 3: weights[3].T.contiguous().T}
    file = read_router_file(router_file(tmp_path, transposed))
    assert file.by_layer().keys() == {2, 3}
    assert all(torch.equal(file.by_layer()[layer], weights[layer]) for layer in LAYERS)
    assert all(weight.dtype == torch.float32 for weight in file.weights.values())
    assert file.metadata == {"format": "pt", "method": "roma", "layers": "2,3"}
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "router.safetensors")
    with pytest.raises(UserError, match="names no layer"):
        read_router_file(tmp_path / "router.safetensors").by_layer()
