"""How llama.cpp routes the families that it knows, by the names that GGUF files have for them.

A GGUF file has the routers' weights. Whether the weights of the chosen experts are divided by their sum is in
llama.cpp's own code for most architectures, and no key of the file. Read in its source of 2026 (the calls of
`build_moe_ffn` below src/models); `olmoe`, `qwen3moe` and `deepseek2` were run too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Renormalised = Literal["always", "never", "by the file"]


@dataclass(frozen=True)
class LlamaCppRouting:
    """An architecture of llama.cpp."""

    families: tuple[str, ...]
    """Names of our families that are converted to it."""
    renormalised: Renormalised
    """Whether the weights of the chosen experts are divided by their sum: in the code, or by the key
    `expert_weights_norm` of the file."""
    otherwise: str = ""
    """What it does otherwise than the library, in words; empty where nothing is known."""


ROUTING = {
    "olmoe": LlamaCppRouting(("OLMoE",), "never", "`norm_topk_prob` of the config is not read"),
    "qwen2moe": LlamaCppRouting(("Qwen2-MoE",), "never", "`norm_topk_prob` of the config is not read"),
    "qwen3moe": LlamaCppRouting(("Qwen3-MoE",), "always", "`norm_topk_prob` of the config is not read"),
    "qwen3next": LlamaCppRouting(("Qwen3-Next",), "always", "`norm_topk_prob` of the config is not read"),
    "qwen35moe": LlamaCppRouting(("Qwen3.5-MoE",), "always"),
    "llama": LlamaCppRouting(("Mixtral",), "always"),
    "granitemoe": LlamaCppRouting(("Granite-MoE",), "always"),
    "granitehybrid": LlamaCppRouting(("Granite-4",), "always"),
    "phimoe": LlamaCppRouting(
        ("PhiMoE",),
        "always",
        "the chosen experts share one softmax; the library weighs each of two by its own",
    ),
    "deepseek": LlamaCppRouting(("DeepSeekMoE",), "never"),
    "deepseek2": LlamaCppRouting(
        ("DeepSeek-V2", "DeepSeek-V3", "GLM-4.7-Flash"),
        "by the file",
        "of DeepSeek-V2 with groups, groups are chosen by their two largest scores; the library takes the "
        "largest alone",
    ),
    "deepseek32": LlamaCppRouting(("DeepSeek-V3.2",), "by the file"),
    "glm4moe": LlamaCppRouting(("GLM-4-MoE", "Solar-Open"), "by the file"),
    "ernie4_5-moe": LlamaCppRouting(("Ernie-4.5-MoE",), "always"),
    "gpt-oss": LlamaCppRouting(("GPT-OSS",), "always", "by a softmax over the chosen logits"),
    "dbrx": LlamaCppRouting(("DBRX",), "always", "`moe_normalize_expert_weights` of the config is not read"),
    "minimax-m2": LlamaCppRouting(("MiniMax-M2",), "always"),
    "kimi-linear": LlamaCppRouting(("Kimi-Linear",), "always", "`norm_topk_prob` of the config is not read"),
    "lfm2moe": LlamaCppRouting(("LFM2-MoE",), "always", "`norm_topk_prob` of the config is not read"),
    "nemotron_h_moe": LlamaCppRouting(("Nemotron-H",), "by the file"),
    "hunyuan-moe": LlamaCppRouting(("Hunyuan",), "always"),
    "exaone-moe": LlamaCppRouting(("EXAONE-MoE",), "by the file"),
    "llama4": LlamaCppRouting(("Llama-4",), "never"),
    "gemma4": LlamaCppRouting(("Gemma-4-MoE",), "always"),
    "dots1": LlamaCppRouting(("dots1",), "by the file"),
    "afmoe": LlamaCppRouting(("AFMoE",), "by the file"),
    "jamba": LlamaCppRouting(("Jamba",), "never"),
}
"""By `general.architecture`."""
_WORDS = {
    "always": "divides the weights of the chosen experts by their sum, in its own code",
    "never": "leaves the weights of the chosen experts as they are, in its own code",
    "by the file": "divides the weights of the chosen experts by their sum where the file's "
    "expert_weights_norm says so",
}


def routing_line(architecture: str) -> str:
    """What is known of an architecture's routing in llama.cpp, in one line."""
    known = ROUTING.get(architecture)
    if known is None:
        return f"how llama.cpp routes {architecture} has not been looked up here: compare it with the library"
    more = f" ({known.otherwise})" if known.otherwise else ""
    return f"llama.cpp runs {architecture} so: it {_WORDS[known.renormalised]}{more}"
