"""Which tensors of a checkpoint are stored in codes, and in which format: by which tensors there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from roma_ds.checkpoint.raw_files import PLAIN_COPY, RawFiles
from roma_ds.checkpoint.stored.coded_tensor import CodedTensor, Misfit
from roma_ds.checkpoint.stored.declared import Declared
from roma_ds.checkpoint.stored.four_bit_floats import ExpertBlocks, FourBitFloats
from roma_ds.checkpoint.stored.mapped import STATES, Mapped
from roma_ds.checkpoint.stored.packed_integers import PackedIntegers
from roma_ds.checkpoint.stored.scaled import FLOATS, ByRow, Scaled
from roma_ds.checkpoint.stored.transposed_integers import TransposedIntegers
from roma_ds.errors import UserError


@dataclass(frozen=True)
class _Form:
    """Names of tensors that belong together, behind a common start."""

    sign: str
    """Where there is a tensor so called, and one of codes, there is a weight of this form."""
    codes: str
    weight: str
    """The name that the weight has where it is stored as it is."""
    others: tuple[str, ...]


_FORMS = (
    _Form("_blocks", "_blocks", "", ("_scales",)),
    _Form(".qweight", ".qweight", ".weight", (".qzeros", ".scales", ".g_idx")),
    _Form("_packed", "_packed", "", ("_scale", "_shape", "_zero_point", "_g_idx", "_global_scale")),
    _Form(".absmax", "", "", (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *STATES)),
    _Form(".SCB", ".weight", ".weight", (".SCB", ".weight_format")),
    _Form("_scale_inv", "", "", ("_scale_inv",)),
    _Form("_scale", "", "", ("_scale", "_scale_2", "_zero_point")),
    _Form(".scale", ".weight", ".weight", (".scale",)),
)
_OF_INPUTS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "activation_scale")
_OF_A_CACHE = ("q_scale", "k_scale", "v_scale", "kv_scale", "k_zero_point", "v_zero_point")
"""Of attention; weights have no part in them."""


class Decoding:
    """The weights of a checkpoint that are stored in codes."""

    def __init__(self, raw: RawFiles) -> None:
        """Raises UserError for a format that is not known."""
        self.raw = raw
        """The tensors as stored."""
        self._parts = coded_parts(raw)
        self.declared = Declared.of(raw, bool(self._parts))
        """What is said of them."""
        self._found: dict[str, CodedTensor] = {}
        if self.declared.said and not self._parts:
            for key in raw.keys:
                self._refuse_bare(key)
            raise UserError(
                f"model.path: the config of {raw.model.path} says that weights are quantized "
                f"({self.declared.method}), and none of its tensors is stored in a form that is known",
                f"{PLAIN_COPY}; take quantization_config out of its config.json if they are not quantized",
            )
        self.keys = self._keys()
        """Key of each tensor as it is read, with the name of the file that holds it, or its codes."""

    def _keys(self) -> Mapping[str, str]:
        if not self._parts:
            return self.raw.keys
        taken = {key for parts in self._parts.values() for key in parts.values()}
        taken.update(key for key in self.raw.keys if self._is_of_activations(key))
        found = {key: name for key, name in self.raw.keys.items() if key not in taken}
        return found | {key: self.raw.keys[parts["codes"]] for key, parts in self._parts.items()}

    def _is_of_activations(self, key: str) -> bool:
        """Whether a tensor says how the inputs of a product, or cached keys and values, are rounded."""
        owner, _, own = key.rpartition(".")
        if own in _OF_A_CACHE:
            return True
        name = next((one for one in _OF_INPUTS if own.endswith(one)), None)
        if name is None:
            return False
        inner = own.removesuffix(name).rstrip("_") or "weight"
        return f"{owner}.{inner}" in self._parts

    def find(self, key: str) -> CodedTensor | None:
        """The weight of that key, where it is stored in codes.

        Raises UserError that names it where its tensors do not belong together.
        """
        if key not in self._parts:
            self._refuse_bare(key)
            return None
        if key not in self._found:
            kind = self._kind(key)
            try:
                self._found[key] = kind(self._parts[key], self.raw, self.declared)
            except Misfit as error:
                raise UserError(f"model.path: {key} of {self.raw.model.path} {error}", PLAIN_COPY) from error
        return self._found[key]

    def _refuse_bare(self, key: str) -> None:
        if self.raw.place(key).dtype in (*FLOATS, torch.float8_e8m0fnu):
            raise UserError(
                f"model.path: {key} of {self.raw.model.path} is stored in "
                f"{self.raw.place(key).dtype} without a scale",
                f"complete the checkpoint, or {PLAIN_COPY}",
            )

    def _kind(self, key: str) -> type[CodedTensor]:
        parts = self._parts[key]
        codes = self.raw.place(parts["codes"]).dtype
        if "_scales" in parts or parts["codes"].endswith("_blocks"):
            return ExpertBlocks
        if parts["codes"].endswith(".qweight"):
            return TransposedIntegers
        if ".absmax" in parts:
            return Mapped
        if ".SCB" in parts:
            return ByRow
        if parts["codes"].endswith("_packed"):
            return PackedIntegers if codes == torch.int32 else FourBitFloats
        # Exponents for 32 whole numbers of eight bits are those of two floats of four bits in each.
        halves = codes == torch.uint8 or (codes == torch.int8 and ".scale" in parts)
        return FourBitFloats if halves else Scaled

    def kinds(self) -> Counter[str]:
        """How many weights are stored in each format. Raises UserError as `find` does."""
        return Counter(found.kind for key in self._parts if (found := self.find(key)) is not None)

    def stored_keys(self, key: str) -> list[str]:
        """Keys of the stored tensors that a weight is read from."""
        return sorted(self._parts[key].values()) if key in self._parts else [key]


def coded_parts(raw: RawFiles) -> dict[str, dict[str, str]]:
    """Keys of stored tensors by what they are, by the key of the weight that they make."""
    found: dict[str, dict[str, str]] = {}
    for key in raw.keys:
        for form in _FORMS:
            if not key.endswith(form.sign):
                continue
            stem = key.removesuffix(form.sign)
            if _is_meant(raw, form, stem):
                others = {name: stem + name for name in form.others if stem + name in raw.keys}
                found[stem + form.weight] = {"codes": stem + form.codes, **others}
                break
    return found


def _is_meant(raw: RawFiles, form: _Form, stem: str) -> bool:
    if stem + form.codes not in raw.keys:
        return False
    if form.sign == "_blocks":
        return f"{stem}_scales" in raw.keys or ".experts." in stem
    if form.sign == ".scale":
        # Norms and routers have scales of their own beside a weight.
        return raw.place(stem + form.codes).dtype in (*FLOATS, torch.int8)
    return True
