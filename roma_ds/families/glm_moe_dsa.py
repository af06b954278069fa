"""GLM-5: as DeepSeek-V3.2 without groups, and a layer may take the keys that the one before it chose."""

from dataclasses import replace

from roma_ds.families.deepseek_v32 import FAMILY as DEEPSEEK_V32
from roma_ds.families.entering import CHOSEN_KEYS
from roma_ds.families.sigmoid_groups import NOT_IN_THE_PAPER

FAMILY = replace(
    DEEPSEEK_V32,
    name="GLM-5",
    model_types=("glm_moe_dsa",),
    router_class="GlmMoeDsaTopkRouter",
    norm_class="GlmMoeDsaRMSNorm",
    carried=(CHOSEN_KEYS,),
    returned=(CHOSEN_KEYS.name,),
    limits=(NOT_IN_THE_PAPER,),
)
