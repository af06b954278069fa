"""Weights in codes are what the libraries that define them make of them, whole and in parts."""

from __future__ import annotations

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from coded_tensors import (
    FORMATS,
    MAPPED,
    Format,
    Parts,
    block_float8,
    blocks_of_experts,
    by_name,
    experts_by_library,
    floats,
    words,
)
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from roma_ds.checkpoint.raw_files import RawFiles
from roma_ds.checkpoint.stored.coded_tensor import CodedTensor
from roma_ds.checkpoint.stored.codes import powers
from roma_ds.checkpoint.stored.declared import require_plain_weights
from roma_ds.checkpoint.stored.decoding import Decoding
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError

NAMES = [form.name for form in FORMATS]
KEY = "model.layers.0.mlp.experts.3.up_proj"


def stored(folder: Path, parts: Parts, said: dict[str, Any] | None, module: str = KEY) -> Decoding:
    """A checkpoint of one weight."""
    folder.mkdir(exist_ok=True)
    save_file(
        {module + name: values.contiguous() for name, values in parts.items()}, folder / "model.safetensors"
    )
    config = {"model_type": "olmoe"} | ({"quantization_config": said} if said is not None else {})
    (folder / "config.json").write_text(json.dumps(config))
    return Decoding(RawFiles(ModelConfig(path=str(folder))))


def whole(decoding: Decoding, key: str = f"{KEY}.weight") -> torch.Tensor:
    found = coded(decoding, key)
    return found.flat(decoding.raw, 0, prod(found.shape)).reshape(found.shape)


def coded(decoding: Decoding, key: str = f"{KEY}.weight") -> CodedTensor:
    found = decoding.find(key)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def decodings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoding]:
    """One weight in each format."""
    folder = tmp_path_factory.mktemp("formats")
    return {
        form.name: stored(folder / str(number), form.draw_with(number), form.said)
        for number, form in enumerate(FORMATS)
    }


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_decoded_values_are_those_of_the_library(form: Format, decodings: dict[str, Decoding]) -> None:
    decoding = decodings[form.name]
    wanted = form.decode(form.draw_with(FORMATS.index(form)))
    found = whole(decoding)
    assert found.dtype == torch.float32 and found.shape == wanted.shape == form.shape
    assert wanted.isfinite().all() and wanted.abs().max() > 0
    assert torch.equal(found.to(wanted.dtype), wanted)
    assert list(decoding.keys) == [f"{KEY}.weight"]
    parts = {key for key in decoding.raw.keys if not key.endswith("input_scale")}
    assert set(decoding.stored_keys(f"{KEY}.weight")) == parts


