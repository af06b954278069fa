"""All families, checked against each other when imported."""

from __future__ import annotations

from roma_ds.families import (
    afmoe,
    dbrx,
    deepseek_moe,
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    dots1,
    ernie4_5_moe,
    exaone_moe,
    flex_olmo,
    gemma4,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    gpt_oss,
    granite_moe,
    granitemoehybrid,
    hunyuan_v1_moe,
    jamba,
    jetmoe,
    kimi_linear,
    lfm2_moe,
    llama4,
    minimax_m2,
    mistral4,
    mixtral,
    nemotron_h,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    solar_open,
)
from roma_ds.families.capability import CAPABILITIES, LEVELS
from roma_ds.families.family import Family

SCORINGS = ("softmax", "sigmoid", "sqrt_softplus")


def _faults(family: Family) -> list[str]:
    """What is wrong with one family."""
    found = []
    if family.gate_key.count(".{layer}.") != 1:
        found.append(f"gate_key {family.gate_key} is none of a layer")
    if family.scoring not in SCORINGS:
        found.append(f"scoring {family.scoring} is none of {SCORINGS}")
    if not family.model_types or not family.selection:
        found.append("model_types or selection is empty")
    for limit in family.limits:
        if limit.capability not in CAPABILITIES or limit.level not in LEVELS or not limit.reason:
            found.append(f"{limit} names no known capability and level, or no reason")
    return found


def _checked(families: tuple[Family, ...]) -> tuple[Family, ...]:
    seen: dict[str, str] = {}
    for family in families:
        for fault in _faults(family):
            raise ValueError(f"family {family.name}: {fault}")
        for model_type in family.model_types:
            if model_type in seen:
                raise ValueError(f"{model_type} belongs to {seen[model_type]} and {family.name}")
            seen[model_type] = family.name
    return families


FAMILIES: tuple[Family, ...] = _checked(
    (
        olmoe.FAMILY,
        flex_olmo.FAMILY,
        qwen3_moe.FAMILY,
        qwen2_moe.FAMILY,
        mixtral.FAMILY,
        granite_moe.FAMILY,
        phimoe.FAMILY,
        deepseek_moe.FAMILY,
        deepseek_v2.FAMILY,
        deepseek_v3.FAMILY,
        glm4_moe.FAMILY,
        ernie4_5_moe.FAMILY,
        gpt_oss.FAMILY,
        jetmoe.FAMILY,
        dbrx.FAMILY,
        qwen3_next.FAMILY,
        qwen3_5_moe.FAMILY,
        glm4_moe_lite.FAMILY,
        glm_moe_dsa.FAMILY,
        deepseek_v32.FAMILY,
        minimax_m2.FAMILY,
        kimi_linear.FAMILY,
        lfm2_moe.FAMILY,
        nemotron_h.FAMILY,
        granitemoehybrid.FAMILY,
        hunyuan_v1_moe.FAMILY,
        exaone_moe.FAMILY,
        llama4.FAMILY,
        gemma4.FAMILY,
        dots1.FAMILY,
        afmoe.FAMILY,
        jamba.FAMILY,
        mistral4.FAMILY,
        solar_open.FAMILY,
    )
)
