"""Checkpoints of text and vision by their text part: the same logits, and all else stays as it is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import model_config
from transformers import CONFIG_MAPPING

from roma_ds.checkpoint.blueprint import blueprint, check_checkpoint
from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.gate_keys import stored_layout
from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.cli.main import main
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.errors import UserError
from roma_ds.export.merge import merge
from roma_ds.families import detect, family_of, why_untrained
from roma_ds.families.composite import text_part, whole_class, whole_config
from roma_ds.families.library_network import library_class
from roma_ds.frozen_pass.frozen_model import load_part
from roma_ds.testing.tiny_composites import COMPOSITES, composite_config, save_composite
from roma_ds.writing.plain import PlainModel

ALONE = World(Ranks(), torch.device("cpu"))
DEPTH = 4
IDS = torch.randint(3, 150, (2, 17), generator=torch.Generator().manual_seed(1))
TYPES = ("dots3_note", "gemma4", "inkling2", "llama4", "minimax_m3_vl", "mistral3", "qwen3_5_moe")
GATES = {
    "dots3_note": "model.layers.3.mlp.gate.weight",
    "gemma4": "model.language_model.layers.3.router.proj.weight",
    "inkling2": "model.llm.layers.3.mlp.gate.weight",
    "llama4": "language_model.model.layers.3.feed_forward.router.weight",
    "minimax_m3_vl": "language_model.model.layers.3.block_sparse_moe.gate.weight",
    "mistral3": "language_model.model.layers.3.mlp.gate.weight",
    "qwen3_5_moe": "model.language_model.layers.3.mlp.gate.weight",
}
"""Of the last layer, as `save_pretrained` of the whole network writes it."""


@cache
def composite(model_type: str) -> Path:
    """Written once a process; not to be changed."""
    return save_composite(Path(mkdtemp()) / model_type, model_type, DEPTH)


def copy_of(model_type: str, folder: Path, **tensors: torch.Tensor) -> Path:
    """With further tensors beside its own."""
    base = composite(model_type)
    folder.mkdir()
    for path in base.iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).symlink_to(path)
    found = load_file(base / "model.safetensors") | tensors
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@torch.no_grad()
def logits(network: Any) -> torch.Tensor:
    found: torch.Tensor = network(input_ids=IDS, use_cache=False).logits
    return found


def stock_network(folder: Path) -> tuple[Any, Any]:
    """The whole network as the library loads it, and what it says of the tensors."""
    config = load_config(model_config(folder))
    kind = whole_class(whole_config(config))
    assert kind is library_class(config) and kind.__name__.endswith("ForConditionalGeneration")
    network, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return network.eval(), report


@pytest.mark.parametrize("model_type", TYPES)
def test_the_text_part_and_its_merged_routers_are_those_of_the_whole_model(
    model_type: str, tmp_path: Path
) -> None:
    base = composite(model_type)
    model = model_config(base)
    network, layout = load_part(ALONE, model, DEPTH, None, None)
    assert load_config(model).model_type == COMPOSITES[model_type] in layout.family.model_types
    assert layout.gate_key(3) == GATES[model_type]
    before = logits(network)
    torch.testing.assert_close(before, logits(stock_network(base)[0]), rtol=0, atol=1e-6)

    source = torch.Generator().manual_seed(3)
    tuned = {}
    for site in layout.sites[-2:]:
        weight = network.get_parameter(f"{site.product}.weight")
        weight.add_(torch.randn(weight.shape, generator=source), alpha=0.4)
        tuned[layout.gate_key(site.layer)] = weight.clone()
    save_file(tuned, tmp_path / "router.safetensors")
    assert sorted(read_router_file(tmp_path / "router.safetensors").by_layer()) == [2, 3]
    merge(base, tmp_path / "router.safetensors", tmp_path / "merged")
    after = logits(network)
    torch.testing.assert_close(after, logits(stock_network(tmp_path / "merged")[0]), rtol=0, atol=1e-6)
    assert float((after - before).abs().max()) > 1e-3
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert {key for key in old if not torch.equal(old[key], new[key])} == set(
        tuned
    ) and new.keys() == old.keys()
    stored = [json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "merged")]
    assert stored[0] == stored[1] and "text_config" in stored[0]


@pytest.mark.parametrize("model_type", ["gemma4", "minimax_m3_vl"])
def test_a_part_of_the_text_part_has_its_weights(model_type: str) -> None:
    base = composite(model_type)
    whole = load_span(model_config(base), Span.suffix(0, DEPTH), None, ALONE.device).state_dict()
    for span in (Span(2, DEPTH, embedding=False, head=True), Span(0, 2, embedding=True, head=False)):
        part = load_span(model_config(base), span, None, ALONE.device).state_dict()
        assert any("experts" in name for name in part)
        assert all(torch.equal(values, whole[name]) for name, values in part.items() if values.numel())


def test_other_parts_are_left_alone_and_what_belongs_nowhere_is_named(tmp_path: Path) -> None:
    extra = {
        "mtp.layers.0.mlp.gate.weight": torch.zeros(2),
        "model.visual.blocks.0.attn.other.weight": torch.zeros(2),
        "model.language_model.layers.3.mlp.other.weight": torch.zeros(2),
    }
    folder = copy_of("qwen3_5_moe", tmp_path / "model", **extra)
    files = CheckpointFiles(model_config(folder))
    assert any(key.startswith("model.visual.blocks.0.attn.qkv") for key in files.keys)
    with pytest.raises(UserError, match="2 tensors belong nowhere") as caught:
        check_checkpoint(model_config(folder))
    named = "model.language_model.layers.3.mlp.other.weight, model.visual.blocks.0.attn.other.weight"
    assert named in caught.value.message and "mtp" not in caught.value.message


def test_an_index_may_list_the_tied_head_of_a_whole_model(tmp_path: Path) -> None:
    folder = copy_of("gemma4", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    keys = load_file(folder / "a.safetensors").keys()
    assert "lm_head.weight" not in keys and "model.language_model.embed_tokens.weight" in keys
    placed = dict.fromkeys([*keys, "lm_head.weight"], "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    check_checkpoint(model_config(folder))
    layout = blueprint(model_config(folder), CheckpointFiles(model_config(folder))).layout
    save_file({layout.gate_key(3): torch.ones(8, 32)}, tmp_path / "router.safetensors")
    assert merge(folder, tmp_path / "router.safetensors", tmp_path / "merged")["routers"] == 1


def test_what_the_whole_config_says_of_its_text_part_holds() -> None:
    kind = CONFIG_MAPPING["qwen3_5_moe"]
    own = {"text_config": {"eos_token_id": None, "pad_token_id": 3}}
    config = kind(dtype="float16", eos_token_id=7, pad_token_id=5, tie_word_embeddings=True, **own)
    text = text_part(config)
    assert (text.model_type, text.eos_token_id, text.pad_token_id) == ("qwen3_5_moe_text", 7, 3)
    assert text.dtype == torch.float16 and text.tie_word_embeddings
    assert whole_config(text) is config and config.text_config.eos_token_id is None
    assert text_part(text) is text and whole_config(config) is None
    # Its causal LM is a part of the whole network, with an end of its own.
    assert not text_part(CONFIG_MAPPING["llama4"](tie_word_embeddings=True)).tie_word_embeddings


def test_values_of_the_text_part_are_settled_and_named(tmp_path: Path) -> None:
    folder = copy_of("gemma4", tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()

    def read(**values: Any) -> Any:
        text = {"text_config": {**content["text_config"], **values}}
        (folder / "config.json").write_text(json.dumps(content | text))
        return load_config(model_config(folder))

    assert read(rms_norm_eps=1, use_cache=False).rms_norm_eps == 1.0
    for name, value in (("hidden_size", "32"), ("rms_norm_eps", [1e-6])):
        with pytest.raises(UserError, match=f"text_config of .*{name} must be"):
            read(**{name: value})


def test_a_gate_of_another_number_is_not_taken_for_that_of_a_layer() -> None:
    files = CheckpointFiles(model_config(composite("llama4")))
    layout = detect(load_span(model_config(composite("llama4")), Span.suffix(0, DEPTH), None, ALONE.device))
    assert (
        stored_layout(layout, files).gate_key(2) == "language_model.model.layers.2.feed_forward.router.weight"
    )
    name_of, names = files.conversion.name_of, {2: ".layers.2.", 3: ".layers.3."}
    swapped = {names[2]: names[3], names[3]: names[2]}

    def wrong(key: str) -> str:
        name = name_of(key)
        return next((name.replace(old, new) for old, new in swapped.items() if old in name), name)

    files.conversion.name_of = wrong  # type: ignore[method-assign]
    assert stored_layout(layout, files) is layout


def test_a_plan_of_a_composite_is_that_of_its_text_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(composite("gemma4")), "--layers", "last2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    config = text_part(composite_config("gemma4", 192, DEPTH))
    network = load_span(model_config(composite("gemma4")), Span.suffix(0, DEPTH), None, ALONE.device)
    assert plan["family"] == family_of(config).name
    assert sum(plan["parameters"].values()) == sum(values.numel() for values in network.parameters())


def test_a_composite_without_routers_is_measured_whole(tmp_path: Path) -> None:
    """As the library runs it: its text part has no checkpoint of its own."""
    parts = {"vision_config": composite_config("mistral3", 192).vision_config.to_dict()}
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"model_type": "mistral", "vocab_size": 192, "num_key_value_heads": 2, "head_dim": 8, **sizes}
    config = CONFIG_MAPPING["mistral3"](text_config=text, **parts)
    whole: Any = whole_class(config)
    whole._from_config(config).save_pretrained(tmp_path)
    assert why_untrained(load_config(model_config(tmp_path))) == (
        "model type 'mistral' has no routers that roma_ds knows"
    )
    model = PlainModel(ALONE, model_config(tmp_path), {})
    assert type(model.network) is whole and model.batching == "padded"
    found = model.logits(IDS, torch.ones_like(IDS), torch.arange(IDS.shape[1]))
    torch.testing.assert_close(found, logits(stock_network(tmp_path)[0]), rtol=0, atol=1e-5)
