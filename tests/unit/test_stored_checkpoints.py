"""A checkpoint in codes loads as its decoded copy does, in whole and in part, and is merged bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from coded_checkpoints import change, in_codes, with_blocks
from coded_tensors import FORMATS, by_name
from safetensors.torch import load_file, save_file
from stream_setting import CPU, DEPTH, WORLD, Setting, assert_same
from transformers import AutoModelForCausalLM

from roma_ds.checkpoint.blueprint import check_checkpoint
from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.checksums import checksums, refuse_changed, sampled_keys
from roma_ds.checkpoint.expert_keys import expert_keys
from roma_ds.checkpoint.gate_keys import stored_layout
from roma_ds.checkpoint.loaded_weights import check_loaded, refuse_not_finite
from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.raw_files import RawFiles
from roma_ds.checkpoint.span import Span, SpanLoader, load_span, skeleton
from roma_ds.checkpoint.stored_gates import stored_dtypes
from roma_ds.config import ModelConfig
from roma_ds.errors import RomaError, UserError
from roma_ds.export.merge import merge
from roma_ds.families import detect
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import collate
from roma_ds.testing.tiny_composites import save_composite
from roma_ds.testing.tiny_models import save_tiny

BLOCKS = "mxfp4 blocks"
CASES = [("qwen3_moe", form.name) for form in FORMATS if form.name not in ("fp8 blocks", "fp8 576 rows")]
CASES += [("deepseek_v3", "fp8 blocks of another size"), ("olmoe", "fp8 blocks"), ("gpt_oss", BLOCKS)]
FEW = [CASES[-3], CASES[-1], ("qwen3_moe", "int4 groups with zero points")]
Pair = tuple[Path, Path]
PLACE = {"_name_or_path": "", "name_or_path": ""}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folders of a checkpoint in codes and of its decoded copy, made when first asked for."""
    bases: dict[str, Path] = {}
    made: dict[tuple[str, str], Pair] = {}

    def pair(model_type: str, name: str) -> Pair:
        if model_type not in bases:
            folder = tmp_path_factory.mktemp("base") / model_type
            more = {"intermediate_size": 32} if model_type == "gpt_oss" else {}
            experts = 8 if model_type == "deepseek_v3" else 4
            bases[model_type] = save_tiny(folder, model_type, experts=experts, **more)
        if (model_type, name) not in made:
            folder = tmp_path_factory.mktemp("pair")
            base = bases[model_type]
            copies = with_blocks(base, folder) if name == BLOCKS else in_codes(base, folder, by_name(name))
            made[model_type, name] = copies
        return made[model_type, name]

    return pair


def library_type(name: str) -> str:
    """In which the library of a format decodes: in another one its values are rounded twice."""
    return "float32" if name == BLOCKS else str(by_name(name).decode(by_name(name).draw_with(0)).dtype)[6:]


