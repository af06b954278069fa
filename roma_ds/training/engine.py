"""The DeepSpeed engine in which only the chosen routers are trainable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.checkpoint.blueprint import blueprint
from roma_ds.checkpoint.stored.kept_experts import hidden_weights
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.config.deepspeed_keys import AUTO
from roma_ds.frozen_pass.frozen_model import is_zero3, load_part
from roma_ds.network.buffers import exact_buffers
from roma_ds.network.release import release, return_freed_memory
from roma_ds.network.routed import RoutedLM, RoutedOutput
from roma_ds.sequences.batches import Batch
from roma_ds.training.gate_rounding import GateRounding

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


def count_parameters(parameters: Any) -> int:
    """Number of weights, also where ZeRO-3 shows a shape of (0,)."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def with_readable_masters(ds: Mapping[str, Any], apart: bool = False) -> dict[str, Any]:
    """A resolved config, at stage 1 where it asks for bf16 at stage 0, or `apart` asks for masters.

    At stage 0 DeepSpeed keeps fp32 masters that cannot be read, and in fp32 none; stage 1 gives the same
    numbers.
    """
    zero = ds.get("zero_optimization", {})
    if not (apart or ds.get("bf16", {}).get("enabled")) or zero.get("stage"):
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
        config = with_readable_masters(ds, run.train.gate_dtype != "float32")
        with agreement(world):
            whole = blueprint(run.model)
            self.layers = whole.layout.choose(run.roma.layers)
            self.depth, self.sparse_layers = whole.depth, whole.layout.layers
        zero3 = config if self.partitioned else None
        network, self.layout = load_part(world, run.model, whole.depth, first, zero3, stored=True)
        with agreement(world):
            self._rounding = GateRounding.asked(run, self.layout)
        self.routed = RoutedLM(network, self.layout, self.layers, first or 0)
        self.routers = self.routed.routers()
        for weight in self.routers.values():
            weight.requires_grad_(True)
        self.trainable_parameters = count_parameters(self.routers.values())
        self.cached = first is not None
        self.held_parameters = count_parameters(network.parameters()) + hidden_weights(network)
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
        self._monitored = bool(self.engine.monitor.enabled) and world.is_first
        # DeepSpeed's own two curves count samples where ours count steps: W&B drops what comes at a step
        # below the last one it saw.
        self.engine.monitor.enabled = False
        # Dropout is off in the frozen network: collected and live routing must be the same function.
        self.engine.module.eval()
        self.routed.attach()
        self.updates = 0
        """Steps so far that changed the routers"""

    def forward(self, batch: Batch) -> RoutedOutput:
        """One forward pass through the engine."""
        output: RoutedOutput = self.engine(**batch.inputs(self.world.device))
        return output

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss` [scalar]; with `last`, reduce it over the ranks (a mean)."""
        # An infinite loss may have a finite gradient: as NaN it stops the update, on every rank.
        factor = torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
        self.engine.set_gradient_accumulation_boundary(last)
        self._start_backward_timers()
        self.engine.backward(loss * factor, scale_wrt_gas=False)

    def _start_backward_timers(self) -> None:
        """DeepSpeed stops them after its backward pass, and starts them in hooks on the root's outputs.

        The root's output is opaque to it (see `RoutedOutput`), so that nothing would start them.
        """
        timers = self.engine.engine_timers
        for name in (*timers.backward_timers, *timers.backward_inner_timers):
            self.engine.timers(name).start()

    def step(self, learning_rate: float) -> float:
        """Clip, update the routers, clear gradients. Returns the norm of the gradient before clipping.

        Where the norm is not finite nothing is updated; as it is that of all ranks together, on none of them.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.optimizer is self.adamw:
            norm = self._own_norm()
            if math.isfinite(norm):
                self.engine.step()
            else:
                self.engine.zero_grad()
        else:
            # DeepSpeed's own optimizers skip such a step by themselves.
            self.engine.step()
            found = self.engine.get_global_grad_norm()
            norm = float(found) if found is not None else float("nan")
        self.updates += math.isfinite(norm)
        self._round()
        return norm

    def _round(self) -> None:
        if self._rounding is not None:
            self._rounding.apply(self.routers)

    def as_seen(self, masters: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """What a forward pass sees of router weights by layer, float32 [experts, hidden]."""
        return dict(masters) if self._rounding is None else self._rounding.rounded(masters)

    def _own_norm(self) -> float:
        norms = [torch.linalg.vector_norm(weight.grad.float()) for weight in self._with_gradient()]
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def _with_gradient(self) -> Sequence[Any]:
        return [weight for weight in self.routers.values() if weight.grad is not None]

    def masters(self) -> dict[int, torch.Tensor]:
        """Router weights by layer, float32 [experts, hidden] on the CPU. A collective."""
        return {
            layer: self._full(MASTER, weight).float().cpu().clone() for layer, weight in self.routers.items()
        }

    def state_entries(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Type and shape of what `state_arrays` gives, by name, in its order."""
        shapes = {
            layer: tuple(getattr(weight, "ds_shape", weight.shape)) for layer, weight in self.routers.items()
        }
        return {f"{name}.{layer}": (np.float32, shapes[layer]) for name, layer in self._state_names()}

    def state_arrays(self) -> Iterator[tuple[str, NDArray[np.float32] | None]]:
        """Router weights and AdamW's moments, each [experts, hidden], one at a time; None but on rank 0.

        A collective, after a step: every rank goes through all of it.
        """
        for name, layer in self._state_names():
            value = self._full(name, self.routers[layer])
            yield f"{name}.{layer}", value.float().cpu().numpy() if self.world.is_first else None

    def _state_names(self) -> list[tuple[str, int]]:
        return [(name, layer) for name in (MASTER, *MOMENTS) for layer in self.routers]

    def _full(self, name: str, weight: Any) -> torch.Tensor:
        """The float32 master of a router or one of its moments, whole on every rank. A collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.optimizer is self.adamw:
            found = weight.detach() if name == MASTER else self._moment(weight, name)
        elif name == MASTER:
            found = safe_get_full_fp32_param(weight)
        elif self.updates:
            found = safe_get_full_optimizer_state(weight, name)
        else:
            found = torch.zeros(tuple(getattr(weight, "ds_shape", weight.shape)))
        value: torch.Tensor = found
        return value

    def _moment(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """Before the first update AdamW has none."""
        value: torch.Tensor = self.adamw.state[weight].get(name, torch.zeros_like(weight))
        return value

    def allocate_moments(self) -> None:
        """What AdamW would allocate with the first update, where DeepSpeed has not done so."""
        for flat in self._optimized_tensors():
            state = self.adamw.state[flat]
            if MOMENTS[0] not in state:
                state |= {"step": torch.tensor(0.0)} | {name: torch.zeros_like(flat) for name in MOMENTS}

    def restore(self, read: Callable[[str], NDArray[np.float32]], updates: int) -> None:
        """Put weights and optimizer state in place as they were after `updates` updates. A collective.

        read: gives what `state_arrays` gave, by name, on every rank; asked for each name in the same order
        on all of them, one at a time.
        """
        import deepspeed

        self.updates = updates
        for flat in self._optimized_tensors():
            state = self.adamw.state[flat]
            state["step"] = torch.tensor(float(updates))
            for name in MOMENTS:
                state[name] = torch.zeros_like(flat)
        wrapped = self.optimizer is not self.adamw
        if wrapped and hasattr(self.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, layer in self._state_names():
            weight = self.routers[layer]
            value = torch.from_numpy(read(f"{name}.{layer}")).to(self.world.device)
            if name == MASTER:
                with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=self.partitioned):
                    if not self.partitioned or self.world.is_first:
                        weight.data.copy_(value)
            if wrapped:
                self._set_full(name, weight, value)
            elif name != MASTER:
                self.adamw.state[weight][name].copy_(value)
        self._round()

    def _set_full(self, name: str, weight: Any, value: torch.Tensor) -> None:
        """The counterpart of `_full` under DeepSpeed's optimizers; value: float32, whole on every rank."""
        from deepspeed import utils

        if not self.partitioned:
            if name == MASTER:
                utils.safe_set_full_fp32_param(weight, value)
            else:
                utils.safe_set_full_optimizer_state(weight, value, name)
            return
        # DeepSpeed cuts a whole value without the padding that it gives to a number of ranks that does not
        # divide it, and fails on the last rank.
        size = weight.partition_numel()
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self.world.size - value.numel()))
        mine = padded[size * self.world.rank : size * (self.world.rank + 1)]
        if name == MASTER:
            utils.safe_set_local_fp32_param(weight, mine)
        else:
            utils.safe_set_local_optimizer_state(weight, mine, name)

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
        if self._monitored:
            self.engine.monitor.write_events(list(events))

    def close(self) -> None:
        """Release hooks, buffers and weights of the engine."""
        self.engine.destroy()
        release(self.routed)
        return_freed_memory()
