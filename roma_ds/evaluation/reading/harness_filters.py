"""lm-evaluation-harness' own filters and metric, so that numbers agree with it.

`strict-match` and `flexible-extract` are its names. Numbers as in its task gsm8k, letters and option texts as
in mmlu_generative (the first line) and in mmlu_flan_cot_zeroshot (the last `(X)`, else an option's text, else
a letter behind a colon).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

NONE = -1
INVALID = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))
_LETTER = re.compile(r"(\([A-Z]\))")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def strict_number(text: str) -> str:
    """The first number behind `#### `, else `[invalid]`."""
    found = _STRICT.findall(text)
    return found[0].strip() if found else INVALID


def flexible_number(text: str) -> str:
    """The last run of digits, points, commas and dollars, else `[invalid]`."""
    found = _FLEXIBLE.findall(text)
    return next(part for part in found[-1] if part).strip() if found else INVALID


def exact_number(reference: str, said: str) -> bool:
    """The metric of gsm8k: equal but for case, commas, dollars, a last full stop and all before `#### `."""
    texts = []
    for text in (reference, said):
        for pattern in _IGNORED:
            text = pattern.sub("", text)
        texts.append(text.lower())
    return texts[0] == texts[1]


def first_line(text: str) -> str:
    """The filter `get_response`: the text up to its first line break, without space around it."""
    return text.split("\n")[0].strip()


def exact_text(reference: str, said: str) -> bool:
    """Equal without case and punctuation."""
    one, other = (text.lower().translate(_NO_PUNCTUATION) for text in (reference, said))
    return one == other


def strict_option(text: str, options: Sequence[str]) -> int:
    """The option that the whole first line is, without case and punctuation."""
    line = first_line(text)
    fitting = [place for place, option in enumerate(options) if exact_text(option.strip(), line)]
    return fitting[0] if fitting else NONE


def flexible_option(text: str, choices: Sequence[str]) -> int:
    """The filter `multi_choice_regex` with the last match, without case and punctuation in option texts."""
    names = [f"({letter})" for letter in string.ascii_uppercase[: len(choices)]]
    if found := _LETTER.findall(text):
        return names.index(found[-1]) if found[-1] in names else NONE
    # Of options that are alike but for case and punctuation the last one counts.
    places = {_bare(choice.strip()): place for place, choice in enumerate(choices)}
    pattern = re.compile(
        "|".join(sorted(map(re.escape, map(_bare, map(str.strip, choices))), key=len, reverse=True))
    )
    if (named := pattern.findall(_bare(text))) and (said := named[-1].strip()):
        return places.get(said, NONE)
    behind = re.findall(rf":[\s]*({'|'.join(string.ascii_uppercase[: len(choices)])})", text)
    return string.ascii_uppercase.index(behind[-1]) if behind else NONE


def _bare(text: str) -> str:
    return "".join(one for one in text.lower() if not unicodedata.category(one).startswith("P"))
