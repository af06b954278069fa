"""Numbers as people read them: shares, points, bytes, times."""

from __future__ import annotations

VARIANT_ORDER = ("base", "router_tuning", "random_neighbours", "roma", "roma_as_served", "oracle")
"""The order of variants in every table and picture; others follow by name."""

_TITLES = {
    "base": "base",
    "router_tuning": "router tuning",
    "random_neighbours": "random neighbours",
    "roma": "RoMA",
    "roma_as_served": "RoMA as served",
    "oracle": "oracle (uses test labels)",
}


def variant_title(variant: str) -> str:
    """A variant's name in running text; oracle routing says that it saw the answers."""
    return _TITLES.get(variant, variant.replace("_", " "))


def in_order(variants: list[str]) -> list[str]:
    """`variants` in the order of every table."""
    known = [variant for variant in VARIANT_ORDER if variant in variants]
    return known + sorted(set(variants) - set(known))


def percent(share: float | None, digits: int = 1) -> str:
    """0.1234 -> 12.3; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def points(difference: float | None) -> str:
    """0.018 -> +1.8 (percentage points); a dash for None. Never a signed zero."""
    if difference is None:
        return "–"
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def p_value(value: float) -> str:
    """0.0321 -> 0.032; below 0.001 the bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def byte_size(count: float | None) -> str:
    """Bytes in the largest binary unit below them; a dash for None."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float | None) -> str:
    """75.2 -> 1 min 15 s; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def count(number: float | None) -> str:
    """12345 -> 12,345; a dash for None."""
    return "–" if number is None else f"{number:,.0f}"
