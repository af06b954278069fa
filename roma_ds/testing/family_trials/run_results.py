"""What a run of a tiny model left on disk, and what a network of ours makes of the same checkpoint."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.checkpoint.blueprint import blueprint
from roma_ds.checkpoint.loading import load_config, load_tokenizer
from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.config import ModelConfig
from roma_ds.data.store import load_samples
from roma_ds.families import MoELayout, detect, family_of
from roma_ds.families.entering import Entering
from roma_ds.network.routed import RoutedLM
from roma_ds.prefix.cache_plan import read_plan
from roma_ds.prefix.prefix_cache import PrefixCache
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Encoded, Prompt, encode
from roma_ds.storage.atomic import read_parquet

CPU = torch.device("cpu")
MAX_TOKENS = 1024


@dataclass(frozen=True)
class Run:
    """A finished run."""

    out: Path
    """Its folder."""
    model: ModelConfig
    said: str
    """Standard output of its command."""

    @cached_property
    def layout(self) -> MoELayout:
        """The model's routers."""
        return blueprint(self.model).layout

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Numbers of those that were trained."""
        return tuple(sorted(self.router_weights()))

    @property
    def trained_on_cache(self) -> bool:
        """Whether a training step ran the layers from the first trained one on alone."""
        return "on cached hidden states" in self.said

    @property
    def routing(self) -> NDArray[np.float32]:
        """[samples, MoE layers, E], as collected."""
        found: NDArray[np.float32] = np.load(self.out / "collect" / "routing.npy").astype(np.float32)
        return found

    @property
    def losses(self) -> NDArray[np.float64]:
        """[samples], as collected."""
        return np.array(read_parquet(self.out / "collect" / "outcome.parquet")["loss"], np.float64)

    @property
    def step_losses(self) -> NDArray[np.float64]:
        """[steps], as logged."""
        lines = (self.out / "train" / "metrics.jsonl").read_text("utf-8").splitlines()
        return np.array([json.loads(line)["loss"] for line in lines], np.float64)

    @property
    def routers(self) -> dict[str, NDArray[np.float32]]:
        """Trained weights [rows, width] by checkpoint key."""
        weights = read_router_file(self._router_file).weights
        return {key: weight.numpy() for key, weight in weights.items()}

    def router_weights(self) -> dict[int, torch.Tensor]:
        """The same by layer number."""
        return read_router_file(self._router_file).by_layer()

    @property
    def _router_file(self) -> Path:
        return self.out / "train" / "router.safetensors"

    def options(self, variant: str) -> list[NDArray[np.float64]]:
        """Log-likelihoods of the options of each evaluated sample."""
        columns = read_parquet(self.out / "eval" / f"{variant}.samples.parquet")
        return [np.array(values, np.float64) for values in columns["option_loglikelihoods"]]

    def prompts(self, name: str) -> list[Prompt]:
        """The samples of a file of the data stage, as token ids."""
        samples, tokenizer = load_samples(self.out / "data" / name), load_tokenizer(self.model)
        return encode(samples, tokenizer, MAX_TOKENS)

    def cache(self, part: str) -> PrefixCache:
        """That of `collect` or `eval`."""
        folder = self.out / part / "prefix"
        return PrefixCache(folder, *read_plan(folder))

    def table(self, part: str) -> dict[str, NDArray[np.float64]]:
        """What the cache holds of all tokens [T, ...], by the name of the layer's argument."""
        cache = self.cache(part)
        values = self.entering().unpack(cache.read(range(len(cache.plan.lengths))))
        return {name: value.double().numpy() for name, value in values.items()}

    def entering(self) -> Entering:
        """What the cache of the collection holds of a token."""
        first = self.cache("collect").plan.first_layer
        return self.layout.family.entering(load_config(self.model), first, self.model.dtype)


def largest_difference(one: Any, other: Any) -> float:
    """Of arrays, or lists or dicts of them, with the same keys and shapes; NaN counts as infinity.

    Raises ValueError for other keys or shapes.
    """
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            raise ValueError(f"{sorted(one)} beside {sorted(other)}")
        return max(largest_difference(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return max(largest_difference(*pair) for pair in zip(one, other, strict=True))
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} beside {second.shape}")
    difference = float(np.abs(first - second).max(initial=0.0))
    return difference if difference == difference else float("inf")


def share_beyond(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], limit: float) -> float:
    """Share of the values in arrays of the same keys and shapes that differ by more than a limit."""
    beyond = sum(int((np.abs(one[key] - other[key]) > limit).sum()) for key in one)
    return beyond / sum(values.size for values in one.values())


def tensors(folder: Path, keys: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Tensors of a checkpoint by key; all, or these."""
    from safetensors.numpy import load_file

    found: dict[str, NDArray[Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found if keys is None else {key: found[key] for key in keys}


def changed_tensors(base: Path, merged: Path) -> set[str]:
    """Keys of the tensors whose bits are not the same in two checkpoints, or that one of them lacks."""
    before, after = tensors(base), tensors(merged)
    both = before.keys() & after.keys()
    same = {key for key in both if before[key].tobytes() == after[key].tobytes()}
    return (before.keys() | after.keys()) - same


def _whole(model: ModelConfig) -> RoutedLM:
    depth = family_of(load_config(model)).depth(load_config(model))
    network = load_span(model, Span.suffix(0, depth), None, CPU)
    layout = detect(network)
    return RoutedLM(network, layout, layout.layers).attach()


def network_logits(
    model: ModelConfig, routers: Mapping[int, torch.Tensor], prompts: Sequence[Sequence[int]]
) -> list[NDArray[np.float32]]:
    """Of our network with these routers, float32 [V] behind each prompt, all of them in one batch."""
    routed = _whole(model)
    with torch.no_grad():
        for layer, weight in routed.routers().items():
            if layer in routers:
                weight.copy_(routers[layer])
        sequences = [Encoded(row, tuple(prompt), (0,)) for row, prompt in enumerate(prompts)]
        output = routed(**collate(sequences, "last1").inputs(CPU))
    return list(output.logits.numpy())


def parts_that_learn(model: ModelConfig, layers: Collection[int]) -> tuple[set[str], set[str]]:
    """Names of what two updates change in a whole network whose routers of `layers` learn, and of these.

    Buffers count as well: some change in a forward pass.
    """
    routed = _whole(model)
    network = routed.network
    chosen = [weight.requires_grad_(True) for layer, weight in routed.routers().items() if layer in layers]
    wanted = {name for name, value in network.named_parameters() if any(value is one for one in chosen)}
    before = {name: value.detach().clone() for name, value in _everything(network)}
    optimizer = torch.optim.AdamW(chosen, lr=0.01)
    batch = collate([Encoded(0, (5, 6, 7, 8, 9, 10, 11), (12,)), Encoded(1, (20, 21), (22, 23))], "last1")
    for _ in range(2):
        output = routed(**batch.inputs(CPU))
        loss = torch.nn.functional.cross_entropy(output.logits, batch.answer_ids)
        optimizer.zero_grad()
        (loss + output.routing.square().sum()).backward()
        optimizer.step()
    return {name for name, value in _everything(network) if not torch.equal(value, before[name])}, wanted


def _everything(network: Any) -> list[tuple[str, torch.Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]
