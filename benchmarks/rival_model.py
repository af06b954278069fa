"""What `rival_trainer.py` trains: a model that gives answers and live routing, and its targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from roma_ds.config import RunConfig
from roma_ds.families import detect
from roma_ds.index.neighbourhood import prompt_groups
from roma_ds.index.shard import Shard
from roma_ds.manifold.kernel import similarity
from roma_ds.manifold.weights import pull_targets, row_weights
from roma_ds.sequences.encoding import Prompt


class AnswerModel(nn.Module):
    """A causal LM that returns the logits of the token after each prompt, and live routing weights."""

    def __init__(self, network: Any, layers: Sequence[int], full_logits: bool) -> None:
        super().__init__()
        self.network = network
        self.config = network.config
        self.full_logits = full_logits
        self.sites = [site for site in detect(network).sites if site.layer in layers]
        self._router_logits: dict[int, torch.Tensor] = {}

    def routers(self) -> list[nn.Parameter]:
        """The weights to train."""
        return [self.network.get_parameter(f"{site.product}.weight") for site in self.sites]

    def listen(self) -> None:
        """Read the routers' outputs; after the engine is built, so that ZeRO-3's own hooks come first."""
        for site in self.sites:
            self.network.get_submodule(site.module).register_forward_hook(self._recorder(site.layer))

    def _recorder(self, layer: int) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._router_logits[layer] = output[0]

        return record

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, last: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits float32 [B, V] and routing float32 [B, M, E] at position `last` [B] of inputs [B, L]."""
        rows = torch.arange(len(last))
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if self.full_logits:
            logits = self.network(**inputs).logits.float()[rows, last]
        else:
            hidden = self.network.base_model(**inputs).last_hidden_state
            logits = self.network.get_output_embeddings()(hidden[rows, last].contiguous()).float()
        flat = rows * input_ids.shape[1] + last
        routing = [torch.softmax(self._router_logits[site.layer][flat].float(), -1) for site in self.sites]
        return logits, torch.stack(routing, dim=1)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad prompts on the right to the longest of them."""
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    width = int(lengths.max())
    ids = torch.zeros(len(items), width, dtype=torch.long)
    for place, item in enumerate(items):
        ids[place, : len(item["input_ids"])] = torch.tensor(item["input_ids"])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "last": lengths - 1,
        "answer": torch.tensor([item["answer"] for item in items]),
        "row": torch.tensor([item["row"] for item in items]),
    }


class Targets:
    """Where the manifold term pulls each training sample, computed once for all of them."""

    def __init__(
        self, run: RunConfig, folder: Path, prompts: Sequence[str], found: tuple[np.ndarray, ...]
    ) -> None:
        successful, routing = found
        embeddings = np.load(folder / "embed" / "embeddings.npy")
        groups = prompt_groups(prompts)
        index = Shard.of_successful(embeddings, successful, groups, run.index.backend)
        neighbours = index.nearest(embeddings, groups, run.roma.neighbours)
        weights = row_weights(similarity(neighbours.inner_products, run.roma.sigma), neighbours.present)
        mean, spread = pull_targets(weights, routing[np.maximum(neighbours.ids, 0)])
        self.neighbours = neighbours
        self.mean, self.spread = torch.from_numpy(mean), torch.from_numpy(spread)
        self.present = torch.from_numpy(neighbours.present.any(axis=1))

    def of(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """mean [B, M, E], spread [B, M] and present [B] of samples `rows`."""
        return self.mean[rows], self.spread[rows], self.present[rows]


@torch.no_grad()
def collect(
    engine: Any, prompts: Sequence[Prompt], items: Sequence[Any], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """S as bool [n], and routing weights float32 [n, M, E], of all samples; ranks share the batches."""
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    ordered = sorted(items, key=lambda item: -len(item["input_ids"]))
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    was_training = engine.module.training
    engine.module.eval()
    found = []
    for turn in range(math.ceil(len(batches) / world)):
        mine = turn * world + rank
        # Each forward is a collective under ZeRO-3: a rank with nothing left repeats a batch.
        batch = collate(batches[mine if mine < len(batches) else 0])
        logits, routing = engine(batch["input_ids"], batch["attention_mask"], batch["last"])
        if mine < len(batches):
            for place, row in enumerate(batch["row"].tolist()):
                options = [option[0] for option in prompts[row].options]
                right = int(logits[place, options].argmax()) == prompts[row].answer
                found.append((row, right, routing[place].half().numpy()))
    engine.module.train(was_training)
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, found)
    merged = sorted((item for part in parts for item in part), key=lambda item: item[0])
    return np.array([item[1] for item in merged]), np.stack([item[2] for item in merged])
