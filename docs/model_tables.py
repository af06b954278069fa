"""Prints the tables of docs/models.md: `python docs/model_tables.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from roma_ds.families import FAMILIES, detect, published
from roma_ds.families.counting import KINDS, active_parameters, by_kind, counted

ROUTERS = "last5"


def built(name: str) -> Any:
    """The network of a published config on the meta device: shapes alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(published.config(name), dtype=torch.bfloat16)


def table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def families() -> Iterator[Sequence[str]]:
    """One row a family."""
    for family in FAMILIES:
        r = {"softmax": "softmax", "sigmoid": "sigmoids over their sum"}[family.scoring]
        types = ", ".join(f"`{name}`" for name in family.model_types)
        shared = ", ".join(f"`{name}`" for name in family.shared) or "none"
        limits = "; ".join(f"{limit.capability} {limit.level}: {limit.reason}" for limit in family.limits)
        yield (family.name, types, family.selection, r, str(family.dense), shared, limits or "full")


def sizes(networks: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """One row a model: what its publisher states, and what its config gives."""
    for name, network in networks.items():
        model, config = published.published_model(name), network.config
        layout = detect(network)
        total = sum(by_kind(counted(network)).values())
        chosen = layout.choose(ROUTERS)
        trained = sum(site.experts * site.hidden for site in layout.sites if site.layer in chosen)
        active = active_parameters(network, embedding=model.embedding_is_active)
        yield (
            f"[{name}](#{name.replace('.', '')})",
            f"{config.num_hidden_layers}, {len(layout.layers)}",
            f"{layout.experts}, {layout.top_k}",
            str(config.hidden_size),
            f"{model.total} / {model.active or 'not stated'}",
            f"{total:,}",
            f"{active:,}",
            f"{trained:,} = {trained / total:.4%}",
        )


def kinds(networks: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """One row a model: parameters of each kind, in millions."""
    for name, network in networks.items():
        totals = by_kind(counted(network))
        yield (name, *(f"{totals[kind] / 1e6:,.1f}" if totals[kind] else "0" for kind in KINDS))


def compared(what: str, count: int, stated: str) -> str:
    """How a count agrees with the publisher's figure, and where not within 1%, why it cannot."""
    unit = {"B": 10**9, "M": 10**6}[stated[-1]]
    digits, figure = Decimal(stated[:-1]).normalize(), float(stated[:-1]) * unit
    step = float(Decimal(1).scaleb(int(digits.as_tuple().exponent))) * unit
    off = count / figure - 1
    rounded = abs(count - figure) <= step / 2
    text = f"{what}: {count / unit:.4g}{stated[-1]} counted, stated as {stated}, {off:+.1%}"
    if abs(off) <= 0.01:
        return text
    open_to = step / 2 / figure if rounded else step / figure
    way = "rounded to" if rounded else "cut to"
    return f"{text}: the figure is {way} its last digit, and may lie {open_to:.1%} off"


def sources(networks: Mapping[str, Any]) -> str:
    """One section a model."""
    parts = []
    for name, network in networks.items():
        model = published.published_model(name)
        lines = [f"#### {name}", "", f"- `{model.hub}`", f"- Config: {model.config_source}."]
        lines.append(f"- Size: {model.size_source}.")
        counts = "with" if model.embedding_is_active else "without"
        if model.active:
            lines.append(f"- Active parameters are compared {counts} the token embedding.")
        total = sum(by_kind(counted(network)).values())
        lines.append(f"- {compared('Total', total, model.total)}.")
        known = f"{int(model.weights):,}" if model.weights.isdigit() else model.weights
        lines.append(f"- In the checkpoint's tensors: {known} ({model.weights_source}).")
        if model.active:
            active = active_parameters(network, embedding=model.embedding_is_active)
            lines.append(f"- {compared('Active', active, model.active)}.")
        lines += [f"- {model.note}"] if model.note else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def tables(networks: Mapping[str, Any]) -> Iterator[str]:
    """All tables of the page. networks: of the published models, by name, on any device."""
    yield table(
        ("family", "`model_type`", "how the model chooses", "r", "dense layers", "shared", "support"),
        families(),
    )
    yield table(
        (
            "model",
            "layers, sparse",
            "experts, top-k",
            "hidden",
            "published total / active",
            "total",
            "active",
            f"routers of `{ROUTERS}`",
        ),
        sizes(networks),
    )
    yield table(("millions of", *KINDS), kinds(networks))
    yield sources(networks)


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables({name: built(name) for name in published.names()})) + "\n")
