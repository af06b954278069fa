"""Which option a text names by the option's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from roma_ds.evaluation.reading.prose import before_next_question, marked, readable, said
from roma_ds.evaluation.reading.wording import (
    ANSWER,
    BREAK,
    CHOSEN,
    COPULA,
    CORRECTED,
    CORRECTION,
    DENIAL,
    DENIED_BEHIND,
    FINAL,
    INSTEAD,
    last_match,
)

NONE = -1
_MARKS = re.compile(r"\*+|`+|\$|~~|__|\"|(?<![a-z0-9])'|'(?![a-z0-9])|\\(?=\s)|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)")
_SPACE = re.compile(r"[ \t]+")
_LEAD = re.compile(
    r"[\s\W]*(?:(?:option|choice)\s+)?(?:[\s\W]*\b(?:the|a|an|it's|it|is|that|option|choice|definitely"
    r"|clearly|simply|therefore|thus|"
    r"probably|likely|most|obviously|certainly|le|la|les|der|die|das|el|los|un|une|ein|eine)\b(?:\s"
    r"|[:*])[\s\W]*)*",
)
_ARTICLE = re.compile(r"^(?:an?|the) (?=[^\W\d_]{2})")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+|;\s*")
_JOINED_BY = re.compile(
    r"\W*(?:,|/|&|\b(?:or|and|oder|und|ou|et|y|o)\b)\W*(?:(?:the|an?|maybe|perhaps|option)\W+)*"
)
_FUNCTION_WORDS = frozenset(
    "no yes not none nothing all any both neither either a an the in on at to of it is and or so up i ja "
    "nein oui non sí si да нет same other one only can will less more".split()
)


def folded(text: str) -> str:
    """Case folded, without emphasis and quotes, single spaces; lines are kept."""
    return _SPACE.sub(" ", _MARKS.sub("", text.casefold().replace("\\", "")))


def option_text(text: str, options: Sequence[str]) -> int:
    """Number of the option whose text is the answer that `text` gives, -1 where there is none or no one.

    The last one that is stated ("the answer is Paris", a box, a tag), else the one that the text or its last
    line begins with, else the only one that is named without being denied. Whole words alone count, the
    longest option first. "dog" is "a dog", where no option is named as it stands.
    """
    names = [folded(readable(option)).strip() for option in options]
    found = _named_in(text, names)
    bare = [_ARTICLE.sub("", name) for name in names]
    if found != NONE or bare == names or len(set(bare)) < len(bare) or not _FUNCTION_WORDS.isdisjoint(bare):
        return found
    return _named_in(text, bare)


def _named_in(text: str, names: Sequence[str]) -> int:
    whole, only_thought = said(readable(text))
    first = before_next_question(whole)
    for part in (first, whole) if first != whole else (whole,):
        prose = folded(marked(part))
        found, at = _stated(prose, names)
        corrected, later = _corrected(prose, names)
        if corrected != NONE and later > at:
            found = corrected
        if found == NONE and not only_thought:
            found = _leading(prose, names)
        if found == NONE and not only_thought:
            found = _only_one(prose, names)
        if found != NONE:
            return found
    return NONE


def option_at_start(text: str, options: Sequence[str]) -> int:
    """The longest option that `text` begins with, behind articles; -1 where several are joined."""
    return _at_start(folded(text), [folded(readable(option)).strip() for option in options])


def mentioned_option(text: str, options: Sequence[str]) -> int:
    """The option that `text` begins with, or the only one that it names; -1 where there is none."""
    names = [folded(readable(option)).strip() for option in options]
    prose = folded(marked(text))
    found = _leading(prose, names)
    return found if found != NONE else _only_one(prose, names)


def corrected_option(text: str, options: Sequence[str]) -> tuple[int, int]:
    """The option that a correction ("wait, no, lead") names, and about where in the text."""
    if not CORRECTION.search(text):
        return NONE, -1
    return _corrected(folded(text), [folded(readable(option)).strip() for option in options])


def _at_start(prose: str, names: Sequence[str]) -> int:
    lead = _LEAD.match(prose)
    starts = {0, lead.end() if lead else 0, len(prose) - len(prose.lstrip(" \t\n\"'([{<“*-:.,"))}
    for start in sorted(starts):
        fitting = [place for place, name in enumerate(names) if name and _whole(prose, name, start)]
        if not fitting:
            continue
        best = max(fitting, key=lambda place: len(names[place]))
        end = start + len(names[best])
        if DENIED_BEHIND.match(prose[end : end + 40]):
            return NONE
        joined = _JOINED_BY.match(prose, end)
        if joined and any(
            name and _whole(prose, name, joined.end()) for name in names if name != names[best]
        ):
            return NONE
        return best if names.count(names[best]) == 1 else NONE
    return NONE


def _whole(prose: str, name: str, start: int) -> bool:
    """Whether `name` stands at `start` of `prose` as whole words and whole numbers."""
    if not prose.startswith(name, start):
        return False
    end = start + len(name)
    before = prose[start - 1 : start] if start else ""
    if _is_word(name[0]) and _is_word(before) and _same_script(name[0], before):
        return False
    if name[0].isdigit() and re.search(r"(?:\d[.,]|(?<!\w)-|\.)$", prose[max(0, start - 2) : start]):
        return False
    if _is_word(name[-1]) and end < len(prose):
        after = prose[end]
        if _is_word(after) and _same_script(name[-1], after):
            return False
        if after in "'-" and prose[end + 1 : end + 2].isalpha() and not prose.startswith("'s ", end):
            return False
        if name[-1].isdigit() and re.match(r"[.,/:]\d|\s?%|\s\d{3}(?!\d)", prose[end : end + 5]):
            return False
    return True


def _is_word(one: str) -> bool:
    return one.isalnum() or one == "_"


def _same_script(one: str, other: str) -> bool:
    """Whether two characters may belong to one word: scripts without spaces between words do not join."""
    return (one < "\u2e80") == (other < "\u2e80") and one < "\u2e80"


def _stated(prose: str, names: Sequence[str]) -> tuple[int, int]:
    """The option of the last statement, and where that is."""
    found, at, final = NONE, -1, False
    for word in list(ANSWER.finditer(prose))[-200:]:
        end = prose.find("\n", word.end())
        line = prose[word.end() : end if end != -1 else len(prose)][:400]
        if not line.strip(" :*") and end != -1:
            line = prose[end:].lstrip().split("\n")[0]
            line = f": {line}"
        is_final = word[0] == FINAL
        copula = COPULA.search(line[:80])
        if copula is None and not is_final:
            continue
        behind = line[copula.end() :] if copula else line
        if copula and (DENIAL.search(line[: copula.start()]) or BREAK.search(line[: copula.start()])):
            continue
        denied = DENIAL.match(behind.lstrip())
        if denied and not any(
            name and _whole(behind, name, len(behind) - len(behind.lstrip())) for name in names
        ):
            instead = INSTEAD.search(behind)
            if instead is None:
                continue
            behind = behind[instead.end() :]
        place = _at_start(behind, names)
        if place == NONE and is_final and copula:
            place = _at_start(line, names)
        if place != NONE and (is_final or not final):
            found, at, final = place, word.end(), is_final
    return found, at


def _leading(prose: str, names: Sequence[str]) -> int:
    lines = [line for line in prose.split("\n") if line.strip()]
    for line in (lines[:1] + lines[-1:]) if len(lines) > 1 else lines:
        if (place := _at_start(line, names)) != NONE:
            return place
    return NONE


def _corrected(prose: str, names: Sequence[str]) -> tuple[int, int]:
    """The option behind the last "wait, no", and where it is."""
    found, at = NONE, -1
    for place, start, _ in _named(prose, names) if CORRECTION.search(prose) else ():
        if CORRECTED.search(prose[max(0, start - 90) : start]):
            found, at = place, start
    return found, at


def _only_one(prose: str, names: Sequence[str]) -> int:
    """The one option that is chosen, or that is named at all, where none else is."""
    chosen, left = NONE, set()
    joined = -1
    for place, start, end in _named(prose, names):
        behind = _JOINED_BY.match(prose, end)
        if behind and any(
            name and _whole(prose, name, behind.end()) for name in names if name != names[place]
        ):
            joined = behind.end()
            continue
        if start == joined:
            continue
        if names[place] in _FUNCTION_WORDS and not re.search(
            r"(?:^|[.!?:,\n—])[\s\W]*$", prose[max(0, start - 8) : start]
        ):
            continue
        sentence = _SENTENCE.split(prose[max(0, start - 120) : start])[-1]
        last = last_match(DENIAL, sentence)
        if last and len(sentence[last.end() :].split()) <= 4 and not INSTEAD.search(sentence, last.end()):
            continue
        if DENIED_BEHIND.match(prose[end : end + 40]):
            continue
        left.add(place)
        if CHOSEN.search(sentence):
            chosen = place
    if len({names[place] for place in left}) == 1 and len(left) == 1:
        return left.pop()
    return chosen


def _named(prose: str, names: Sequence[str]) -> list[tuple[int, int, int]]:
    """(option, start, end) of every whole mention, longest first, without overlap, in the text's order."""
    taken: list[tuple[int, int, int]] = []
    for place in sorted(range(len(names)), key=lambda one: -len(names[one])):
        name, start = names[place], 0
        while name and (start := prose.find(name, start)) != -1 and len(taken) < 200:
            end = start + len(name)
            if _whole(prose, name, start) and not any(a < end and start < b for _, a, b in taken):
                taken.append((place, start, end))
            start = end
    return sorted(taken, key=lambda one: one[1])
