"""What the files beside the weights say of how these are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from roma_ds.checkpoint.loading import checkpoint, reading_faults
from roma_ds.checkpoint.raw_files import PLAIN_COPY, RawFiles
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families.composite import TEXT
from roma_ds.families.config_values import STORED_AS
from roma_ds.families.unusable_config import shown
from roma_ds.storage.atomic import read_json

_OF_LISTS = {
    *("dense", "float-quantized", "naive-quantized", "int-quantized", "pack-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized"),
}
_OTHER_FILE = "hf_quant_config.json"
_ALGORITHMS = ("FP8", "FP8_PB_WO", "NVFP4", "MIXED_PRECISION")


@dataclass(frozen=True)
class Declared:
    """What is said of the codes; tensors decide what is stored so."""

    said: bool = False
    """Whether anything is said at all."""
    method: str | None = None
    group_sizes: frozenset[int] = frozenset()
    """Of neighbours that share a scale, as far as they are named; -1 is a whole row."""
    blocks: frozenset[tuple[int, int]] = frozenset()
    """Rows and columns that share a scale."""
    second_version: bool = False
    """Whether zero points are stored as they are, and not less one."""

    @staticmethod
    def of(raw: RawFiles, coded: bool) -> Declared:
        """Raises UserError that names what is not known. coded: whether there are tensors in codes."""
        said = _in_config(raw.model) or (_in_other_file(raw) if coded else {})
        if not said:
            return Declared()
        problem = _problem(said)
        if problem is not None:
            raise UserError(f"model.path: the weights of {raw.model.path} {problem}", PLAIN_COPY)
        schemes = [scheme for scheme in _schemes(said) if isinstance(scheme, Mapping)]
        sizes = (scheme.get("group_size") for scheme in (said, *schemes))
        blocks = (
            one.get(name) for one in (said, *schemes) for name in ("weight_block_size", "block_structure")
        )
        return Declared(
            True,
            _method(said),
            frozenset(size for size in sizes if type(size) is int),
            frozenset((int(one[0]), int(one[1])) for one in blocks if one and _is_block(one)),
            said.get("checkpoint_format") == "gptq_v2",
        )

    def group_size(self, width: int, groups: int) -> int:
        """Neighbours that share a scale in a row of `width` values with `groups` scales.

        Raises ValueError, in words, where no size is known that fits.
        """
        if groups == 1:
            return width
        fitting = {size for size in self.group_sizes if size > 0 and -(-width // size) == groups}
        if len(fitting) == 1:
            return fitting.pop()
        whole = not self.group_sizes and groups > 0 and width % groups == 0
        if not whole:
            raise ValueError(f"has {groups} scales for {width} values, which is no group size of its config")
        return width // groups


def require_plain_weights(model: ModelConfig) -> None:
    """Raises UserError where the config of a checkpoint says that its weights are quantized."""
    if said := _in_config(model):
        raise UserError(
            f"model.path: {model.path} has no routers and quantized weights ({shown(dict(said))}), which are "
            "decoded for models with routers alone",
            PLAIN_COPY,
        )


def _in_config(model: ModelConfig) -> Mapping[str, Any]:
    """The settings in config.json; empty where there are none."""
    from transformers import PreTrainedConfig

    with reading_faults(model):
        values, _ = PreTrainedConfig.get_config_dict(checkpoint(model), revision=model.revision)
    for owner in (values, values.get(TEXT)):
        for name in STORED_AS:
            if isinstance(owner, dict) and isinstance(owner.get(name), dict) and owner[name]:
                found: Mapping[str, Any] = owner[name]
                return found
    return {}


def _in_other_file(raw: RawFiles) -> Mapping[str, Any]:
    """The settings in ModelOpt's own file; empty where there are none."""
    path = raw.path(_OTHER_FILE, required=False)
    content = read_json(path) if path is not None else None
    found = content.get("quantization") if isinstance(content, dict) else None
    return {"quant_method": "modelopt", **found} if isinstance(found, dict) else {}


def _problem(said: Mapping[str, Any]) -> str | None:
    """What keeps such codes from being decoded, in words; None where nothing does."""
    method, form = _method(said), said.get("format")
    if method == "compressed-tensors":
        parts = [form, *(one.get("format") for one in _groups(said))]
        other = [one for one in parts if one is not None and str(one) not in _OF_LISTS]
        if other:
            return f"are stored in the format {other[0]} of compressed-tensors, which is not read"
        for name in ("sparsity_config", "transform_config"):
            inner = said.get(name)
            if inner and not (isinstance(inner, Mapping) and inner.get("format") == "dense"):
                return f"are stored with a {name} of compressed-tensors, which is not read"
        return None
    wrong = {
        "fp8": ("fmt", ("e4m3", None)),
        "gptq": ("checkpoint_format", ("gptq", "gptq_v2", "gemm", None)),
        "awq": ("version", ("gemm", "GEMM", None)),
        "modelopt": ("quant_algo", (*_ALGORITHMS, None)),
        "mxfp4": ("quant_method", ("mxfp4",)),
        "bitsandbytes": ("quant_method", ("bitsandbytes",)),
    }.get(str(method))
    if wrong is None:
        return f"are stored by {shown(method)}, a format that is not read ({shown(dict(said))})"
    name, known = wrong
    if said.get(name) not in known:
        return f"are stored by {method} with {name} {shown(said[name])}, which is not read"
    return None


def _method(said: Mapping[str, Any]) -> Any:
    """Name of the method; files of early compressed-tensors leave it out."""
    return said.get("quant_method") or ("compressed-tensors" if "config_groups" in said else None)


def _groups(said: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    groups = said.get("config_groups")
    for one in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(one, Mapping):
            yield one


def _schemes(said: Mapping[str, Any]) -> Iterator[Any]:
    """What is said of the weights of each group of modules."""
    yield from (one.get("weights") for one in _groups(said))
    # Of the methods that set some modules off.
    for name in ("dynamic", "quantized_layers"):
        inner = said.get(name)
        yield from inner.values() if isinstance(inner, Mapping) else ()


def _is_block(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(one) is int and one > 0 for one in value)
    )
