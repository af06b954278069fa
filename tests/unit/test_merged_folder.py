"""What a merged folder shares with its base, and what comes along."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import model_config

from roma_ds.checkpoint.blueprint import check_checkpoint
from roma_ds.cli.main import main
from roma_ds.errors import UserError
from roma_ds.export.merge import Merged, merge
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.training.stage import write_router_file

INDEX = "model.safetensors.index.json"
GATE = "model.layers.2.mlp.gate.weight"
TUNED = torch.randn(8, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        tmp_path_factory.mktemp("saved") / "base",
        tie_word_embeddings=True,
        dtype="bfloat16",
        shard_size="40KB",
    )


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "base"))


@pytest.fixture
def router(tmp_path: Path) -> Path:
    write_router_file(
        tmp_path / "router.safetensors", {2: TUNED}, {2: GATE}, {"method": "roma", "layers": "2"}
    )
    return tmp_path / "router.safetensors"


def merged(base: Path, router: Path) -> tuple[Merged, Path]:
    out = base.parent / "out"
    return merge(base, router, out), out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def shared(one: Path, other: Path) -> list[str]:
    names = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    return [str(name) for name in names if os.path.samefile(one / name, other / name)]


def test_only_unchanged_weight_files_are_links_and_it_is_said(
    base: Path, router: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "chat_template.jinja").write_text("{{ messages }}")
    out = base.parent / "out"
    assert main(["merge", str(base), str(router), "--out", str(out)]) == 0
    links = shared(base, out)
    assert links and all(name.endswith(".safetensors") for name in links)
    assert (
        f"{len(links)} unchanged weight files are hard links to those of the base" in capsys.readouterr().out
    )
    for name in ("config.json", "chat_template.jinja", INDEX):
        before = (base / name).read_bytes()
        (out / name).write_text("mine")
        assert (base / name).read_bytes() == before


@pytest.mark.parametrize("layout", ["links", "files", "folder"])
def test_nothing_is_shared_with_a_cache(layout: str, saved: Path, router: Path, tmp_path: Path) -> None:
    """A snapshot of names that point to blobs, one of files, and a link to a snapshot."""
    repository = tmp_path / "hub" / "models--owner--name"
    base = repository / "snapshots" / ("0" * 40)
    if layout == "links":
        (repository / "blobs").mkdir(parents=True)
        base.mkdir(parents=True)
        for path in saved.iterdir():
            blob = shutil.copy(path, repository / "blobs" / f"of-{path.name}")
            Path(blob).chmod(0o444)
            (base / path.name).symlink_to(f"../../blobs/of-{path.name}")
    else:
        shutil.copytree(saved, base)
    given = base
    if layout == "folder":
        given = tmp_path / "mine"
        given.symlink_to(base)
    facts = merge(given, router, tmp_path / "out")
    assert not shared(base, tmp_path / "out")
    assert (facts["linked"], facts["copied"] > 0) == (0, True)
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "out").iterdir())
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_link_to_a_file_elsewhere_is_no_file_of_the_base_s_own(base: Path, router: Path) -> None:
    elsewhere = base.parent / "pool"
    elsewhere.mkdir()
    for path in base.glob("*.safetensors"):
        shutil.move(path, elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)
    facts, out = merged(base, router)
    assert facts["linked"] == 0 and not shared(base, out)


def test_subfolders_come_along(base: Path, router: Path) -> None:
    for name in ("additional_chat_templates/tool.jinja", "a/b/c.txt", ".cache/huggingface/x", ".git/config"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    _, out = merged(base, router)
    assert (
        out / "additional_chat_templates/tool.jinja"
    ).read_text() == "additional_chat_templates/tool.jinja"
    assert (out / "a/b/c.txt").exists() and not (out / ".cache").exists() and not (out / ".git").exists()
    assert all(name.endswith(".safetensors") for name in shared(out, base))


def test_the_index_says_how_many_bytes_there_are(base: Path, router: Path) -> None:
    content = json.loads((base / INDEX).read_text())
    head = next(iter(set(content["weight_map"].values())))
    content["weight_map"]["lm_head.weight"] = head
    (base / INDEX).write_text(json.dumps(content))
    _, out = merged(base, router)
    found = json.loads((out / INDEX).read_text())
    held = tensors(out)
    assert found["metadata"]["total_size"] == sum(value.nbytes for value in held.values())
    assert found["metadata"]["total_size"] == content["metadata"]["total_size"] + 2 * TUNED.numel()
    assert found["weight_map"].keys() == held.keys(), "a tied head is in no file"
    check_checkpoint(model_config(out))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "original/model.safetensors", "consolidated.safetensors"]
)
def test_a_second_copy_under_the_same_names_is_changed_too(
    name: str, base: Path, router: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / name).parent.mkdir(exist_ok=True)
    save_file({key: value.half() for key, value in tensors(base).items()}, base / name, {"format": "pt"})
    out = base.parent / "out"
    assert main(["merge", str(base), str(router), "--out", str(out)]) == 0
    if name != "model.safetensors":
        assert f"the second copy of the weights: {name}" in capsys.readouterr().out
    for path in out.rglob("*.safetensors"):
        values = load_file(path)
        assert GATE not in values or torch.equal(values[GATE], TUNED), path


@pytest.mark.parametrize(
    "name",
    ["model-q4.gguf", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "original/consolidated.00.pth",
     "consolidated.00.pt", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "MODEL.GGUF"],
)  # fmt: skip
def test_a_second_copy_in_another_format_is_refused_by_name(name: str, base: Path, router: Path) -> None:
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=name) as caught:
        merged(base, router)
    assert caught.value.fix and sorted(os.listdir(base.parent)) == ["base", "router.safetensors"]


@pytest.mark.parametrize("kind", ["consolidated", "other names", "other values"])
def test_a_second_copy_that_cannot_be_changed_is_refused_by_name(kind: str, base: Path, router: Path) -> None:
    gate = tensors(base)[GATE]
    name, values = {
        "consolidated": ("consolidated-00001-of-00002.safetensors", {"x": torch.ones(1)}),
        "other names": ("other.safetensors", {"layers.2.feed_forward.gate.weight": gate}),
        "other values": ("checkpoint-500/model.safetensors", {GATE: gate + 1}),
    }[kind]
    (base / name).parent.mkdir(exist_ok=True)
    save_file(values, base / name)
    with pytest.raises(UserError, match=name):
        merged(base, router)


def test_files_of_a_training_and_adapters_are_no_weights(base: Path, router: Path) -> None:
    names = ("training_args.bin", "optimizer.pt", "rng_state_0.pth", "scheduler.pt")
    for name in names:
        (base / name).write_bytes(b"x")
    save_file({"lora_A.weight": torch.ones(8, 32)}, base / "adapter_model.safetensors")
    _, out = merged(base, router)
    assert all((out / name).exists() for name in (*names, "adapter_model.safetensors"))


def test_an_output_inside_the_base_is_refused(base: Path, router: Path) -> None:
    with pytest.raises(UserError, match="lies in"):
        merge(base, router, base / "out")


def test_a_link_to_nothing_is_named(base: Path, router: Path) -> None:
    (base / "chat_template.jinja").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"chat_template\.jinja is a link to a file that is not there"):
        merged(base, router)


def test_folders_that_link_to_one_another_are_followed_once(base: Path, router: Path) -> None:
    (base / "again").symlink_to(base)
    _, out = merged(base, router)
    assert not (out / "again" / "again").exists()


@pytest.mark.parametrize("place", ["../base/model.safetensors", "/etc/hostname", 3])
def test_an_index_names_files_of_its_folder(place: object, base: Path, router: Path) -> None:
    content = json.loads((base / INDEX).read_text())
    content["weight_map"][GATE] = place
    (base / INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError, match="weight_map"):
        merged(base, router)


def test_an_index_that_lists_a_tied_head_is_complete(base: Path) -> None:
    content = json.loads((base / INDEX).read_text())
    first = content["weight_map"]["model.embed_tokens.weight"]
    content["weight_map"]["lm_head.weight"] = first
    (base / INDEX).write_text(json.dumps(content))
    assert "lm_head.weight" not in check_checkpoint(model_config(base)).keys
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"lacks lm_head\.weight") as caught:
        check_checkpoint(model_config(base))
    assert "set tie_word_embeddings" in str(caught.value.fix)
