"""Which sections of a DeepSpeed JSON ask for nothing: what stands in them is no fault."""

from __future__ import annotations

from typing import Any

from roma_ds.config.deepspeed_keys import REMOVED, SIZES, UNSUPPORTED, ZERO_REMOVED

Json = dict[str, Any]

OFFLOADS = ("offload_param", "offload_optimizer")


def switched_off(content: Json) -> frozenset[str]:
    """Key paths of the sections that are switched off by what is written in them."""
    found = {key for key, section in content.items() if is_off(section)}
    zero = content.get("zero_optimization")
    if isinstance(zero, dict):
        found |= {
            f"zero_optimization.{key}"
            for key in OFFLOADS
            if isinstance(zero.get(key), dict) and "device" in zero[key] and is_no_device(zero[key])
        }
    return frozenset(found)


def is_off(section: Any) -> bool:
    """Whether a section or key is null, false, `enabled: false`, or a size of 1."""
    if not isinstance(section, dict):
        return section is None or section is False or (section == 1 and section is not True)
    if "enabled" in section:
        return section["enabled"] is False
    if "shared_parameters" in section:
        # Each kind of compression_training has its switch there, and groups beside it.
        return is_off(section["shared_parameters"])
    sizes = [value for key, value in section.items() if key in SIZES]
    nested = [value for value in section.values() if isinstance(value, dict)]
    on = any(value not in (0, 1) for value in sizes) or not all(is_off(value) for value in nested)
    return bool(sizes or nested) and not on


def is_no_device(offload: Json) -> bool:
    """Whether a section of zero_optimization offloads nothing."""
    return offload.get("device") in (None, "none")


def drop_switched_off(content: Json, off: frozenset[str]) -> None:
    """Take sections that are not supported, or no longer there, and switched off, out of `content`."""
    for key in off & (REMOVED | UNSUPPORTED.keys()):
        del content[key]
    zero = content.get("zero_optimization")
    if isinstance(zero, dict):
        for key in [key for key in zero if key in ZERO_REMOVED and zero[key] in (None, False, -1)]:
            del zero[key]
