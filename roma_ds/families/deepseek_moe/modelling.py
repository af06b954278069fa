"""DeepSeekMoE (arXiv 2401.06066, section 3), which transformers has no class for.

Attention, norms, rotary embedding and MLPs are the library's; own are the router, the sparse block, and what
puts them together. Parameter names give the keys of the published checkpoints.

Shapes: B sequences, L tokens of each, T = B * L, H hidden, E routed experts, k experts a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts, DeepseekV2MLP
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from roma_ds.families.deepseek_moe.configuration import DeepseekConfig


class DeepseekRouter(nn.Module):
    """Softmax over all experts in float32, then the k largest; renormalised where the config says so."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.renormalised = config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[.., H] -> logits [T, E] and scores [T, k] of the same dtype, indices int64 [T, k]."""
        logits = F.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), self.weight)
        scores, indices = torch.softmax(logits, dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        if self.renormalised:
            scores = scores / scores.sum(dim=-1, keepdim=True)
        return logits, scores.to(logits.dtype), indices


class DeepseekSparseBlock(nn.Module):
    """The weighted sum of the chosen routed experts, plus the shared experts."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = DeepseekRouter(config)
        self.experts = DeepseekV2Experts(config)
        # Checkpoints hold the shared experts as one MLP: gated sums of several are that of one, side by side.
        self.shared_experts = (
            DeepseekV2MLP(config, intermediate_size=config.moe_intermediate_size * config.n_shared_experts)
            if config.n_shared_experts
            else None
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, L, H] -> the same shape and dtype."""
        _, scores, indices = self.gate(hidden_states)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        result: torch.Tensor = self.experts(tokens, indices, scores).reshape(hidden_states.shape)
        return result if self.shared_experts is None else result + self.shared_experts(hidden_states)


class DeepseekDecoderLayer(LlamaDecoderLayer):
    """Attention, then a dense MLP or a sparse block, each behind a norm and added to what went in."""

    def __init__(self, config: DeepseekConfig, layer_idx: int) -> None:
        # Not LlamaDecoderLayer's own, which would make a dense MLP first.
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = LlamaAttention(config, layer_idx)
        self.mlp = DeepseekSparseBlock(config) if config.is_sparse(layer_idx) else DeepseekV2MLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class DeepseekPreTrainedModel(LlamaPreTrainedModel):
    """What transformers asks of each model class."""

    config_class = DeepseekConfig
    _no_split_modules = ("DeepseekDecoderLayer",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        own = {DeepseekRouter: ("weight",), DeepseekV2Experts: ("gate_up_proj", "down_proj")}
        for name in own.get(type(module), ()):
            initialization.normal_(module.get_parameter(name), mean=0.0, std=self.config.initializer_range)


class DeepseekModel(DeepseekPreTrainedModel, LlamaModel):
    """Token ids or embeddings to the last hidden states, after the final norm."""

    def __init__(self, config: DeepseekConfig) -> None:
        # Not LlamaModel's own, which would make dense layers first.
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            DeepseekDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class DeepseekForCausalLM(DeepseekPreTrainedModel, LlamaForCausalLM):
    """The whole model; the class name is the one in published configs (`architectures`)."""

    def __init__(self, config: DeepseekConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def conversion_rules() -> list[Any]:
    """transformers' rules between published checkpoints, one tensor an expert, and stacked experts."""
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    one = "mlp.experts.*.{}_proj.weight"
    return [
        WeightConverter(
            source_patterns=[one.format("gate"), one.format("up")],
            target_patterns="mlp.experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            source_patterns=one.format("down"),
            target_patterns="mlp.experts.down_proj",
            operations=[MergeModulelist(dim=0)],
        ),
    ]
