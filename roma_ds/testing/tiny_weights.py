"""Random weights under which everything that a model reads shows in what it gives."""

from __future__ import annotations

from typing import Any

ROUTERS = ("gate.weight", "router.weight")

OTHER_ROUTERS = (
    *("gate.wg.weight", "router.classifier.weight", "router.layer.weight", "router.proj.weight"),
    *(
        "gate.down_proj.weight",
        "router_mlp.fc1.weight",
        "router_mlp.fc2.weight",
        "router_mlp.out_proj.weight",
    ),
)
"""How routers' weights end that some families keep in a module of the router's own."""

BIASES = ("_bias", ".bias", ".sinks")

OTHER_BIASES = ("_biases",)

SCALES = ("_scalar",)
"""How buffers end that checkpoints bring values of: others, as decays, are computed and stay."""

TABLES = (".tid2eid",)
"""How buffers end that name the experts of each token [V, k], beside the router's weight [E, H]."""

FEW = 16
"""Values that a tensor drawn at random has more of."""


def enlarge(model: Any, everything: bool = True) -> None:
    """Draw routers larger than the usual initialisation, and what is constant at first at random; in place.

    everything: not only routers named by `ROUTERS`, biases and sinks, but norms, scales and tables of tokens'
    experts as well.
    """
    import torch

    for name, parameter in model.named_parameters():
        # Larger routers than the usual initialisation: routing far from uniform tests more.
        if name.endswith(ROUTERS + OTHER_ROUTERS * everything):
            torch.nn.init.normal_(parameter, std=0.5)
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        # Zero at first, and then nothing would show whether they are read.
        if name.endswith(BIASES + OTHER_BIASES * everything):
            torch.nn.init.normal_(values, std=0.2)
        # The class that skips: stock transformers sets its bias to -1 whatever a checkpoint says.
        if name.endswith("balancing_biases"):
            values.data[-1] = -1.0
    if everything:
        _vary_constants(model)


def _vary_constants(model: Any) -> None:
    """Add noise to parameters of few values: what is one, zero or alike for all would hide a fault."""
    import torch

    learned = [
        *model.parameters(),
        *(values for name, values in model.named_buffers() if name.endswith(SCALES)),
    ]
    with torch.no_grad():
        for values in learned:
            if values.unique().numel() <= min(FEW, max(1, values.numel() // 2)):
                values.add_(torch.randn(values.shape).to(values.dtype), alpha=0.2)
        for name, table in model.named_buffers():
            if name.endswith(TABLES):
                experts = len(model.get_parameter(name.rpartition(".")[0] + ".weight"))
                table.copy_(torch.rand(len(table), experts).argsort()[:, : table.shape[1]])
