"""Texts as the units that are compared: words, characters where a script writes no spaces, and signs."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, cached_property

WORD = 2
"""Weight of a word or sign. A character of a script without spaces weighs 1: two count as one word."""

_NO_SPACES = (
    "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3105-\u312f"  # Kana, Bopomofo
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3"  # Myanmar, Khmer
)
_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])
_RAISED = str.maketrans({raised: f"^{digit}" for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})
_REPLACED = re.compile(f"[{''.join(map(chr, [*_RAISED, *_INVISIBLE]))}]")
_TAG = r"</?\|?[^\W\d]\w*\|?/?>"
_PATTERN = re.compile(rf"\w+|{_TAG}|[^\w\s]|\n")
_UNARY = re.compile(r"(?<![\w)\]])[-–](?=\.?\d)")
_COMPARED = (("!=", "≠"), ("<=", "≤"), (">=", "≥"))
_BETWEEN = {"-": "−", "–": "−", "*": "*", "/": "/", "⁄": "/", "^": "^", "&": "&", "|": "|"}
"""Signs that are signs between numbers, single letters and brackets alone, and what they are there."""
_ALWAYS = "+<=>"
_SIGNS = re.compile(r"[-–*/⁄^&|%+<=>]")
_PERHAPS = re.compile(r"[+<=>]|\d\w*\s*[-–*/⁄^&|%]|(?<!\w)[^\W_]\s*[-–*/⁄^&|]|[)\]}]\s*[-–*/⁄^&|]|[-–]\.?\d")
"""Signs that may be units: those always are, or stand behind what is counted with, or before a number."""
_COMMON = re.compile("[\\x00-\\x7f\\xa0¡§«¶·»¿À-ÖØ-öø-ʯͰ-ϵЀ-ҁҊ-ԯḀ-ỿ‐-―‘-„†-…‰′″‹›]*")
"""Texts of letters that need no care, and of marks that are no signs."""
_WORDS = re.compile(r"\w+")
_LOWERED = bytes(
    ord(chr(code).lower()) if code < 128 and (chr(code).isalnum() or chr(code) == "_") else ord(" ")
    for code in range(256)
)
"""ASCII in lower case, with spaces in place of all that is no part of a word."""
_NO_SIGNS = bytes(code for code in range(256) if chr(code) not in "-*/^&|%+<=>")
_NO_BOUNDARY = "'’-–"


class Text:
    """A text in units, which are made when they are asked for."""

    def __init__(self, text: str) -> None:
        self._text = text
        words = _words(text)
        self._parts = None if words is not None else _parts(text)
        self.spaced: bytes = words if words is not None else _joined(self._parts[0] if self._parts else [])
        """Its units with spaces between and perhaps around them, in UTF-8."""

    @cached_property
    def units(self) -> list[str]:
        """In their order."""
        return self._parts[0] if self._parts else self.spaced.decode("utf-8").split()

    @property
    def weights(self) -> list[int] | None:
        """Of the units, where they are not all WORD."""
        return self._parts[1] if self._parts else None

    @property
    def weight(self) -> int:
        """Of the whole text."""
        return len(self.units) * WORD if self.weights is None else sum(self.weights)

    @property
    def identity(self) -> int:
        """Equal for texts of the same units."""
        return hash(tuple(self.units))

    @cached_property
    def boundaries(self) -> list[int]:
        """Numbers of units before which a line, a sentence or a part of one begins, and of all units."""
        units, boundaries = _units(_normal(self._text))
        if units != self.units:
            # Of signs alone.
            return [0, 1] if self.units else [0]
        return boundaries if boundaries[-1] == len(units) else [*boundaries, len(units)]

    @cached_property
    def joined(self) -> str:
        """All units with spaces around each, so that one text stands in another as whole units."""
        return f" {' '.join(self.units)} "


def segment(text: str) -> Text:
    """Units of a text, without case and punctuation.

    Compatible forms are one (Unicode NFKC); combining marks stay with their letters; signs of arithmetic and
    comparison are units. A text of signs alone is one unit, as it stands.
    """
    return Text(text)


def _joined(units: list[str]) -> bytes:
    return " ".join(units).encode("utf-8", "surrogatepass")


def _parts(text: str) -> tuple[list[str], list[int] | None]:
    """Units of any text, and their weights where these are not all WORD."""
    normal = _normal(text)
    units, _ = _units(normal)
    if not any(unit[0].isalnum() for unit in units):
        raw = "".join(text.split())
        return [raw] if raw else [], None
    weights = None
    if not normal.isascii():
        weights = [1 if unit > "\u02ff" and _character().match(unit) else WORD for unit in units]
        weights = weights if 1 in weights else None
    return units, weights


def _words(text: str) -> bytes | None:
    """The units of a text as `Text.spaced` where they are surely words alone, as in most texts; else None."""
    if text.isascii():
        raw = text.encode("ascii")
        if raw.translate(None, _NO_SIGNS) and _PERHAPS.search(text):
            return None
        spaced = raw.translate(_LOWERED)
        return spaced if spaced.lstrip()[:1].isalnum() else None
    normal = _normal(text)
    if not _COMMON.fullmatch(normal) or (_SIGNS.search(normal) and _PERHAPS.search(normal)):
        return None
    units = _WORDS.findall(normal)
    return _joined(units) if units and units[0][0].isalnum() else None


def _units(text: str) -> tuple[list[str], list[int]]:
    tokens = (_script_pattern() if _has(_scripts(), text) else _PATTERN).findall(text)
    units: list[str] = []
    boundaries = [0]
    add = units.append
    for place, token in enumerate(tokens):
        if token.isalnum() or token[0].isalnum() or token[0] == "_":
            add(token)
        elif sign := _sign(tokens, place):
            units.append(sign)
        elif boundaries[-1] != len(units) and not _inside(tokens, place):
            boundaries.append(len(units))
    return units, boundaries


def _normal(text: str) -> str:
    """Without case, with signs that are written in several ways written in one."""
    if text.isascii():
        text = text.lower()
    else:
        if _REPLACED.search(text):
            text = text.translate(_RAISED).translate(_INVISIBLE)
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if "=" in text:
        for written, sign in _COMPARED:
            text = text.replace(written, sign)
    if "-" in text or "–" in text:
        text = _UNARY.sub("−", text)
    return text


def _has(kind: re.Pattern[str], text: str) -> bool:
    """Whether a character of `text` is of this kind, none of which is ASCII or Latin."""
    return not text.isascii() and any(char > "\u02ff" and kind.match(char) for char in set(text))


@cache
def _character() -> re.Pattern[str]:
    return re.compile(f"[{_NO_SPACES}]")


@cache
def _scripts() -> re.Pattern[str]:
    return re.compile(f"[{_NO_SPACES}{_marks()}]")


@cache
def _script_pattern() -> re.Pattern[str]:
    marks = _marks()
    letters = rf"[^\W{_NO_SPACES}]+"
    return re.compile(rf"[{_NO_SPACES}][{marks}]*|{letters}(?:[{marks}]+(?:{letters})?)*|{_TAG}|[^\w\s]|\n")


@cache
def _marks() -> str:
    """Combining marks as ranges of a regular expression."""
    found = {code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"}
    firsts = sorted(code for code in found if code - 1 not in found)
    lasts = sorted(code for code in found if code + 1 not in found)
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(firsts, lasts, strict=True))


def _sign(tokens: list[str], place: int) -> str | None:
    """What the token at `place` is among the units, if it is a sign."""
    token = tokens[place]
    if len(token) > 1:
        return None
    before = tokens[place - 1] if place else ""
    if token in _BETWEEN:
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        return _BETWEEN[token] if _operand(before, ")]}") and _operand(after, "([{√") else None
    if token == "%":
        return token if before[:1].isdigit() else None
    kind = unicodedata.category(token)
    signs = token in _ALWAYS or (kind in ("Sm", "Sc") and not token.isascii())
    return token if signs or (kind == "So" and token > "\u02ff") else None


def _operand(token: str, brackets: str) -> bool:
    if not token:
        return False
    single = len(token) == 1 and (token.isalpha() or token in brackets or token == "−")
    return single or any(map(str.isdigit, token))


def _inside(tokens: list[str], place: int) -> bool:
    """Whether the mark at `place` stands inside a word or number."""
    if tokens[place] in _NO_BOUNDARY:
        return True
    numbers = 0 < place < len(tokens) - 1 and tokens[place - 1].isdigit() and tokens[place + 1].isdigit()
    return numbers and tokens[place] in ".,:"