@given(name=st.sampled_from(NAMES), ends=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
def test_any_values_are_those_of_the_whole(
    decodings: dict[str, Decoding], name: str, ends: tuple[int, int]
) -> None:
    decoding = decodings[name]
    found = coded(decoding)
    size = prod(found.shape)
    start, stop = sorted(end % (size + 1) for end in ends)
    part = found.flat(decoding.raw, start, stop)
    assert torch.equal(part, whole(decoding).reshape(-1)[start:stop])


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_what_is_read_together_is_a_part_where_rows_are_stored_as_rows(
    form: Format, decodings: dict[str, Decoding]
) -> None:
    transposed = form.name.startswith(("gptq", "awq"))
    assert coded(decodings[form.name]).grain == (prod(form.shape) if transposed else form.shape[1])


@pytest.mark.parametrize("form", MAPPED, ids=[form.name for form in MAPPED])
def test_maps_are_those_of_bitsandbytes(form: Format) -> None:
    # What bitsandbytes 0.50.2 decodes of the same stored tensors, on a CPU.
    digests = {
        "nf4": "878caad3027821d1ab15707fa7149cd8df801f81c8c864b24d6a815d5ae108d4",
        "nf4 with double quantization": "b1cf4a8bde30c18fc791e2ec06029a80485db0e1b4f66ea588ca091f9bb9901f",
        "fp4 of bitsandbytes": "593c8af849ba66fd7a14b04cfc3ffce7fe101191d4746f57fc3134980b007f6d",
    }
    content = form.decode(form.draw_with(0)).contiguous().numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == digests[form.name]


def test_whole_numbers_of_bitsandbytes(tmp_path: Path) -> None:
    # Codes, the largest of each row, and what its version 0.50.2 makes of them.
    codes = torch.tensor([[127, -64, 3], [-127, 1, 100]], dtype=torch.int8)
    parts = {".weight": codes, ".SCB": torch.tensor([0.75, 3.0]), ".weight_format": torch.tensor(0).byte()}
    found = whole(stored(tmp_path, parts, {"quant_method": "bitsandbytes", "load_in_8bit": True}))
    assert torch.equal(found, codes.float() * torch.tensor([[0.75], [3.0]]) * (1 / 127))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_experts_are_those_of_transformers(tmp_path: Path, dtype: torch.dtype) -> None:
    parts = blocks_of_experts((3, 64, 40), torch.Generator().manual_seed(0))
    module = "model.layers.0.mlp.experts.gate_up_proj"
    decoding = stored(tmp_path, parts, {"quant_method": "mxfp4"}, module)
    found, wanted = coded(decoding, module), experts_by_library(parts, dtype)
    assert torch.equal(whole(decoding, module).to(dtype), wanted)
    assert found.grain == 64 * 40
    for start, stop in ((0, 1), (2559, 2561), (100, 7000), (7679, 7680), (5, 5)):
        part = found.flat(decoding.raw, start, stop)
        assert torch.equal(part.to(dtype), wanted.reshape(-1)[start:stop])


def test_scales_of_matrices_that_lie_in_one_tensor(tmp_path: Path) -> None:
    dice = torch.Generator().manual_seed(0)
    codes = torch.randn(3, 20, 40, generator=dice).to(torch.float8_e4m3fn)
    said = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    grids = ((3, 2, 3), (3,), (3, 1, 1), (3, 20), (3, 20, 1), (1,))
    for number, shape in enumerate(grids):
        scale = floats(shape, dice)
        parts = {"": codes, "_scale_inv": scale, "_activation_scale": torch.ones(3)}
        decoding = stored(tmp_path / str(number), parts, said, "model.layers.0.experts.up")
        assert list(decoding.keys) == ["model.layers.0.experts.up"]
        wide = {
            (3, 2, 3): lambda one: one.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :20, :40],
            (3, 20): lambda one: one[:, :, None],
            (3,): lambda one: one[:, None, None],
        }.get(shape, lambda one: one)(scale)
        assert torch.equal(whole(decoding, "model.layers.0.experts.up"), codes.float() * wide)
        part = coded(decoding, "model.layers.0.experts.up").flat(decoding.raw, 700, 1700)
        assert torch.equal(part, (codes.float() * wide).reshape(-1)[700:1700])


def test_columns_of_groups_in_any_order(tmp_path: Path) -> None:
    form = by_name("int4 groups with zero points")
    parts = form.draw_with(0)
    groups = torch.arange(80) // 16
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    plain = whole(stored(tmp_path / "a", parts | {".weight_g_idx": groups.int()}, form.said))
    assert torch.equal(plain, whole(stored(tmp_path / "b", parts, form.said)))
    mixed = whole(stored(tmp_path / "c", parts | {".weight_g_idx": groups[order].int()}, form.said))
    # Column by column with a scale of its own.
    single = parts | {name: values[:, groups[order]] for name, values in parts.items() if "shape" not in name}
    single[".weight_packed"] = parts[".weight_packed"]
    said = json.loads(json.dumps(form.said).replace('"group_size": 16', '"group_size": 1'))
    assert torch.equal(mixed, whole(stored(tmp_path / "d", single, said)))
    assert not torch.equal(mixed, plain)


def test_groups_that_are_not_there_are_named(tmp_path: Path) -> None:
    cases = ("gptq with desc_act", ".g_idx"), ("int4 groups", ".weight_g_idx")
    for number, (name, part) in enumerate(cases):
        form = by_name(name)
        wide = form.shape[1]
        parts = form.draw_with(0) | {part: torch.zeros(wide, dtype=torch.int32)}
        parts[part][5] = 77
        with pytest.raises(UserError, match=f"{KEY}{part} .* names group 77"):
            whole(stored(tmp_path / str(number), parts, form.said))


