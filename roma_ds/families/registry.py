"""All families, checked against each other when imported."""

from __future__ import annotations

from roma_ds.families import olmoe, qwen3_moe
from roma_ds.families.family import Family


def _checked(families: tuple[Family, ...]) -> tuple[Family, ...]:
    seen: dict[str, str] = {}
    for family in families:
        if "{layer}" not in family.gate_key:
            raise ValueError(f"family {family.name}: gate_key has no {{layer}}")
        for model_type in family.model_types:
            if model_type in seen:
                raise ValueError(f"{model_type} belongs to {seen[model_type]} and {family.name}")
            seen[model_type] = family.name
    return families


FAMILIES: tuple[Family, ...] = _checked((olmoe.FAMILY, qwen3_moe.FAMILY))
