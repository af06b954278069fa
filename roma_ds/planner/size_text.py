"""Sizes in bytes as people write them: 80GiB, 1.5TB."""

from __future__ import annotations

import math
import re

from roma_ds.errors import UserError

UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as `80GiB` (2^30 each) or `80GB` (10^9 each), the value of `option`.

    Raises UserError for anything else, naming the unit that was probably meant.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2] not in UNITS:
        raise UserError(
            f"{option}: '{text}' is no size", _fix(found[1], found[2]) if found else _fix("80", "")
        )
    size = float(found[1]) * UNITS[found[2]]
    if not math.isfinite(size) or size < 1:
        raise UserError(f"{option}: '{text}' is less than one byte", f"for example {option} 80GiB")
    return int(size)


def _fix(number: str, unit: str) -> str:
    """What the user may have meant."""
    near = [name for name in UNITS if name.lower() == unit.lower()]
    near = near or [name for name in UNITS if unit and len(name) > 1 and name[0].lower() == unit[0].lower()]
    shown = " or ".join(f"{number}{name}" for name in near or ("GiB", "GB"))
    return f"write {shown}; units are {', '.join(UNITS)}, where 1 GiB is 2^30 and 1 GB is 10^9 bytes"


def gibibytes(count: float) -> str:
    """Bytes as GiB, or MiB where they are few, with as many digits as help."""
    value = count / 2**30
    if value < 0.1:
        return f"{count / 2**20:.0f} MiB" if count else "0"
    return f"{value:.1f} GiB" if value < 100 else f"{value:,.0f} GiB"
