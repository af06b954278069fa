"""What a router makes of random numbers: where its logits are, by which scores it chooses, and whom."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

_PROBES = 16
_FAULTS = (ValueError, TypeError, RuntimeError, AttributeError, IndexError, KeyError)


class Unclear(Exception):
    """Why nothing could be told, in words that follow `its routers`."""


@dataclass(frozen=True)
class Trial:
    """What was seen."""

    weight: str
    """As `Family.weight`."""
    logits_from: Literal["router", "product"]
    logits_at: int | None
    indices_at: int | None
    entries: int
    """Of the logits that the router returns, or makes where it returns none."""
    rows: int
    """Of the weight."""
    width: int
    scoring: str
    rounds: bool
    """Whether it runs with its parameters in bfloat16 as well."""


def tried(meta_router: Any, width: int, experts: int) -> Trial:
    """Run a router, given on the meta device. width: of the hidden states; experts: routed ones.

    Raises Unclear.
    """
    import torch
    from torch import nn

    source = torch.Generator().manual_seed(0)
    router = meta_router.to_empty(device="cpu").float().eval()
    with torch.no_grad():
        for name, values in (*router.named_parameters(), *router.named_buffers()):
            if values.dim() == 2 and name.endswith("weight"):
                values.normal_(std=values.shape[1] ** -0.5, generator=source)
            elif name.endswith(("bias", "biases")) or not values.is_floating_point():
                nn.init.zeros_(values)
            else:
                nn.init.ones_(values)
        hidden = torch.randn(_PROBES, width, generator=source)
        if _mixes(router, hidden, experts):
            raise Unclear("mix tokens: where a token goes depends on the others that lie beside it")
        weight = _last_weight(router, experts)
        owner = router.get_submodule(weight) if weight else router
        rows, inner = owner.weight.shape
        multiplied: list[Any] = []
        if weight:
            owner.register_forward_hook(lambda _, inputs, output: multiplied.append((inputs[0], output)))
        outputs = _called(router, hidden, experts)
        entering = multiplied[-1][0].reshape(-1, inner) if multiplied else hidden
        if entering.shape[1] != inner or not entering.is_floating_point():
            raise Unclear(f"multiply a weight of width {inner} by what is not known")
        product = entering @ owner.weight.T
        rounds = _rounds(router, hidden, experts)
    found = [one.reshape(-1, one.shape[-1]) if one.dim() > 1 else one for one in outputs]
    places = [place for place, one in enumerate(found) if _starts(one, product)]
    if multiplied:
        logits_from: Literal["router", "product"] = "product"
    elif places:
        logits_from = "router"
    else:
        raise Unclear("give out nothing that is the product of their weight with what enters")
    entries = found[places[0]].shape[1] if places else rows
    product = product[:, :entries]
    chosen, indices_at = _chosen(found, product)
    return Trial(
        weight,
        logits_from,
        None if len(outputs) == 1 else places[0] if places else 0,
        indices_at,
        entries,
        rows,
        inner,
        _scoring(product, *chosen),
        rounds,
    )


def _last_weight(router: Any, experts: int) -> str:
    """Path of the module that owns the weight with a row for each expert."""
    fitting = [
        str(name).rpartition(".")[0]
        for name, values in router.named_parameters()
        if values.dim() == 2 and name.rpartition(".")[2] == "weight" and values.shape[0] >= experts
    ]
    exact = [path for path in fitting if _rows(router, path) == experts] or fitting
    if not exact:
        raise Unclear("have no weight with a row for each expert")
    return str(exact[-1])


def _rows(router: Any, path: str) -> int:
    rows: int = router.get_parameter(f"{path}.weight" if path else "weight").shape[0]
    return rows


def _called(router: Any, hidden: Any, experts: int) -> tuple[Any, ...]:
    """What the router gives, as a tuple of tensors."""
    import torch

    given = {}
    for name, parameter in list(inspect.signature(router.forward).parameters.items())[1:]:
        if "bias" in name:
            given[name] = torch.zeros(experts)
        elif parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise Unclear(f"are given `{name}` beside the hidden states")
    error: Exception | None = None
    for shaped in (hidden, hidden[None]):
        try:
            output = router(shaped, **given)
        except _FAULTS as failed:
            error = error or failed
            continue
        listed = output if isinstance(output, tuple) else (output,)
        if all(isinstance(one, torch.Tensor) for one in listed):
            return listed
    raise Unclear(f"cannot be tried: {error}" if error else "do not give tensors")


def _rounds(router: Any, hidden: Any, experts: int) -> bool:
    """Whether a router still runs once its parameters are in bfloat16."""
    for parameter in router.parameters():
        parameter.data = parameter.data.bfloat16()
    try:
        _called(router, hidden.bfloat16(), experts)
    except Unclear:
        return False
    return True


def _mixes(router: Any, hidden: Any, experts: int) -> bool:
    """Whether something that the router gives for the first token is another one beside other tokens."""
    import torch

    beside = torch.cat([hidden[:1], hidden[1:].flip(0).neg()])
    pairs = zip(_called(router, hidden, experts), _called(router, beside, experts), strict=True)
    firsts = [(_of_first(one, len(hidden)), _of_first(other, len(hidden))) for one, other in pairs]
    return any(
        one is not None and other is not None and not torch.allclose(one, other, equal_nan=True)
        for one, other in firsts
    )


def _of_first(values: Any, count: int) -> Any:
    """What values of `count` tokens say of the first one; None where they are not by token."""
    if values.dim() and len(values) == count:
        return values[0].float()
    return values[0, 0].float() if values.dim() > 1 and values.shape[1] == count else None


def _starts(values: Any, product: Any) -> bool:
    """Whether values [T, n] are the first n columns of the product, and enough of them."""
    import torch

    if values.dim() != 2 or not values.is_floating_point() or len(values) != len(product):
        return False
    count = values.shape[1]
    return 1 < count <= product.shape[1] and torch.allclose(values.float(), product[:, :count], atol=1e-4)


def _chosen(outputs: list[Any], product: Any) -> tuple[tuple[Any, Any], int | None]:
    """Weights and indices [T, k] among the outputs, and the place of the indices.

    Where a router gives weights of all experts, most of them 0, the indices have no place.
    """
    whole = [
        place
        for place, one in enumerate(outputs)
        if one.dim() == 2 and not one.is_floating_point() and len(one) == len(product)
    ]
    for place in whole:
        for other in outputs:
            if other.is_floating_point() and other.shape == outputs[place].shape:
                return (other.float(), outputs[place].long()), place
    for one in outputs:
        counts = (one != 0).sum(dim=-1) if one.shape == product.shape else None
        if counts is not None and 0 < int(counts[0]) < product.shape[1] and bool((counts == counts[0]).all()):
            weights, indices = one.float().topk(int(counts[0]), dim=-1)
            return (weights, indices), None
    raise Unclear("do not say which experts they choose and what these weigh")


def _scoring(product: Any, weights: Any, indices: Any) -> str:
    """Which function of the logits the weights of the chosen experts are, up to a factor for each token."""
    import torch

    ways = {
        "softmax": torch.softmax(product, -1),
        "sigmoid": product.sigmoid(),
        "sqrt_softplus": torch.nn.functional.softplus(product).sqrt(),
    }
    alone = indices.shape[1] == 1
    for name, values in ways.items():
        own = values.gather(1, indices)
        # Of a single expert only a factor that all tokens share tells anything. Weight 0 is none: skipped.
        ratios = (weights / own)[(weights != 0).all(dim=1)]
        like = ratios.mean(dim=0 if alone else 1, keepdim=True)
        if torch.allclose(ratios, like.expand_as(ratios), rtol=1e-3, atol=1e-5):
            return name
    if alone and torch.allclose(weights, weights.mean().expand_as(weights)):
        return "softmax"
    raise Unclear("score by none of softmax, sigmoid and the root of softplus")
