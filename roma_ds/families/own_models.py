"""Models that transformers has no class for, made known to its Auto classes."""

from __future__ import annotations

from functools import cache


@cache
def register_own_models() -> None:
    """Let AutoConfig, AutoModel and AutoModelForCausalLM take the models that this package implements.

    Call it before their `from_pretrained`. A class of ours goes before code that a checkpoint brings along.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    from roma_ds.families.deepseek_moe import modelling
    from roma_ds.families.deepseek_moe.configuration import DeepseekConfig

    AutoConfig.register(DeepseekConfig.model_type, DeepseekConfig, exist_ok=True)
    AutoModel.register(DeepseekConfig, modelling.DeepseekModel, exist_ok=True)
    AutoModelForCausalLM.register(DeepseekConfig, modelling.DeepseekForCausalLM, exist_ok=True)
    register_checkpoint_conversion_mapping(
        DeepseekConfig.model_type, modelling.conversion_rules(), overwrite=True
    )
