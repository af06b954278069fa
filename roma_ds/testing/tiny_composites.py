"""Tiny random checkpoints of text and vision, whose text part has routers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roma_ds.families.composite import TEXT, whole_class
from roma_ds.testing.tiny_models import save_tokenizer, tiny_config
from roma_ds.testing.tiny_weights import enlarge

COMPOSITES: dict[str, str] = {
    "aria": "aria_text",
    "dots3_note": "dots3_note_text",
    "gemma4": "gemma4_text",
    "inkling2": "inkling2_text",
    "inkling_mm_model": "inkling_text",
    "internvl": "qwen3_moe",
    "kimi_k25": "deepseek_v3",
    "lfm2_vl": "lfm2_moe",
    "llama4": "llama4_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "mistral3": "mistral4",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""Model types of several parts that have a text part with routers, or may have one, with its type."""
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "depth"), 1),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("hidden_size", "embed_dim"), 16),
    "head_dim": 8,
    "intermediate_size": 20,
}
"""Of every part but the text, as far as its config has them."""
_TEXT_WIDTHS = ("out_hidden_size", "text_hidden_size", "adapter_out_dim")
"""Of other parts, where they give what the text part takes."""
_OWN_SIZES: dict[str, dict[str, Any]] = {
    # Its vision part has routers as well.
    "dots3_note_vision_encoder": {
        "adapter_in_dim": 16,
        "moe_intermediate_size": 12,
        "pyramid_num_routed": [2],
    },
    "dots3_note_audio_encoder": {"downsample_hidden_size": 8, "adapter_input_size": 16},
    "llama4_vision_model": {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
}


def composite_config(model_type: str, vocabulary: int, layers: int = 4, **more: Any) -> Any:
    """A small transformers config of `model_type`; more: values of the text part."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    text = tiny_config(COMPOSITES[model_type], vocabulary, layers, **more)
    parts = dict(_parts(kind, text.hidden_size))
    return kind(**{TEXT: text.to_dict()}, **parts)


def _parts(kind: Any, hidden: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Values of the configs of the parts beside the text."""
    from transformers import CONFIG_MAPPING

    for name, spec in kind.sub_configs_defaults.items():
        if name == TEXT:
            continue
        own = spec.config_class if hasattr(spec.config_class, "attribute_map") else None
        own = own or CONFIG_MAPPING[spec.model_type]
        known = {*own.__dataclass_fields__, *own.attribute_map}
        sizes = {size: value for size, value in _SIZES.items() if size in known}
        sizes |= {size: hidden for size in _TEXT_WIDTHS if size in known}
        own_sizes = _OWN_SIZES.get(own.model_type, {})
        yield name, {**spec.init_kwargs, **sizes, "model_type": own.model_type, **own_sizes}


def save_composite(
    folder: Path, model_type: str, layers: int = 4, seed: int = 0, dtype: str = "float32", **more: Any
) -> Path:
    """Save a random model of `model_type`, one of COMPOSITES, and a tokenizer; returns `folder`.

    more: values of the text part, which go before those of `tiny_config`.
    """
    import torch

    config = composite_config(model_type, save_tokenizer(folder), layers, **more)
    torch.manual_seed(seed)
    network: Any = whole_class(config)
    model = network._from_config(config, dtype=getattr(torch, dtype))
    enlarge(model)
    model.save_pretrained(folder)
    return folder
