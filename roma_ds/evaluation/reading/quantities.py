"""Numbers in texts, in the notations of prose, LaTeX and several languages, as exact values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_MOST_DIGITS = 300
_MOST_POWER = 300
_CURRENCY = re.compile(
    r"\\?(?:\b(?:US|NZ|HK|[RACS]))?\$|[€£¥₹₽₩₪฿₫₴₦₺₱¢]|\b(?:USD|EUR|GBP|INR|CHF|JPY|CNY|RMB"
    r"|Rs\.?)\s*(?=[\d.+-])"
)
_SEPARATED = re.compile(r"(?<=\d)(?:\\[,;:! ]|~|\{\\?[, ]\}|\{ ?, ?\}|,\\!|\{'\})(?=\d)")
_INDEX = re.compile(
    r"(?<![\d)}])[_^]\s?(?:\{[^{}]*\}|[+-]?\w)|(?<=[A-Za-z)}])\^\s?(?:\{[^{}]*\}|[+-]?\w)|_\{[^{}]*\}"
)
_EMPHASIS = re.compile(r"\*\*(?=\S)|(?<=\S)\*\*|`|~~|__|\"|(?<![A-Za-z0-9])'(?=[\d+-])|(?<=\d)'(?!\d)")
_PLAIN = r"\d+(?:[.,'_]\d+|\ \d{3}(?!\d))*|\.\d+"
_QUANTITY = re.compile(
    rf"""(?<![A-Za-z_\\^\d])(?<!\d\.)
    (?P<sign>(?:minus|negative|plus)\s+|[-+]\s?)?
    (?:
        (?:(?P<whole>\d+)\s*)?\\[dtc]?frac\s*(?:\{{\s*(?P<above>[-+]?[\d.,]+)\s*\}}|(?P<above1>\d))
            \s*(?:\{{\s*(?P<below>[\d.,]+)\s*\}}|(?P<below1>\d))
      | (?P<whole2>\d+)(?:\s+|-|\ and\ )(?P<above2>\d+)\s?/\s?(?P<below2>\d+)(?![\d/]|[.,]\d)
      | (?P<base>\d+)\s?(?:\^|\*\*)\s?\{{?\s?(?P<exponent>[-+]?\d{{1,3}})\s?\}}?
      | (?P<number>{_PLAIN})
        (?:\s*(?:×|x|\\times|\*|·|\\cdot)\s*10\s?(?:\^|\*\*)\s?\{{?\s?(?P<ten>[-+]?\d{{1,3}})\s?\}}?
         | [eE](?P<e>[-+]?\d{{1,3}})(?![\w])
         | \s?/\s?(?P<below3>\d+(?:[.,]\d+)?|\.\d+)(?![\d]|\s?/|[.,]\d)
        )?
    )
    (?P<percent>\s?(?:\\?%|\\?\bper\s?cent\b|percentage\b|pct\b
        |Prozent|por\ ciento|pour\ cent|процент\w*|パーセント|퍼센트))?
    (?P<scale>\s?(?:(?:hundred|thousand|million|billion|trillion|mio|mrd|тыс|млн|k)\b|万|萬|亿|億|만|억))?
    """,
    re.VERBOSE,
)
_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "mio": 10**6,
    "mrd": 10**9, "тыс": 1000, "млн": 10**6, "k": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
    "만": 10**4, "억": 10**8,
}  # fmt: skip
_UNIT = re.compile(
    r"\s*(?:\\?[°%]\s?[A-Z]?|\\circ\s?[A-Z]?|[A-Za-zµμΩ]{1,3}(?:[/·*^ ][A-Za-z0-9^-]{1,3})?|(?:square "
    r"|cubic )?[a-zß-ÿ]+(?: per [a-z]+| of [a-z]+)?"
    r"|[\u0400-\u04ff]+|[\u3040-\u9fff\uac00-\ud7a3]{1,3})?\s*[.!]?\s*"
)
_GROUPS = re.compile(
    r"[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}|[1-9]\d{0,2}(?:[ '_]\d{3})+"
    r"|[1-9]\d{0,2}(?:\.\d{3}){2,}"
)


@dataclass(frozen=True)
class Quantity:
    """A number with the values that its notation may mean."""

    values: tuple[Fraction, ...]
    """The likeliest first: "9.500" is 9.5, and 9500 to whoever separates thousands by a point."""
    percent: bool
    start: int = 0
    """Where it stands in the text that it was read from."""
    end: int = 0

    def __str__(self) -> str:
        """A decimal number where it is one of few digits, else a fraction; with its percent sign."""
        value = self.values[0]
        rest = value.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        text = str(value)
        if rest == 1 and value.denominator != 1:
            places = len(str(value.denominator)) * 4
            digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
            text = f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}".rstrip("0")
        return text + ("%" if self.percent else "")


def same(reference: Quantity, found: Quantity) -> bool:
    """Whether both may mean one value; 50% is 50 and 0.5, where not both are percentages."""
    wanted = reference.values[0]
    for value in found.values:
        if _close(wanted, value):
            return True
        if found.percent and not reference.percent and _close(wanted, value / 100):
            return True
        if reference.percent and not found.percent and _close(wanted / 100, value):
            return True
    return False


def _close(one: Fraction, other: Fraction) -> bool:
    if one == other:
        return True
    if one.denominator == 1 and other.denominator == 1:
        return False
    endless = any(10**24 % value.denominator for value in (one, other))
    return abs(one - other) <= Fraction(1, 10**6 if endless else 10**9) * max(
        abs(one), abs(other), Fraction(1, 1000)
    )


def mathematical(text: str) -> str:
    """The text without currencies, emphasis and indices, thousands separated in few ways."""
    text = _EMPHASIS.sub("", _CURRENCY.sub("", text))
    return _INDEX.sub(
        "", _SEPARATED.sub(lambda found: "," if "," in found[0] and "\\," not in found[0] else " ", text)
    )


def quantity(text: str) -> Quantity | None:
    """The number that the whole of `text` is, with a unit or without; None where it is more or none."""
    text = mathematical(text).strip().rstrip(".")
    found = list(quantities(text))
    if len(found) != 1 or text[: found[0].start].strip() not in ("", "=", "≈"):
        return None
    rest = text[found[0].end :]
    return found[0] if _UNIT.fullmatch(rest) and not re.match(r"\s*[-+*/^]", rest) else None


def quantities(text: str) -> Iterator[Quantity]:
    """Every number of a `mathematical` text, in its order."""
    for found in _QUANTITY.finditer(text):
        start = found.start()
        sign = _sign(text, found)
        if found["number"] is None:
            if (value := _composed(found)) is not None:
                yield _scaled((sign * value,), found, start, found.end())
            continue
        tuple_like = text[start - 1 : start] in ("(", "[", "{") if start else False
        parts = _split(found["number"], tuple_like and text[found.end() : found.end() + 1] in tuple(")]},"))
        at = found.start("number")
        for number, part in enumerate(parts):
            values, last = _values(part), number == len(parts) - 1
            signed = tuple((sign if number == 0 else 1) * value for value in values)
            if last and values:
                signed = tuple(value for one in signed if (value := _behind(one, found)) is not None)
            if signed:
                one = _scaled(signed, found, start if number == 0 else at, found.end()) if last else None
                yield one or Quantity(signed, False, start if number == 0 else at, at + len(part))
            at += len(part) + 1


def _sign(text: str, found: re.Match[str]) -> int:
    sign = found["sign"]
    if not sign or sign.strip() in ("+", "plus"):
        return 1
    before = text[: found.start()][-12:]
    if sign.strip() == "-":
        if re.search(r"[A-Za-z0-9_)\]}.]$", before):
            return 1
        alone = not text[: found.start()].strip() and not text[found.end() :].strip(" .")
        if sign != "-" and not alone and not re.search(r"(?:[=(]|\bis)\s*$", before):
            return 1
    return -1


def _composed(found: re.Match[str]) -> Fraction | None:
    """Value of a LaTeX fraction, a mixed number or a power."""
    if found["base"]:
        exponent = int(found["exponent"])
        if len(found["base"]) * abs(exponent) > _MOST_POWER or (exponent < 0 and not int(found["base"])):
            return None
        return Fraction(int(found["base"])) ** exponent
    above = found["above"] or found["above1"] or found["above2"]
    below = found["below"] or found["below1"] or found["below2"]
    whole = found["whole"] or found["whole2"]
    tops, bottoms = _values(above.lstrip("+-")), _values(below)
    if not tops or not bottoms or not bottoms[0] or (whole and len(whole) > _MOST_DIGITS):
        return None
    share = tops[0] / bottoms[0] * (-1 if above.startswith("-") else 1)
    return share + int(whole) if whole else share


def _behind(value: Fraction, found: re.Match[str]) -> Fraction | None:
    """The value with the power of ten or the denominator that follows the number."""
    if power := found["ten"] or found["e"]:
        return value * Fraction(10) ** int(power) if abs(int(power)) <= _MOST_POWER else None
    if found["below3"]:
        below = _values(found["below3"])
        return value / below[0] if below and below[0] else value
    return value


def _scaled(values: tuple[Fraction, ...], found: re.Match[str], start: int, end: int) -> Quantity:
    scale = _SCALES.get((found["scale"] or "").strip().lower())
    if scale is not None:
        values = (*(value * scale for value in values), *values)
    return Quantity(values, bool(found["percent"]), start, end)


def _split(number: str, is_tuple: bool) -> list[str]:
    """The numbers of which `number` is made: lists like 1,2,3 are several."""
    if _GROUPS.fullmatch(number) or (len(_values(number)) and not (is_tuple and "," in number)):
        return [number]
    if is_tuple or number.count(",") > 1:
        return [part for part in re.split(r"[, ]", number) if part]
    return [part for part in re.split(r" ", number) if part]


def _values(number: str) -> tuple[Fraction, ...]:
    """What the digits with separators mean; empty where they are no number."""
    if len(number) > _MOST_DIGITS:
        return ()
    if _GROUPS.fullmatch(number):
        value = Fraction(re.sub(r"\D", "", number))
        if re.fullmatch(r"[1-9]\d{0,2},\d{3}", number):
            return value, Fraction(number.replace(",", "."))
        return (value,)
    if re.fullmatch(r"\d*(?:\.\d+)?", number):
        value = Fraction(number)
        if re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", number):
            return value, Fraction(number.replace(".", ""))
        return (value,)
    if re.fullmatch(r"\d+,\d+", number):
        return (Fraction(number.replace(",", ".")),)
    for group, point in ((r"[, '_]", r"\."), (r"[. '_]", ",")):
        if re.fullmatch(rf"\d{{1,3}}(?:{group}\d{{2,3}})+{point}\d+", number):
            whole, _, part = number.replace("," if point == "," else ".", "|").rpartition("|")
            return (Fraction(re.sub(r"\D", "", whole) + "." + part),)
    return ()
