"""Other weights in the routers of a network, and their own back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from roma_ds.comm import World, agreement
from roma_ds.errors import UserError
from roma_ds.families import RouterSite


class RouterWeights:
    """The routers of one network, whole or partitioned by ZeRO-3."""

    def __init__(
        self,
        world: World,
        routers: Mapping[int, torch.nn.Parameter],
        sites: Sequence[RouterSite],
        partitioned: bool,
    ) -> None:
        """routers: the parameters [rows, width] by layer number; sites: the same routers' sizes."""
        self.world, self.partitioned = world, partitioned
        self._routers = routers
        self._sites = {site.layer: site for site in sites}
        self._original: dict[int, torch.Tensor] = {}

    def use(self, weights: Mapping[int, torch.Tensor]) -> None:
        """Put router weights [experts, hidden] by layer number in place; other layers get back their own.

        Raises UserError when a layer or a shape does not fit this model. A collective under ZeRO-3.
        """
        with agreement(self.world):
            self._check(weights)
        self._write({layer: kept for layer, kept in self._original.items() if layer not in weights})
        self._write(weights)

    def _write(self, weights: Mapping[int, torch.Tensor]) -> None:
        import deepspeed

        for layer in sorted(weights):
            target = self._routers[layer]
            with deepspeed.zero.GatheredParameters([target], modifier_rank=0, enabled=self.partitioned):
                self._original.setdefault(layer, target.detach().to("cpu", copy=True))
                if not self.partitioned or self.world.is_first:
                    target.data.copy_(weights[layer].to(target.device, target.dtype))

    def _check(self, weights: Mapping[int, torch.Tensor]) -> None:
        for layer, weight in weights.items():
            if layer not in self._sites:
                raise UserError(
                    f"the router file has layer {layer}, the model has none", "use its own base model"
                )
            site = self._sites[layer]
            if tuple(weight.shape) != (site.rows, site.hidden):
                raise UserError(
                    f"the router of layer {layer} has shape {tuple(weight.shape)} in the router file and "
                    f"{(site.rows, site.hidden)} in the model",
                    "use the base model that the routers were trained on",
                )
