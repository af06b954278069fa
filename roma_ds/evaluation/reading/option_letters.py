"""Which option letter a text settles on.

Each letter that stands alone is weighed by the words around it; the strongest kind of mention decides, and
of several of one kind the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from roma_ds.evaluation.reading.option_texts import corrected_option, mentioned_option, option_at_start
from roma_ds.evaluation.reading.prose import before_next_question, flowing, marked, readable, said
from roma_ds.evaluation.reading.wording import (
    ANSWER,
    BREAK,
    CHOSEN,
    CONFIRMED,
    COPULA,
    CORRECTED,
    CORRECTION,
    DENIAL,
    DENIED_BEHIND,
    FINAL,
    FINAL_ANSWER,
    INSTEAD,
    OPTION,
    WEAKENED,
    last_match,
)

NONE = -1
_WINDOW = 120
_MOST = 200
_LOOK_ALIKE = dict(zip("АВСЕНКМОРТХΑΒΕΗΙΚΜΝΟΡΤΧ", "ABCEHKMOPTXABEHIKMNOPTX", strict=True)) | dict(
    zip("авсеорх", "abceopx", strict=True)
)
_WORD = r"A-Za-z0-9_À-ɏͰ-ϿЀ-ӿ"
_TOKEN = re.compile(
    rf"(?<![{_WORD}\\&])(?<![A-Za-zÀ-ɏ]')([A-Za-z]|[{''.join(_LOOK_ALIKE)}])(?![{_WORD}]|'[A-Za-z]"
    rf"|-[A-Za-z])"
)
_WORDS_AS_WELL = re.compile(r"[AIaiАВСКОавсо]$")
_GOES_ON = re.compile(
    r"\s+(?!(?:because|since|as|for|and|or|is|was|but|which|due|based|from|given|in|by|with|only|here"
    r"|would|must|"
    r"it|therefore|so|according|weil|denn|parce|car|porque|потому|так|и|не)\b)[a-zß-ÿа-яё]+",
)
_ENDS = re.compile(
    r"[)\]}>\"'*]*(?:\s*$|\s*[.,;:!\n)\]}>]|\s+[-(—]|\s+(?:because|since|as|for|and not|which|due|is"
    r"|weil|car|porque)\b)"
)
_WRAPPED = re.compile(r"[(\[{<]\s*$")
_LISTED_BEHIND = re.compile(
    rf"[)\]}}\"'*]*\s*(?:,?\s*(?:or|and|oder|und|ou|et|y|o|и|или|和|或)\s+|[,/&]\s*|、\s*)(?:option\s+"
    rf"|choice\s+)?[(\[\"'*]*"
    rf"([A-Z])(?![{_WORD}'])(?!\s*(?:[:.]\s+[a-z]|(?:is|was|has|can|does|would|seems|looks|ist|est|es)\b))",
)
_LISTED_BEFORE = re.compile(
    r"(?<![A-Za-z])[A-Z][)\]}\"'*]*\s*(?:,?\s*(?:or|and|oder|und|ou|et|y|и|или|和|或)\s+|[,/&]\s*)[(\[\"'*]*$"
)
_OPENING = re.compile(r"\W*(?:\d+[.)]\s+)?\W*(?:(?:option|choice|letter)\s*[:(\[]?\s*)?$", re.IGNORECASE)
_LIST_LINE = re.compile(r"^[\s*\-(]*([A-Z])[.):]\s*\S", re.MULTILINE)
_SENTENCE = re.compile(r"[.!?](?=\s)|\n|;|[!?](?=\S)")
_STRIPPED = re.compile(r"\*+|`+|\$|~~|\"|__|\\(?=\s)|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)")
_FILLERS = re.compile(r"(?:[\s,:(\[{<'*—.-]*[^\W\d_]{2,}){0,6}[\s,:(\[{<'*—#>-]*$")
_REPLY = re.compile(r"^\s*A:\s*(?=[(\[]?[A-Z][)\].]*\s*(?:$|\n))")
_JOINED = re.compile(r"(?<=[A-Za-z])_(?=[A-Za-z])")


class Strength(IntEnum):
    """Kinds of mention, the weakest first."""

    MENTIONED = 1
    WEAK = 2
    NAMED = 3
    CHOSEN = 4
    LEADING = 5
    STATED = 6
    FINAL = 7


@dataclass(frozen=True)
class Mention:
    """One place where a text speaks for an option."""

    place: int
    option: int
    strength: Strength
    correction: bool = False


def option_letter(text: str, count: int, choices: Sequence[str] = ()) -> int:
    """Number of the option among the first `count` letters that `text` settles on, -1 where it does not.

    choices: texts of the options, which an answer may give in place of the letter.
    """
    whole, only_thought = said(readable(text))
    first = before_next_question(whole)
    for part in (first, whole) if first != whole else (whole,):
        if (found := _settled(part, count, choices, only_thought)) != NONE:
            return found
    return NONE


def _settled(text: str, count: int, choices: Sequence[str], only_thought: bool) -> int:
    prose = _REPLY.sub("", _JOINED.sub(" ", _STRIPPED.sub("", marked(text))).strip(" \t\n"))
    prose = flowing(prose)
    mentions = sorted(_mentions(prose, count, choices), key=lambda one: one.place)
    if only_thought:
        mentions = [one for one in mentions if one.strength >= Strength.STATED]
    best = max((one.strength for one in mentions), default=None)
    if best is None or best == Strength.MENTIONED:
        if not only_thought and (named := mentioned_option(text, choices)) != NONE:
            return named
        if len({one.option for one in mentions}) != 1:
            return NONE
    chosen = [one for one in mentions if one.strength == best][-1]
    later = [one for one in mentions if one.correction and one.place > chosen.place]
    return (later or [chosen])[-1].option


def _mentions(prose: str, count: int, choices: Sequence[str]) -> Iterator[Mention]:
    listed = len(set(_LIST_LINE.findall(prose))) > 1
    tokens = list(_TOKEN.finditer(prose))
    taken = set()
    for token in [*tokens[: _MOST // 4], *tokens[_MOST // 4 :][-_MOST:]]:
        letter = _LOOK_ALIKE.get(token[1], token[1])
        option = ord(letter.upper()) - ord("A")
        if option < count and (found := _weighed(prose, token, letter, listed)):
            taken.add(_sentence_start(prose, token.start()))
            yield Mention(token.start(), option, *found)
    if choices:
        yield from _texts_stated(prose, choices, taken)


def _texts_stated(prose: str, choices: Sequence[str], taken: set[int]) -> Iterator[Mention]:
    """Options that a statement gives by their text, in sentences without a letter."""
    for word in list(ANSWER.finditer(prose))[-_MOST:]:
        end = _SENTENCE.search(prose, word.end(), word.end() + 2 * _WINDOW)
        sentence = prose[word.end() : end.start() if end else word.end() + 2 * _WINDOW]
        copula = COPULA.search(sentence)
        if copula is None and word[0] != FINAL:
            continue
        behind = sentence[copula.end() :] if copula else sentence
        if DENIAL.match(behind.lstrip()) and (instead := INSTEAD.search(behind)):
            behind = behind[instead.end() :]
        if (option := option_at_start(behind, choices)) == NONE:
            continue
        if _sentence_start(prose, word.end()) in taken and not re.match(r"[\s:]*A ", behind):
            continue
        yield Mention(word.end() + 1, option, Strength.FINAL if word[0] == FINAL else Strength.STATED)
    option, place = corrected_option(prose, choices)
    if option != NONE:
        yield Mention(place, option, Strength.STATED, correction=True)


def _sentence_start(prose: str, place: int) -> int:
    last = 0
    low = max(0, place - _WINDOW)
    for end in _SENTENCE.finditer(prose, low, place):
        last = end.end()
    return last or low


def _weighed(prose: str, token: re.Match[str], letter: str, listed: bool) -> tuple[Strength, bool] | None:
    """How strongly the letter at `token` is given as the answer, and whether as a correction; None if not."""
    start, end = token.span(1)
    before = prose[_sentence_start(prose, start) : start]
    behind = prose[end : end + 80]
    wrapped = bool(_WRAPPED.search(prose[max(0, start - 3) : start])) and behind.lstrip()[:1] in tuple(")]}>")
    article = bool(_WORDS_AS_WELL.match(token[1])) and not wrapped and bool(_GOES_ON.match(behind))
    if letter.islower() and not (wrapped or _ENDS.match(behind)):
        return None
    if (
        behind.lstrip(")]}\"'* ").startswith("?")
        or _LISTED_BEHIND.match(behind)
        or DENIED_BEHIND.match(behind)
    ):
        return None
    if _LISTED_BEFORE.search(before) and not behind.lstrip().startswith("is the"):
        return None
    recent = prose[max(0, start - 90) : start]
    if (
        not article
        and CORRECTION.search(recent)
        and CORRECTED.search(recent)
        and prose[: start - len(recent)].strip(" \n") + recent.strip()
    ):
        return Strength.STATED, True
    if found := _stated(before, article, behind):
        return found, False
    if article:
        return None
    leading = _leading(prose, start, end, listed, letter, wrapped)
    if leading is not None:
        return leading, False
    if letter.islower() and not wrapped:
        return (Strength.CHOSEN, False) if CHOSEN.search(before) and not _denied(before) else None
    if _denied(before):
        return None
    if not before.strip(" ([{*'") and not prose[end:].strip(" )]}*'.!\n"):
        return Strength.CHOSEN, False
    weak = bool(WEAKENED.search(before))
    if CHOSEN.search(before) or CONFIRMED.match(behind):
        return (Strength.WEAK if weak else Strength.CHOSEN), False
    if OPTION.search(before.rstrip("([{<'\" ")):
        return (Strength.WEAK if weak else Strength.NAMED), False
    return (Strength.MENTIONED, False) if wrapped or before.rstrip()[-1:] in tuple(":=—-") else None


def _denied(before: str) -> bool:
    last = last_match(DENIAL, before)
    return (
        last is not None
        and bool(_FILLERS.match(before, last.end()))
        and not INSTEAD.search(before, last.end())
    )


def _stated(before: str, article: bool, behind: str) -> Strength | None:
    """Strength of "the answer is" before a letter; None where the words before it are no such statement."""
    word = last_match(ANSWER, before)
    if word is None:
        return None
    rest, ahead = before[word.end() :], before[: word.start()]
    instead = last_match(INSTEAD, rest)
    if instead and DENIAL.search(rest, 0, instead.start()):
        rest = ": " + rest[instead.end() :]
    if DENIAL.search(rest) or re.search(r"\b(?:wrong|incorrect|not|n't)\b\W*(?:\w+\W+)?$", ahead):
        return None
    copula = last_match(COPULA, rest)
    final = word[0] == FINAL or bool(FINAL_ANSWER.search(ahead))
    gap = rest[copula.end() :] if copula else rest
    if (
        not _FILLERS.fullmatch(gap)
        or BREAK.search(gap)
        or re.search(r"(?<![A-Za-z'])[B-HJ-Z](?![A-Za-z'])", gap)
    ):
        return None
    if article and (not copula or copula[0] in ":=-"):
        return None
    if WEAKENED.search(ahead) or re.match(r"\W{0,2}\s*if\b", behind):
        return Strength.WEAK
    if final:
        return Strength.FINAL
    return Strength.STATED if copula or not gap.strip(" ([{<'*") else Strength.NAMED


def _leading(prose: str, start: int, end: int, listed: bool, letter: str, wrapped: bool) -> Strength | None:
    line_start = prose.rfind("\n", 0, start) + 1
    line_end = prose.find("\n", end)
    line_end = len(prose) if line_end == -1 else line_end
    if not _OPENING.fullmatch(prose, line_start, start):
        return None
    alone = not prose[end:line_end].strip(" \t)]}>.'*:,!")
    first = not prose[:line_start].strip(" \t\n#*-")
    last = not prose[line_end:].strip()
    if alone:
        return Strength.LEADING if first or last else Strength.NAMED
    if listed:
        return None
    closed = bool(re.match(r"\s*[)\]}>'*]*\s*[.):,;—\-(!]", prose[end : end + 8])) or wrapped
    if first or last:
        if closed:
            return Strength.LEADING
        return Strength.NAMED if letter.isupper() else None
    return None
