"""Adapters in the attention products of a network: LoRA and DoRA (peft), and a mixture of LoRA experts.

Shapes: a product W [out, in], rank q, A adapters in a mixture.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.families import family_of

PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Names of the products in an attention module, as most families call them."""
MIXED = 4
"""LoRA experts in a mixture, where their number need not match anything."""


@dataclass(frozen=True)
class Plan:
    """Which products get adapters of which rank, and how many trainable numbers that makes."""

    kind: str
    """`lora`, `dora` or `mixture`"""
    products: tuple[str, ...]
    rank: int
    parameters: int
    adapters: int = 1
    """LoRA experts a product, of a mixture."""


def peft() -> Any:
    """The library. Raises EnvironmentFault where it is not installed."""
    try:
        import peft as library
    except ImportError as error:
        raise EnvironmentFault(
            "LoRA, DoRA, prompt and prefix tuning need the package peft", "pip install 'roma_ds[rivals]'"
        ) from error
    return library


def linear_products(network: nn.Module, names: Sequence[str] = PRODUCTS) -> dict[str, nn.Linear]:
    """The attention products of these names by path, in all layers. Raises UserError where there is none."""
    found = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in names
    }
    if not found:
        raise UserError(
            f"no product named {', '.join(names)} in this model", "leave LoRA, DoRA and their mixture out"
        )
    return found


def numbers_of(kind: str, products: Sequence[nn.Linear], rank: int, adapters: int = MIXED) -> int:
    """Trainable numbers of adapters of `rank` on `products`: LoRA q (in + out); DoRA out more for each.

    adapters: in a mixture, each with a row of the gate.
    """
    total = 0
    for product in products:
        one = rank * (product.in_features + product.out_features)
        if kind == "dora":
            one += product.out_features
        elif kind == "mixture":
            one = adapters * (one + product.in_features)
        total += one
    return total


def matched_plan(network: nn.Module, kind: str, wanted: int, most_rank: int = 256) -> Plan:
    """The choice of products and rank whose number of trainable parameters is nearest to `wanted`.

    Of equally near ones that with the most products. A mixture has 2 to 8 adapters, nearest to MIXED.
    """
    everywhere = linear_products(network)
    present = [name for name in PRODUCTS if any(path.endswith(f".{name}") for path in everywhere)]
    plans = []
    counts = sorted(range(2, 9), key=lambda count: abs(count - MIXED)) if kind == "mixture" else [1]
    for names, adapters in itertools.product(_subsets(present), counts):
        products = [one for path, one in everywhere.items() if path.rpartition(".")[2] in names]
        none = numbers_of(kind, products, 0, adapters)
        guess = round((wanted - none) / (numbers_of(kind, products, 1, adapters) - none))
        rank = min(max(1, guess), most_rank)
        plans.append(Plan(kind, names, rank, numbers_of(kind, products, rank, adapters), adapters))
    return min(plans, key=lambda plan: (abs(plan.parameters - wanted), -len(plan.products)))


def rank_plan(network: nn.Module, kind: str, rank: int) -> Plan:
    """Adapters of `rank` on all attention products."""
    products = linear_products(network)
    names = tuple(name for name in PRODUCTS if any(path.endswith(f".{name}") for path in products))
    return Plan(kind, names, rank, numbers_of(kind, list(products.values()), rank))


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in range(1, len(names) + 1):
        yield from itertools.combinations(names, size)


def add_adapters(network: Any, plan: Plan, seed: int, first: int = 0) -> list[nn.Parameter]:
    """Put the plan's adapters into the network and return what is trained; the function stays the same.

    first: layers before it stay as they are.
    """
    torch.manual_seed(seed)
    products = linear_products(network, plan.products)
    if first:
        layers = network.get_submodule(family_of(network.config).layers)
        behind = {module for layer in layers[first:] for module in layer.modules()}
        products = {path: product for path, product in products.items() if product in behind}
    if plan.kind == "mixture":
        for path, product in products.items():
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, LoraMixture(product, plan.rank, plan.adapters))
    else:
        library = peft()
        config = library.LoraConfig(
            r=plan.rank,
            lora_alpha=2 * plan.rank,
            lora_dropout=0.0,
            target_modules=list(products),
            use_dora=plan.kind == "dora",
        )
        with _untied(network):
            library.inject_adapter_in_model(config, network)
    return [weight for weight in network.parameters() if weight.requires_grad]


@contextlib.contextmanager
def _untied(network: Any) -> Iterator[None]:
    """Where there is no embedding nothing is tied to it, which peft does not see."""
    if not hasattr(network, "get_input_embeddings") or network.get_input_embeddings() is not None:
        yield
        return
    tied, network._tied_weights_keys = network._tied_weights_keys, None
    yield
    network._tied_weights_keys = tied


class LoraMixture(nn.Module):
    """W x + sum over A adapters of g_a(x) 2 B_a A_a x; g = softmax(G x) is a gate of the product's own.

    As in mixtures of LoRA experts (MoLE, X-LoRA), but the gate is trained with the adapters from the start
    and reads the product's input, so that one forward pass is enough.
    """

    def __init__(self, product: nn.Linear, rank: int, adapters: int = MIXED) -> None:
        super().__init__()
        self.product = product
        weight = product.weight
        self.down = nn.Parameter(weight.new_empty(adapters, rank, product.in_features))
        self.up = nn.Parameter(weight.new_zeros(adapters, product.out_features, rank))
        self.gate = nn.Parameter(weight.new_zeros(adapters, product.in_features))
        for one in self.down:
            nn.init.kaiming_uniform_(one.data, a=math.sqrt(5))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        shares = torch.softmax((hidden @ self.gate.T).float(), dim=-1).to(hidden.dtype)
        inner = torch.einsum("...i,ari->...ar", hidden, self.down) * shares[..., None]
        result: torch.Tensor = self.product(hidden) + 2 * torch.einsum("...ar,aor->...o", inner, self.up)
        return result
