"""Solar Open: 128 routed experts, top-8 by sigmoid, beside one shared, in every layer."""

from dataclasses import replace

from roma_ds.families.dense_layers import NoDenseLayers
from roma_ds.families.glm4_moe import FAMILY as GLM4_MOE

FAMILY = replace(
    GLM4_MOE,
    name="Solar-Open",
    model_types=("solar_open",),
    router_class="SolarOpenTopkRouter",
    norm_class="SolarOpenRMSNorm",
    dense=NoDenseLayers(),
)