def test_awq_without_zero_points(tmp_path: Path) -> None:
    form = by_name("awq")
    parts = form.draw_with(0)
    del parts[".qzeros"]
    converter = AutoAWQConverter(group_size=32, zero_point=False, ignore=())
    made = converter.process({f"x{name}": values.clone() for name, values in parts.items()})
    listed = {name.removeprefix("x"): values for name, values in made.items()}
    wanted = by_name("int4 groups").decode(listed)
    found = whole(stored(tmp_path, parts, form.said | {"zero_point": False}))
    assert torch.equal(found.to(wanted.dtype), wanted)


def test_codes_that_stand_for_no_number_are_nan(tmp_path: Path) -> None:
    parts = block_float8("", (16, 16), (16, 16), torch.float32).draw_with(0)
    parts[".weight"].view(torch.uint8)[3, 5] = 0x7F
    found = whole(stored(tmp_path, parts, {"quant_method": "fp8", "weight_block_size": [16, 16]}))
    assert found.isnan().nonzero().tolist() == [[3, 5]]
    exponents = powers(torch.tensor([0, 1, 127, 254, 255], dtype=torch.uint8))
    assert exponents[:4].tolist() == [2.0**-127, 2.0**-126, 1.0, 2.0**127] and exponents[4].isnan()
    parts = blocks_of_experts((1, 32, 2), torch.Generator().manual_seed(0))
    parts["_scales"][0, 1, 0] = 255
    found = whole(stored(tmp_path / "b", parts, {"quant_method": "mxfp4"}, "experts.up"), "experts.up")
    assert found[0, :, 1].isnan().all() and found[0, :, 0].isfinite().all()


def test_tensors_decide_and_not_what_is_said(tmp_path: Path) -> None:
    form = FORMATS[0]
    dice = torch.Generator().manual_seed(0)
    drawn = form.draw_with(0)
    parts = drawn | {"_other.weight": torch.randn(4, 4, generator=dice)}
    for number, said in enumerate((None, {**form.said, "modules_to_not_convert": [KEY, "up_proj"]})):
        decoding = stored(tmp_path / str(number), parts, said)
        assert torch.equal(whole(decoding), form.decode(drawn))
        assert decoding.find(f"{KEY}_other.weight") is None
    # Names alone make no codes: a norm, or a router, may have a scale of its own.
    plain = {".weight": torch.ones(4), ".scale": torch.ones(4)}
    assert dict(stored(tmp_path / "c", plain, None).keys).keys() == {f"{KEY}.weight", f"{KEY}.scale"}


def _changed(form: Format, change: dict[str, Any]) -> Parts:
    parts = form.draw_with(0)
    for name, values in change.items():
        if values is None:
            del parts[name]
        else:
            parts[name] = values
    return parts


BYTES = torch.uint8
UNFIT: list[tuple[str, dict[str, Any], str]] = [
    (
        "fp8 blocks",
        {".weight_scale_inv": torch.ones(2, 3)},
        "2 x 3 scales, which is not blocks of",
    ),
    ("fp8 blocks", {".weight_scale_inv": None}, "float8_e4m3fn without a scale"),
    ("fp8 blocks", {".weight_scale_inv": torch.ones(7)}, r"its scales \(7,\), which do not go together"),
    ("fp8 channel", {".weight": torch.ones(48, 64)}, "has a scale and yet is stored in torch.float32"),
    ("int4 groups", {".weight_scale": None}, "is stored without scale"),
    ("int4 groups", {".weight_shape": None}, "is stored without shape"),
    ("int4 groups", {".weight_shape": torch.tensor([48, 300])}, "neither 4 nor 8 bits a value"),
    ("int4 groups", {".weight_shape": torch.tensor([47, 64])}, r"said to be \(47, 64\)"),
    ("int4 groups", {".weight_scale": torch.ones(48, 3)}, "3 scales for 64 values, which is no group size"),
    ("int4 groups", {".weight_zero_point": torch.ones(5, 2).int()}, r"where \(6, 2\) are meant"),
    ("nvfp4", {".weight_global_scale": None}, "is stored without global_scale"),
    ("nvfp4", {".weight_scale": torch.ones(48, 4)}, "scales in torch.float32, which is no known format"),
    ("mxfp4", {".weight_scale": torch.ones(48, 3, dtype=BYTES)}, "not one for 32 of a row"),
    ("mxfp4", {".weight_zero_point": torch.ones(48, 2, dtype=BYTES)}, "with zero points, which is not read"),
    ("nvfp4 of ModelOpt", {".weight_scale_2": None}, "is stored without"),
    ("gptq", {".scales": None}, "is stored without scales"),
    ("gptq", {".qzeros": None}, "is stored without qzeros"),
    ("gptq", {".qzeros": torch.ones(3, 5).int()}, "neither 4 nor 8 bits a value"),
    ("gptq", {".scales": torch.ones(3, 20)}, "neither GPTQ nor AWQ"),
    ("gptq", {".g_idx": torch.ones(79).int()}, "80 rows and a g_idx of"),
    ("gptq", {".scales": torch.ones(4, 24), ".qzeros": torch.ones(4, 3).int()}, "4 scales for 80 values"),
    ("nf4", {".weight": torch.ones(67, 1, dtype=BYTES)}, r"said to be \(9, 15\), and stored as \(67, 1\)"),
    ("nf4", {".weight.absmax": torch.ones(2)}, "has 3 blocks"),
    ("nf4", {".weight.quant_map": torch.ones(15)}, r"a quant_map of \(15,\), not 16 values"),
    ("nf4", {".weight.quant_map": None}, "is stored without quant_map"),
    ("nf4", {".weight.quant_state.bitsandbytes__nf4": torch.ones(3, dtype=BYTES)}, "cannot be read"),
]


