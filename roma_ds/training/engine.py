"""The DeepSpeed engine in which only the chosen routers are trainable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from roma_ds.backbone.batches import Batch
from roma_ds.backbone.blueprint import blueprint
from roma_ds.backbone.frozen import is_zero3, load_part
from roma_ds.backbone.release import release, return_freed_memory
from roma_ds.backbone.routed import RoutedLM, RoutedOutput, exact_buffers
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.config.deepspeed_keys import AUTO

MOMENTS = ("exp_avg", "exp_avg_sq")


def count_parameters(parameters: Any) -> int:
    """Number of weights, also where ZeRO-3 shows a shape of (0,)."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def with_readable_masters(ds: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config, at stage 1 where it asks for bf16 at stage 0.

    At stage 0 DeepSpeed keeps fp32 masters that cannot be read; stage 1 gives the same numbers.
    """
    zero = ds.get("zero_optimization", {})
    if not ds.get("bf16", {}).get("enabled") or zero.get("stage"):
        return dict(ds)
    # Its own default is a buffer of 1 GB for the gradients of routers that take a few MB.
    bucket = {"reduce_bucket_size": AUTO["zero_optimization.reduce_bucket_size"]}
    return {**ds, "zero_optimization": {**bucket, **zero, "stage": 1}}


class RouterEngine:
    """A model whose routers of `run.roma.layers` learn under the ZeRO stage of a resolved config."""

    def __init__(self, world: World, run: RunConfig, ds: Mapping[str, Any], first: int | None = None) -> None:
        """first: train the part from this layer on, on cached hidden states."""
        import deepspeed

        self.world = world
        self.partitioned = is_zero3(ds)
        config = with_readable_masters(ds)
        with agreement(world):
            whole = blueprint(run.model)
            self.layers = whole.layout.choose(run.roma.layers)
        zero3 = config if self.partitioned else None
        network, self.layout = load_part(world, run.model, whole.depth, first, zero3)
        self.routed = RoutedLM(network, self.layout, self.layers, first or 0)
        self.routers = self.routed.routers()
        for weight in self.routers.values():
            weight.requires_grad_(True)
        self.trainable_parameters = count_parameters(self.routers.values())
        self.cached = first is not None
        self.held_parameters = count_parameters(network.parameters())
        self.total_parameters = whole.total_parameters
        self.adamw = torch.optim.AdamW(
            list(self.routers.values()), lr=run.train.lr, weight_decay=run.train.weight_decay
        )
        with exact_buffers(self.routed):
            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=self.routed,
                optimizer=self.adamw,
                model_parameters=list(self.routers.values()),
                config=config,
            )
        # Dropout is off in the frozen network: collected and live routing must be the same function.
        self.engine.module.eval()
        self.routed.attach()

    def forward(self, batch: Batch) -> RoutedOutput:
        """One forward pass through the engine."""
        output: RoutedOutput = self.engine(**batch.inputs(self.world.device))
        return output

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss` [scalar]; with `last`, reduce it over the ranks (a mean)."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip, update the routers, clear gradients. Returns the norm of the gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self.optimizer is self.adamw:
            norm = torch.linalg.vector_norm(
                torch.stack(
                    [torch.linalg.vector_norm(weight.grad.float()) for weight in self._with_gradient()]
                )
            )
        self.engine.step()
        if norm is None:
            norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def _with_gradient(self) -> Sequence[Any]:
        return [weight for weight in self.routers.values() if weight.grad is not None]

    def masters(self) -> dict[int, torch.Tensor]:
        """Router weights by layer, float32 [experts, hidden] on the CPU. A collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        if self.optimizer is self.adamw:
            found = {layer: weight.detach() for layer, weight in self.routers.items()}
        else:
            found = {layer: safe_get_full_fp32_param(weight) for layer, weight in self.routers.items()}
        return {layer: value.float().cpu().clone() for layer, value in found.items()}

    def moments(self) -> dict[str, dict[int, torch.Tensor]]:
        """AdamW's first and second moments by layer, float32 on the CPU. A collective, after a step."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, dict[int, torch.Tensor]] = {}
        for name in MOMENTS:
            if self.optimizer is self.adamw:
                values = {layer: self.adamw.state[weight][name] for layer, weight in self.routers.items()}
            else:
                values = {
                    layer: safe_get_full_optimizer_state(weight, name)
                    for layer, weight in self.routers.items()
                }
            found[name] = {layer: value.float().cpu().clone() for layer, value in values.items()}
        return found

    def restore(
        self,
        masters: Mapping[int, torch.Tensor],
        moments: Mapping[str, Mapping[int, torch.Tensor]],
        step: int,
    ) -> None:
        """Put weights and optimizer state in place as they were after `step` updates. A collective."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        device = self.world.device
        for flat in self._optimized_tensors():
            state = self.adamw.state[flat]
            state["step"] = torch.tensor(float(step))
            for name in MOMENTS:
                state[name] = torch.zeros_like(flat)
        wrapped = self.optimizer is not self.adamw
        if wrapped and hasattr(self.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for layer, weight in self.routers.items():
            value = masters[layer].to(device)
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=self.partitioned):
                if not self.partitioned or self.world.is_first:
                    weight.data.copy_(value)
            if wrapped:
                safe_set_full_fp32_param(weight, value)
            for name in MOMENTS:
                moment = moments[name][layer].to(device)
                if wrapped:
                    safe_set_full_optimizer_state(weight, moment, name)
                else:
                    self.adamw.state[weight][name].copy_(moment)

    def _optimized_tensors(self) -> Sequence[torch.Tensor]:
        """What AdamW keeps its state for: flat fp32 partitions under ZeRO and bf16, else the routers."""
        for name in (
            "fp32_partitioned_groups_flat",
            "single_partition_of_fp32_groups",
            "fp32_groups_flat_partition",
        ):
            flat = getattr(self.optimizer, name, None)
            if flat is not None:
                return list(flat)
        return list(self.routers.values())

    def write_events(self, events: Sequence[tuple[str, float, int]]) -> None:
        """Send scalars to the monitors that the DeepSpeed JSON names (rank 0 writes)."""
        if self.engine.monitor.enabled and self.world.is_first:
            self.engine.monitor.write_events(list(events))

    def close(self) -> None:
        """Release hooks, buffers and weights of the engine."""
        self.engine.destroy()
        release(self.routed)
        return_freed_memory()