def configured(folder: Path, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(path=str(folder), dtype=dtype)  # type: ignore[arg-type]


def loaded(folder: Path, span: Span, dtype: str = "float32") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_span(configured(folder, dtype), span, None, CPU).state_dict()
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype and torch.equal(values, other[name]), name


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_whole_model_is_its_decoded_copy(case: tuple[str, str], pairs: Any) -> None:
    coded, plain = pairs(*case)
    whole = Span.suffix(0, DEPTH)
    for dtype in {library_type(case[1]), "bfloat16"}:
        assert_equal(loaded(coded, whole, dtype), loaded(plain, whole, dtype))
    files = CheckpointFiles(configured(coded))
    assert files.keys.keys() == CheckpointFiles(configured(plain)).keys.keys()
    check_checkpoint(configured(coded))


@pytest.mark.parametrize("case", FEW, ids="-".join)
@pytest.mark.parametrize(
    "span", [Span.suffix(2, DEPTH), Span(1, 2, embedding=False, head=False), Span(0, 0, True, False)], ids=str
)
def test_a_part_of_the_model_is_its_decoded_copy(case: tuple[str, str], span: Span, pairs: Any) -> None:
    (coded, plain), dtype = pairs(*case), library_type(case[1])
    assert_equal(loaded(coded, span, dtype), loaded(plain, span, dtype))


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_streamed_it_gives_what_the_decoded_copy_gives(
    case: tuple[str, str], pairs: Any, tmp_path: Path
) -> None:
    (coded, plain), dtype = pairs(*case), library_type(case[1])
    found = Setting(coded, tmp_path / "coded", dtype).streamed().run()
    assert_same(found, Setting(plain, tmp_path / "plain", dtype).streamed().run())


class Share:
    """A rank's part of each parameter, as ZeRO-3 cuts it."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def spans(self, size: int) -> list[tuple[int, int]]:
        share = -(-size // self.ranks)
        start, stop = min(size, self.rank * share), min(size, (self.rank + 1) * share)
        return [(start, stop)] if start < stop else []

    def take(self, parameter: Any) -> None:
        assert parameter.device == CPU


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_a_rank_reads_and_decodes_its_share(
    case: tuple[str, str], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (coded, plain), dtype = pairs(*case), library_type(case[1])
    whole = load_span(configured(plain, dtype), Span.suffix(0, DEPTH), None, CPU)
    read = RawFiles.read_flat
    seen: list[int] = []

    def counted(files: RawFiles, key: str, start: int, stop: int) -> torch.Tensor:
        if ".experts." in key:
            seen.append((stop - start) * files.place(key).dtype.itemsize)
        return read(files, key, start, stop)

    monkeypatch.setattr(RawFiles, "read_flat", counted)
    counts = []
    for ranks in (1, 4):
        seen.clear()
        for rank in range(ranks):
            loader = SpanLoader(configured(coded, dtype), Span.suffix(0, DEPTH), CPU)
            # Less what is read to know a shape.
            before = sum(seen)
            for part in loader.parts():
                loader.fill(part, Share(rank, ranks))  # type: ignore[arg-type]
            counts.append(sum(seen) - before)
            seen.clear()
            for name, parameter in loader.network.named_parameters():
                wanted = whole.get_parameter(name).reshape(-1)
                for start, stop in Share(rank, ranks).spans(len(wanted)):
                    assert torch.equal(parameter.reshape(-1)[start:stop], wanted[start:stop]), name
    # Each share has as many whole experts.
    assert counts[1:] == [counts[0] // 4] * 4


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_what_was_loaded_is_held_against_the_codes(case: tuple[str, str], pairs: Any) -> None:
    coded, plain = pairs(*case)
    files = CheckpointFiles(configured(coded))
    network = load_span(configured(plain, "bfloat16"), Span.suffix(0, DEPTH), None, CPU)
    layout = stored_layout(detect(network), files)
    check_loaded(network, layout, files, WORLD)
    key = expert_keys(files, layout, layout.layers[0])[-1]
    for name, parameter in network.named_parameters():
        if ".experts." in name and "bias" not in name:
            parameter.data.zero_()
    with pytest.raises(RomaError, match="experts"):
        check_loaded(network, layout, files, WORLD)
    assert files.place(key).dtype in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_sums_are_of_the_stored_bytes(case: tuple[str, str], pairs: Any, tmp_path: Path) -> None:
    coded, _ = pairs(*case)
    folder = shutil.copytree(coded, tmp_path / "model")
    files = CheckpointFiles(configured(folder))
    layout = stored_layout(detect(load_span(configured(folder), Span.suffix(0, DEPTH), None, CPU)), files)
    keys = sampled_keys(files, layout)
    assert all(key in files.keys for key in keys) and len(keys) == 2 * len(layout.layers)
    sums = checksums(files, keys)
    refuse_changed(files, sums, keys)
    tensors = load_file(folder / "model.safetensors")
    for key in keys:
        for stored in files.decoding.stored_keys(key):
            raw = tensors[stored].clone()
            raw.reshape(-1).view(torch.uint8)[0] ^= 1
            save_file(tensors | {stored: raw}, folder / "model.safetensors", {"format": "pt"})
            other = checksums(CheckpointFiles(configured(folder)), keys)
            assert [one for one in keys if other[one] != sums[one]] == [key], stored


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_merging_leaves_codes_bit_for_bit(case: tuple[str, str], pairs: Any, tmp_path: Path) -> None:
    coded, plain = pairs(*case)
    files = CheckpointFiles(configured(coded))
    layout = stored_layout(detect(load_span(configured(plain), Span.suffix(0, DEPTH), None, CPU)), files)
    keys = [layout.gate_key(layer) for layer in layout.layers]
    routers = {key: torch.randn(files.place(key).shape) for key in keys}
    save_file(routers, tmp_path / "router.safetensors")
    assert merge(coded, tmp_path / "router.safetensors", tmp_path / "out")["routers"] == len(keys)
    before, after = (load_file(folder / "model.safetensors") for folder in (coded, tmp_path / "out"))
    assert before.keys() == after.keys()
    for key, values in after.items():
        wanted = routers[key] if key in routers else before[key]
        assert values.dtype == wanted.dtype and values.shape == wanted.shape, key
        assert torch.equal(values.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)), key
    config = [json.loads((folder / "config.json").read_text()) for folder in (coded, tmp_path / "out")]
    assert config[0] == config[1] and config[0]["quantization_config"]
    change(plain := shutil.copytree(plain, tmp_path / "plain"), routers)
    whole, dtype = Span.suffix(0, DEPTH), library_type(case[1])
    assert_equal(loaded(tmp_path / "out", whole, dtype), loaded(plain, whole, dtype))


def test_the_text_part_of_several_is_decoded(tmp_path: Path) -> None:
    """What is said of the codes lies in the config of that part."""
    base = save_composite(tmp_path / "base", "kimi_k25")
    coded, plain = in_codes(base, tmp_path / "pair", by_name("int4 groups"), r"\.experts\.\d+\.\w+\.weight$")
    config = json.loads((coded / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (coded / "config.json").write_text(json.dumps(config))
    for span in (Span.suffix(0, DEPTH), Span.suffix(3, DEPTH)):
        assert_equal(loaded(coded, span, "bfloat16"), loaded(plain, span, "bfloat16"))
    files = check_checkpoint(configured(coded))
    assert set(files.decoding.kinds()) == {"packed integers of compressed-tensors"}
    assert all(key.startswith("language_model.") for key in files.decoding.keys if ".experts." in key)


LIBRARY = [
    ("gpt_oss", BLOCKS),
    ("olmoe", "fp8 blocks"),
    ("qwen3_moe", "int4 groups"),
    ("qwen3_moe", "fp8 channel"),
]


@pytest.mark.parametrize("case", LIBRARY, ids="-".join)
def test_a_copy_that_transformers_decodes_and_saves_has_the_same_weights(
    case: tuple[str, str], pairs: Any, tmp_path: Path
) -> None:
    coded, _ = pairs(*case)
    network = AutoModelForCausalLM.from_pretrained(coded, dtype=torch.bfloat16)
    network.save_pretrained(tmp_path, save_original_format=False)
    whole = Span.suffix(0, DEPTH)
    assert_equal(loaded(coded, whole, "bfloat16"), loaded(tmp_path, whole, "bfloat16"))


def trained(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """Routers after 20 steps towards even logits."""
    setting = Setting(folder, folder, dtype)
    network = load_span(setting.model, Span.suffix(0, DEPTH), None, CPU)
    layout = setting.whole.layout
    routed = RoutedLM(network, layout, layout.layers).attach()
    gates = {
        name: network.get_parameter(name) for name in (f"{site.product}.weight" for site in layout.sites)
    }
    for gate in gates.values():
        gate.requires_grad_(True)
    optimizer = torch.optim.SGD(gates.values(), lr=5.0)
    losses = []
    for step in range(20):
        numbers = setting.batches[step % len(setting.batches)]
        batch = collate([setting.requests.sequences[number] for number in numbers], "last1")
        output = routed(**batch.inputs(CPU))
        loss = output.logits.float().logsumexp(dim=-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert len(set(losses)) > len(setting.batches)
    return {name: gate.detach() for name, gate in gates.items()}


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_training_is_that_of_the_decoded_copy(case: tuple[str, str], pairs: Any) -> None:
    (coded, plain), dtype = pairs(*case), library_type(case[1])
    found = trained(coded, dtype)
    assert_equal(found, trained(plain, dtype))
    start = loaded(coded, Span.suffix(0, DEPTH), dtype)
    assert all(not torch.equal(values, start[name]) for name, values in found.items())


def test_no_network_is_made_with_codes(pairs: Any) -> None:
    coded, plain = pairs(*FEW[0])
    config = load_config(configured(coded))
    assert not hasattr(config, "quantization_config")
    assert config.to_dict() | PLACE == load_config(configured(plain)).to_dict() | PLACE


def test_faults_of_the_codes_are_found_before_anything_is_read(pairs: Any, tmp_path: Path) -> None:
    coded, _ = pairs(*FEW[0])
    key = "model.layers.2.mlp.experts.1.up_proj"
    whole = configured(shutil.copytree(coded, tmp_path / "model"))
    for values, said in (
        ({f"{key}.weight_scale_inv": None}, f"{key}.weight .* without a scale"),
        ({f"{key}.weight_scale_inv": torch.ones(3, 9)}, f"{key}.weight .* which is not blocks of 16 x 24"),
        ({f"{key}.weight": None}, "are not those of its config.json"),
        ({f"{key}.pre_quant_scale": torch.ones(32)}, f"belong nowhere: {key}.pre_quant_scale"),
    ):
        tensors = load_file(Path(whole.path) / "model.safetensors")
        change(Path(whole.path), values)
        with pytest.raises(UserError, match=said) as caught:
            check_checkpoint(whole)
        assert caught.value.fix
        save_file(tensors, Path(whole.path) / "model.safetensors", {"format": "pt"})
    check_checkpoint(whole)


def test_codes_that_stand_for_no_number_are_named(pairs: Any, tmp_path: Path) -> None:
    coded, _ = pairs(*FEW[0])
    folder = shutil.copytree(coded, tmp_path / "model")
    key = "model.layers.2.mlp.experts.1.up_proj.weight"
    codes = load_file(folder / "model.safetensors")[key]
    codes.view(torch.uint8)[0, 0] = 0x7F
    change(folder, {key: codes})
    network = load_span(configured(folder, "bfloat16"), Span.suffix(0, DEPTH), None, CPU)
    with pytest.raises(UserError, match=r"not finite .*layers\.2\.mlp\.experts\."):
        refuse_not_finite(network, 0)


GATES = r"\.(self_attn\.\w+_proj|experts\.\d+\.\w+_proj|gate)\.weight$"
CODED_GATES = [
    ("fp8 blocks of another size", "modules_to_not_convert"),
    ("fp8 channel", "ignore"),
    ("int4 groups", "ignore"),
    ("nvfp4 of ModelOpt", "ignore"),
    ("awq", "modules_to_not_convert"),
    ("nf4", "llm_int8_skip_modules"),
]


def _in_two_files(folder: Path) -> None:
    """Scales of routers lie in another file than their codes."""
    tensors = load_file(folder / "model.safetensors")
    second = {key for key in tensors if "scale" in key or key.endswith(".absmax")}
    parts = {
        "model-00001-of-00002.safetensors": tensors.keys() - second,
        "model-00002-of-00002.safetensors": second,
    }
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name, {"format": "pt"})
    placed = {key: name for name, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(("name", "where"), CODED_GATES, ids=[name for name, _ in CODED_GATES])
def test_a_router_in_codes_is_written_back_in_numbers(
    name: str, where: str, tiny_qwen3: Path, tmp_path: Path
) -> None:
    coded, plain = in_codes(tiny_qwen3, tmp_path / "pair", by_name(name), GATES)
    _in_two_files(coded)
    dtype, whole = library_type(name), Span.suffix(0, DEPTH)
    assert_equal(loaded(coded, whole, dtype), loaded(plain, whole, dtype))
    keys = [f"model.layers.{layer}.mlp.gate.weight" for layer in (1, 3)]
    trained = {key: torch.randn(8, 32) for key in keys}
    save_file(trained, tmp_path / "router.safetensors")
    assert merge(coded, tmp_path / "router.safetensors", tmp_path / "out")["routers"] == 2
    routers = {key: weight.bfloat16() for key, weight in trained.items()}
    change(plain, routers)
    assert_equal(loaded(tmp_path / "out", whole, dtype), loaded(plain, whole, dtype))
    check_checkpoint(configured(tmp_path / "out"))
    raw = RawFiles(configured(tmp_path / "out"))
    left = {key for key in raw.keys if ".layers.1.mlp.gate." in key}
    assert left == {keys[0]} and torch.equal(raw.read(keys[0]), routers[keys[0]])
    assert any(key.startswith("model.layers.0.mlp.gate.") and key != f"{keys[0]}" for key in raw.keys)
    before, after = (RawFiles(configured(folder)) for folder in (coded, tmp_path / "out"))
    for key in after.keys.keys() - left - {keys[1]}:
        one, other = before.read(key), after.read(key)
        assert torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), key
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    listed = said.pop(where)
    assert listed[-2:] == [key.removesuffix(".weight") for key in keys]
    assert listed[:-2] in (by_name(name).said.get(where, []), ["lm_head"])
    assert said == {key: value for key, value in by_name(name).said.items() if key != where}


def test_routers_in_codes_are_served_in_the_type_that_merge_writes(tiny_qwen3: Path, tmp_path: Path) -> None:
    coded, _ = in_codes(tiny_qwen3, tmp_path / "pair", by_name("awq"), GATES)
    key, weight = "model.layers.1.mlp.gate.weight", torch.randn(8, 32)
    save_file({key: weight}, tmp_path / "router.safetensors")
    files = CheckpointFiles(configured(coded))
    served = stored_dtypes(files, stored_layout(detect(skeleton(configured(coded))), files))
    for how, dtype in {None: torch.bfloat16, "stored": torch.bfloat16, "float32": torch.float32}.items():
        merge(coded, tmp_path / "router.safetensors", tmp_path / f"{how}", how)
        written = RawFiles(configured(tmp_path / f"{how}")).read(key)
        assert written.dtype == dtype and torch.equal(written, weight.to(dtype))
        assert how == "float32" or served[1] == dtype


def test_a_router_whose_format_lists_no_modules_is_named(tiny_qwen3: Path, tmp_path: Path) -> None:
    coded, _ = in_codes(tiny_qwen3, tmp_path / "pair", by_name("gptq"), GATES)
    key = "model.layers.1.mlp.gate.weight"
    save_file({key: torch.randn(8, 32)}, tmp_path / "router.safetensors")
    with pytest.raises(UserError, match=rf"stores the router {key} in codes \(gptq\)"):
        merge(coded, tmp_path / "router.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_router_of_another_shape_than_its_codes_is_named(tiny_qwen3: Path, tmp_path: Path) -> None:
    coded, _ = in_codes(tiny_qwen3, tmp_path / "pair", by_name("awq"), GATES)
    save_file({"model.layers.1.mlp.gate.weight": torch.randn(9, 32)}, tmp_path / "router.safetensors")
    with pytest.raises(UserError, match=r"has shape \(8, 32\) in .*, \(9, 32\) in the router file"):
        merge(coded, tmp_path / "router.safetensors", tmp_path / "out")