@pytest.mark.parametrize(("name", "change", "said"), UNFIT, ids=[f"{one}-{said}" for one, _, said in UNFIT])
def test_tensors_that_do_not_belong_together_are_named(
    tmp_path: Path, name: str, change: dict[str, Any], said: str
) -> None:
    form = by_name(name)
    good = {f"_2{part}": values for part, values in form.draw_with(0).items()}
    decoding = stored(tmp_path, _changed(form, change) | good, form.said)
    coded(decoding, f"{KEY}_2.weight")
    with pytest.raises(UserError, match=said) as caught:
        decoding.find(f"{KEY}.weight")
    assert f"{KEY}.weight" in caught.value.message and "save_original_format=False" in caught.value.fix


def test_blocks_that_are_cut_are_named(tmp_path: Path) -> None:
    for number, change in enumerate(
        ({"_blocks": torch.ones(2, 8, 1, 15, dtype=BYTES)}, {"_scales": torch.ones(2, 8, 2, dtype=BYTES)})
    ):
        parts = blocks_of_experts((2, 32, 8), torch.Generator()) | change
        decoding = stored(tmp_path / str(number), parts, {"quant_method": "mxfp4"}, "experts.up")
        with pytest.raises(UserError, match=r"experts\.up .* \[E, O, G, 16\] and \[E, O, G\] are meant"):
            decoding.find("experts.up")
    parts = {"_blocks": torch.ones(2, 8, 1, 16, dtype=BYTES)}
    with pytest.raises(UserError, match=r"experts\.up .* without scales"):
        stored(tmp_path / "c", parts, None, "x.experts.up").find("x.experts.up")


