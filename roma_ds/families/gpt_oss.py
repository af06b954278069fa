"""GPT-OSS: 32 or 128 routed experts, top-4, a softmax over the selected; attention sinks, windows."""

from roma_ds.families.capability import Limit
from roma_ds.families.family import Family

FAMILY = Family(
    name="GPT-OSS",
    model_types=("gpt_oss",),
    router_class="GptOssTopKRouter",
    gate_key="model.layers.{layer}.mlp.router.weight",
    experts_attribute="num_local_experts",
    selection="top-k of the logits, which have a bias; weighed by a softmax over the selected",
    frozen_router_parts=("bias",),
    limits=(Limit("load", "experimental", "the published weights are MXFP4: a copy in bfloat16 is needed"),),
)
