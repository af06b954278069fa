"""Prints the tables of docs/models.md: `python docs/model_tables.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from roma_ds.families import FAMILIES, detect, published
from roma_ds.families.counting import KINDS, Kind, by_kind, counted
from roma_ds.families.published_networks import as_stated, network, sizes

ROUTERS = "last5"
SCORES = {
    "softmax": "softmax",
    "sigmoid": "sigmoids over their sum",
    "sqrt_softplus": "roots of softplus over their sum",
}
TYPES = frozenset(model_type for family in FAMILIES for model_type in family.model_types)


def table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def families() -> Iterator[Sequence[str]]:
    """One row a family."""
    for family in FAMILIES:
        r = SCORES[family.scoring]
        types = ", ".join(f"`{name}`" for name in family.model_types)
        shared = ", ".join(f"`{name}`" for name in family.shared) or "none"
        limits = "; ".join(f"{limit.capability} {limit.level}: {limit.reason}" for limit in family.limits)
        yield (family.name, types, family.selection, r, str(family.dense), shared, limits or "full")


def of_a_family(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Those whose type has a family file."""
    return {name: model for name, model in networks.items() if model.config.model_type in TYPES}


def trained(model: Any, total: int) -> str:
    """Parameters of the routers that are trained, and their share of all."""
    layout = detect(model)
    chosen = layout.choose(ROUTERS)
    count = sum(site.experts * site.hidden for site in layout.sites if site.layer in chosen)
    return f"{count:,} = {count / total:.4%}"


def size_rows(networks: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """One row a model: what its publisher states, and what its config gives."""
    known = of_a_family(networks)
    for name, causal_lm in networks.items():
        model, config, found = published.published_model(name), causal_lm.config, sizes(causal_lm)
        yield (
            f"[{name}](#{name.replace('.', '')})",
            f"{config.num_hidden_layers}, {len(found.sparse)}",
            f"{found.experts}, {found.top_k}",
            str(config.hidden_size),
            f"{model.total} / {model.active or 'not stated'}",
            f"{found.total:,}",
            f"{found.active(model.embedding_is_active):,}",
            trained(causal_lm, found.total) if name in known else "no family file",
        )


def kinds(found: Mapping[str, Mapping[Kind, int]], shown: Sequence[Kind]) -> Iterator[Sequence[str]]:
    """One row a model: parameters of each kind, in millions."""
    for name, totals in found.items():
        yield (name, *(f"{totals[kind] / 1e6:,.1f}" if totals[kind] else "0" for kind in shown))


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
    for name, causal_lm in networks.items():
        model = published.published_model(name)
        total, active = as_stated(model, sizes(causal_lm))
        lines = [f"#### {name}", "", f"- `{model.hub}`", f"- Config: {model.config_source}."]
        lines.append(f"- Size: {model.size_source}.")
        if model.active:
            counts = "with" if model.embedding_is_active else "without"
            lines.append(
                f"- Active parameters are compared {counts} the token embedding{also(model.active_with)}."
            )
        lines.append(f"- {compared(f'Total{counted_as(model)}', total, model.total)}.")
        known = f"{int(model.weights):,}" if model.weights.isdigit() else model.weights
        lines.append(f"- In the checkpoint's tensors: {known} ({model.weights_source}).")
        if model.beside:
            rest = ", ".join(f"{count:,} {part}" for part, count in model.beside.items())
            lines.append(f"- Of these beside the parameters of the causal LM: {rest}.")
        if model.active:
            lines.append(f"- {compared('Active', active, model.active)}.")
        lines += [f"- {model.note}"] if model.note else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def also(parts: Sequence[str]) -> str:
    """Words for what a figure counts beside the causal LM."""
    return f" and with {', '.join(parts)}" if parts else ""


def counted_as(model: published.PublishedModel) -> str:
    """How the total was counted to compare it, where not as all parameters of the causal LM."""
    said = "" if model.embedding_is_in_total else " without the token embedding"
    return said + (f" with {', '.join(model.total_with)}" if model.total_with else "")


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
        size_rows(networks),
    )
    found = {name: by_kind(counted(causal_lm)) for name, causal_lm in of_a_family(networks).items()}
    shown = [kind for kind in KINDS if any(totals[kind] for totals in found.values())]
    yield table(("millions of", *shown), kinds(found, shown))
    yield sources(networks)


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables({name: network(name) for name in published.names()})) + "\n")