LISTED = {"quant_method": "compressed-tensors"}
UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "hqq"}, '"hqq"'),
    ({"bits": 4, "group_size": 64}, "null"),
    ({"quant_method": ["fp8"]}, "fp8"),
    ({**LISTED, "format": ["dense"], "config_groups": {"a": {"weights": {"group_size": [3]}}}}, "dense"),
    ({"quant_method": "fp8", "fmt": "e5m3"}, 'fmt "e5m3"'),
    ({"quant_method": "awq", "version": "gemv"}, 'version "gemv"'),
    ({"quant_method": "gptq", "checkpoint_format": "marlin"}, 'checkpoint_format "marlin"'),
    ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, 'quant_algo "W4A8_AWQ"'),
    ({**LISTED, "format": "marlin-24"}, "the format marlin-24 of compressed-tensors"),
    ({**LISTED, "config_groups": {"a": {"format": "mxfp6-pack"}}}, "the format mxfp6-pack"),
    ({**LISTED, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    ({**LISTED, "transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
]


@pytest.mark.parametrize(("said", "named"), UNKNOWN, ids=[named for _, named in UNKNOWN])
def test_formats_that_are_not_known_are_named(tmp_path: Path, said: dict[str, Any], named: str) -> None:
    for number, place in enumerate(("quantization_config", "compression_config", "text_config")):
        folder = tmp_path / str(number)
        stored(folder, FORMATS[0].draw_with(0), None)
        how = {"quantization_config": said} if place == "text_config" else said
        (folder / "config.json").write_text(json.dumps({"model_type": "olmoe", place: how}))
        with pytest.raises(UserError) as caught:
            Decoding(RawFiles(ModelConfig(path=str(folder))))
        assert named in caught.value.message and "save_original_format=False" in caught.value.fix


def test_a_config_of_early_compressed_tensors_names_no_method(tmp_path: Path) -> None:
    form = by_name("int4 groups")
    said = {key: value for key, value in form.said.items() if key != "quant_method"}
    stored(tmp_path, form.draw_with(0), None)
    (tmp_path / "config.json").write_text(json.dumps({"compression_config": said}))
    found = whole(Decoding(RawFiles(ModelConfig(path=str(tmp_path)))))
    assert torch.equal(found.bfloat16(), form.decode(form.draw_with(0)))


def test_a_file_of_modelopt_is_read_too(tmp_path: Path) -> None:
    form = by_name("nvfp4 of ModelOpt")
    stored(tmp_path, form.draw_with(0), None)
    for algorithm, problem in (("NVFP4", False), ("W4A8_AWQ", True)):
        content = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(content))
        if problem:
            with pytest.raises(UserError, match="W4A8_AWQ"):
                Decoding(RawFiles(ModelConfig(path=str(tmp_path))))
        else:
            found = whole(Decoding(RawFiles(ModelConfig(path=str(tmp_path)))))
            assert torch.equal(found.bfloat16(), form.decode(form.draw_with(0)))


def test_scales_of_inputs_and_caches_are_no_weights(tmp_path: Path) -> None:
    form = by_name("nvfp4 of ModelOpt")
    attention = "model.layers.0.self_attn"
    parts = {f"{KEY}{name}": values for name, values in form.draw_with(0).items()}
    parts |= {f"{attention}.k_proj.k_scale": torch.ones(1), f"{attention}.v_scale": torch.ones(1)}
    parts |= {f"{attention}.input_scale": torch.ones(1), f"{KEY}.pre_quant_scale": torch.ones(64)}
    decoding = stored(tmp_path, parts, form.said, "")
    # The last two are of no weight in codes, or change what the weight means: they are to be missed.
    assert set(decoding.keys) == {f"{KEY}.weight", f"{attention}.input_scale", f"{KEY}.pre_quant_scale"}


def test_codes_without_any_scale_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{KEY}.weight .* stored in torch.float8_e4m3fn without a scale"):
        stored(tmp_path, {".weight": FORMATS[0].draw_with(0)[".weight"]}, FORMATS[0].said)


def test_a_config_that_speaks_of_codes_where_there_are_none_is_refused(tmp_path: Path) -> None:
    plain = {".weight": torch.ones(4, 4), ".bias": words((4,), torch.Generator()).float()}
    stored(tmp_path, plain, {})
    with pytest.raises(UserError, match=r"says that weights are quantized \(gptq\)") as caught:
        stored(tmp_path, plain, {"quant_method": "gptq", "bits": 4})
    assert "take quantization_config out" in caught.value.fix


def test_models_that_transformers_loads_are_plain(tmp_path: Path) -> None:
    stored(tmp_path, FORMATS[0].draw_with(0), None)
    require_plain_weights(ModelConfig(path=str(tmp_path)))
    stored(tmp_path, FORMATS[0].draw_with(0), FORMATS[0].said)
    with pytest.raises(UserError, match="has no routers and quantized weights"):
        require_plain_weights(ModelConfig(path=str(tmp_path)))


def test_types_of_less_than_a_byte_are_named(tmp_path: Path) -> None:
    stored(tmp_path, {".weight": torch.ones(4, 4)}, None)
    header = {f"{KEY}.weight": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(UserError, match=f"{KEY}.weight has the type F4, which is not supported") as caught:
        RawFiles(ModelConfig(path=str(tmp_path)))
    assert "save_original_format=False" in caught.value.fix
