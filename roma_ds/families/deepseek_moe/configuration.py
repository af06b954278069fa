"""Config of DeepSeekMoE; every default is the published value of the 16B model."""

# No postponed annotations here: `strict` checks values against the types that it finds on the class.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class DeepseekConfig(PreTrainedConfig):
    """What `config.json` of a DeepSeekMoE checkpoint holds (`model_type` `deepseek`).

    Sources: DeepSeekMoE, arXiv 2401.06066, appendix A, for the sizes, and the config.json of
    deepseek-ai/deepseek-moe-16b-base for the names. Raises ValueError where values contradict each other.
    """

    model_type = "deepseek"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {"num_experts": "n_routed_experts"}  # noqa: RUF012 - transformers reads it from the class

    vocab_size: int = 102400
    """Tokens of the vocabulary."""
    hidden_size: int = 2048
    """Width of the hidden states."""
    intermediate_size: int = 10944
    """Width of the MLP in dense layers."""
    moe_intermediate_size: int = 1408
    """Width of one expert."""
    num_hidden_layers: int = 28
    """Decoder layers, dense ones too."""
    num_attention_heads: int = 16
    """Query heads."""
    num_key_value_heads: int | None = 16
    """Key and value heads; null: as many as query heads."""
    head_dim: int | None = None
    """Width of a head; null: hidden_size / num_attention_heads."""
    n_routed_experts: int = 64
    """Routed experts of a sparse layer."""
    n_shared_experts: int | None = 2
    """Experts that every token goes to; null or 0: none."""
    num_experts_per_tok: int = 6
    """Routed experts that a token goes to."""
    norm_topk_prob: bool = False
    """Whether the scores of the chosen experts are divided by their sum."""
    scoring_func: str = "softmax"
    """How router logits become scores; `softmax` is the only one."""
    first_k_dense_replace: int = 1
    """Layers at the start that are dense."""
    moe_layer_freq: int = 1
    """Of the layers behind those, the ones whose number it divides are sparse; 1 is the only value."""
    hidden_act: str = "silu"
    """Activation in MLPs and experts."""
    max_position_embeddings: int = 4096
    """Tokens of the longest sequence."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in norms."""
    rope_parameters: dict[str, Any] | None = None
    """Of the rotary embedding; transformers makes it from `rope_theta` (10,000) and `rope_scaling`."""
    attention_bias: bool = False
    """Whether attention projections have a bias."""
    attention_dropout: float | int = 0.0
    """Share of attention weights dropped in training mode."""
    mlp_bias: bool = False
    """Whether dense MLPs and shared experts have a bias."""
    initializer_range: float = 0.02
    """Standard deviation of random weights."""
    use_cache: bool = True
    """Whether generation keeps keys and values."""
    tie_word_embeddings: bool = False
    """Whether the head is the token embedding."""
    pad_token_id: int | None = None
    """Number of the padding token."""
    bos_token_id: int | None = 100000
    """Number of the token that starts a text."""
    eos_token_id: int | list[int] | None = 100001
    """Number of the token that ends a text."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what null stands for."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """transformers calls it on every new config. Raises ValueError."""
        if self.scoring_func != "softmax":
            raise ValueError(f"scoring_func is {self.scoring_func!r}; this architecture scores by softmax")
        if self.moe_layer_freq != 1:
            raise ValueError(f"moe_layer_freq is {self.moe_layer_freq}; no published model has any but 1")
        if getattr(self, "kv_lora_rank", None):
            raise ValueError("kv_lora_rank asks for latent attention, which model_type deepseek_v2 has")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, and there are "
                f"{self.n_routed_experts} routed experts"
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether decoder layer `layer` has routed experts."""
        return layer >= self.first_k_dense_replace
