"""JetMoE: 8 experts, top-2; attention is a mixture of experts too, whose own router stays as it is."""

from roma_ds.families.capability import Limit
from roma_ds.families.family import Family

FAMILY = Family(
    name="JetMoE",
    model_types=("jetmoe",),
    router_class="JetMoeTopKGating",
    place="mlp.router",
    weight="layer",
    logits_from="product",
    indices_at=None,
    norm_class="JetMoeRMSNorm",
    gate_key="model.layers.{layer}.mlp.router.layer.weight",
    experts_attribute="num_local_experts",
    selection="top-k of the logits, weighed by a softmax over the selected",
    attention="self_attention",
    mixing="rows",
    row_modules=("mlp",),
    limits=(
        Limit(
            "route",
            "experimental",
            "a layer has a second router, of attention heads: r is that of the MLP, which alone is trained",
        ),
    ),
)
