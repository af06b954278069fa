"""Mutations of model configs."""

from __future__ import annotations

from typing import Any

from mutations import INF, NAN, Case, as_json, damage_json, lose_file, mutates

FAMILIES = ("olmoe", "qwen3_moe", "mixtral", "deepseek_v3")
"""The first is the project's model, the others are configs alone."""
EXPERTS = {"mixtral": "num_local_experts", "deepseek_v3": "n_routed_experts"}
PLANNED = ("plan",)


def config_file(case: Case) -> str:
    """That of some family, which becomes what `plan` is asked about."""
    family = case.rng.choice(FAMILIES)
    file = "model/config.json" if family == FAMILIES[0] else f"configs/{family}/config.json"
    place = case.folder / file
    case.arguments = [str(place if case.rng.random() < 0.5 else place.parent)]
    return file


def own_config(case: Case) -> str:
    """That of the project's model."""
    return "model/config.json"


def changed_config(case: Case, file: str, changes: dict[str, Any]) -> str:
    """Write a config.json with other values; returns them in words."""
    case.write(file, as_json({**case.read(file), **changes}, case.rng))
    return f"{file}: {str(changes)[:80]}"


def harmless_values(case: Case, values: dict[str, Any]) -> dict[str, Any]:
    """Some that mean the same network."""
    rng = case.rng
    ways: list[dict[str, Any]] = [
        {"max_position_embeddings": float(values["max_position_embeddings"])},
        {"attention_dropout": 0},
        {"initializer_range": 1},
        {"torch_dtype": rng.choice(["torch.bfloat16", "bfloat16", "auto", "float32", None])},
        {"dtype": rng.choice(["torch.float32", "bfloat16", "auto"])},
        {"_attn_implementation": rng.choice(["flash_attention_2", "eager", "sdpa", None])},
        {"quantization_config": {}},
        {"use_cache": rng.choice([True, False])},
        {"output_router_logits": rng.choice([True, False])},
        {"transformers_version": rng.choice(["4.30.0", "5.0.0", "4.99.dev0"])},
        {"architectures": values.get("architectures")},
        {"x_note": rng.choice(["text", 3, [1, 2], {"a": 1}, None])},
        {"_name_or_path": rng.choice(["somewhere/else", ""])},
        {"pad_token_id": rng.choice([None, 0])},
        {"return_dict": True},
    ]
    if "router_aux_loss_coef" in values:
        ways += [{"router_aux_loss_coef": rng.choice([0, 1, 0.01])}]
    if values["model_type"] == "olmoe":
        ways += [{"clip_qkv": rng.choice([8, 8.5, None])}]
    changes: dict[str, Any] = {}
    for way in rng.sample(ways, rng.randint(1, 4)):
        changes |= way
    return changes


def harmful_values(case: Case, values: dict[str, Any]) -> dict[str, Any]:
    """One of which no network, or not this one, can be made."""
    rng = case.rng
    experts = EXPERTS.get(values["model_type"], "num_experts")
    counts = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        experts,
        "num_experts_per_tok",
    ]
    key, bad = rng.choice(
        [
            (rng.choice(counts), rng.choice([0, -1, "32", 1.5, [1], {"a": 1}, NAN, INF, True, 2**70])),
            (rng.choice(counts[:3]), None),
            ("rms_norm_eps", rng.choice(["1e-05", [1e-5], NAN, INF, -1e-5, {"a": 1}])),
            ("initializer_range", rng.choice(["0.02", [0.02], NAN])),
            ("attention_dropout", rng.choice([2, -0.1, "0.1", NAN, [0]])),
            ("hidden_act", rng.choice(["nonsense", 3, [], ""])),
            ("model_type", rng.choice(["nonsense-9", 3, None, "", ["olmoe"], {"a": 1}])),
            ("num_experts_per_tok", 99),
            ("num_key_value_heads", rng.choice([3, 0, -1, "4", [4]])),
            ("tie_word_embeddings", rng.choice(["yes", [True], 3.5])),
            ("max_position_embeddings", rng.choice([0, -5, "512", 512.5, [512], NAN])),
            ("rope_parameters", rng.choice([{"rope_type": "nonsense", "rope_theta": 1e4}, 3, "text", [1]])),
            ("rope_parameters", {"rope_type": "default", "rope_theta": rng.choice([0, -1, "10000", NAN])}),
        ]
    )
    return {key: bad}


@mutates("model config", "other values", False, *PLANNED)
def _plan_harmless(case: Case) -> str:
    file = config_file(case)
    return changed_config(case, file, harmless_values(case, case.read(file)))


@mutates("model config", "other values", False, "check")
def _check_harmless(case: Case) -> str:
    return changed_config(case, own_config(case), harmless_values(case, case.read(own_config(case))))


@mutates("model config", "wrong value", True, *PLANNED)
def _plan_harmful(case: Case) -> str:
    file = config_file(case)
    return changed_config(case, file, harmful_values(case, case.read(file)))


@mutates("model config", "wrong value", True, "check")
def _check_harmful(case: Case) -> str:
    return changed_config(case, own_config(case), harmful_values(case, case.read(own_config(case))))


@mutates("model config", "another network than that of the weights", True, "check")
def _other_sizes(case: Case) -> str:
    rng = case.rng
    key = rng.choice(
        ["hidden_size", "moe", "num_hidden_layers", "vocab_size", "num_experts", "num_attention_heads"]
    )
    if key == "moe":
        key = "intermediate_size"
    sizes = {
        "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": rng.choice([2, 5]),
        "vocab_size": 300, "num_experts": rng.choice([4, 16]), "num_attention_heads": 8,
    }  # fmt: skip
    return changed_config(case, own_config(case), {key: sizes[key]})


@mutates("model config", "quantized", True, "check")
def _quantized(case: Case) -> str:
    how = {
        "quant_method": case.rng.choice(["gptq", "awq", "fp8", "bitsandbytes"]),
        "bits": 4,
        "load_in_4bit": True,
    }
    return changed_config(case, own_config(case), {"quantization_config": how})


damage_json("model config", PLANNED, config_file)
damage_json("model config", ("check",), own_config)
lose_file("model config", ("check",), own_config)
