"""A generated text as plain prose: one kind of digits, spaces, dashes and quotes, no markup, no thinking."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from roma_ds.evaluation.reading.wording import ANSWER, FINAL
from roma_ds.writing.thinking import answered

_HEAD, _TAIL = 2_000, 8_000
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_RAISED = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_TO_LINE = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SPECIAL = (
    dict.fromkeys("−–‐‑‒﹣－", "-")
    | dict.fromkeys("’‘‛′ʼ`´＇", "'")
    | dict.fromkeys("“”„‟«»「」『』＂", '"')
    | dict.fromkeys("【［〔", "[")
    | dict.fromkeys("】］〕", "]")
    | dict.fromkeys("\u2028\u2029\x85", "\n")
    | dict.fromkeys("⁄∕÷", "/")
    | {
        "٫": ".",
        "٬": ",",
        "٪": "%",
        "؟": "?",
        "。": ". ",
        "、": ", ",
        "،": ",",
        "…": "...",
        "∙": "·",
        "⋅": "·",
    }
)
_QUOTES = "\"' "
_KEPT_TAGS = ("<super>", "<sub>")
_CIRCLED = ((0x1F150, 26), (0x1F170, 26), (0x1F130, 26))
_INNER = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|textsf|mathrm|mathbf|mathit|mathsf|mathtt|mathbb|boldsymbol|bm"
    r"|operatorname|mbox|hbox|emph|underline|bf|rm)\s*\{([^{}]*)\}"
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(\{|[^\s{])")
_ANSWER_TAG = re.compile(
    r"<(?:(?:final[_ -]?)?(?:answer|solution|option|choice|result)|final)\s*>|\[(?:final[_ ]?)?answer\]"
    r"|<\|begin_of_(?:solution|answer|box)\|>",
    re.IGNORECASE,
)
_ANSWER_END = re.compile(
    r"</(?:(?:final[_ -]?)?(?:answer|solution|option|choice|result)|final)\s*>|\[/(?:final[_ ]?)?answer\]"
    r"|<\|end_of_(?:solution|answer|box)\|>",
    re.IGNORECASE,
)
_JSON = re.compile(
    r"([\"'])(?:final|correct)?[_ ]?(?:answer|choice|option|result|solution"
    r"|prediction)(?:[_ ](?:letter|choice|option|key|id|"
    r"label|text))?\1\s*:\s*(\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[^\s,}{\[][^,}\n]*)",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?(?:b|strong|i|em|u|p|br|code|span|div|mark|sup|center|h[1-6])\s*/?>", re.IGNORECASE)
_LATEX_BRACKETS = re.compile(r"\\[()\[\]]|\\(?:left|right|displaystyle|big+|Big+)(?![A-Za-z])")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_HEADING_TEXT = re.compile(
    r"[*_]*(?:(?:step|option|choice|part|case|analysis|explanation|reason\w*|solution|answer"
    r"|final answer)\b(?![*_:]*\s*$)|\d+[.):]\s+[*_]*[A-Za-z]|[A-Z][.):]\s+\S)",
    re.IGNORECASE,
)
_AFTER_COLON = re.compile(r"(?:(?<=[:=])|\b(is|be|est|ist|es)|(?<=[是は]))[ \t]*\n\s*")
_DOTS = re.compile(r"\.{2,}")
_ABBREVIATED = re.compile(r"\b(ans)\.", re.IGNORECASE)
_TITLE = re.compile(
    rf"^[# \t]*((?:final |correct )?(?:{ANSWER.pattern}))[ \t]*\n\s*", re.IGNORECASE | re.MULTILINE
)
_NEXT_QUESTION = re.compile(
    r"\n[ \t*#]*(?:(?:Question|Problem|Exercise|Human|User|Q)\s*\d*\s*:|</s>|<\|im_end\|>)"
)
_OPTIONS_AND_ANSWER = re.compile(r"\n[ \t]*\n(?=(?:[^\n]+\n){1,8}?\(?A[.):] [^\n]+\n\(?B[.):] [^\n]+\n)")


def readable(text: str) -> str:
    """The text with ASCII for look-alikes: full-width letters, other digits, dashes, quotes."""
    if text.isascii():
        return text
    raised = _RAISED.sub(lambda found: "^" + found[0].translate(_TO_LINE), unicodedata.normalize("NFC", text))
    return _FOREIGN.sub(lambda found: _plain_character(found[0]), raised)


@lru_cache(maxsize=4096)
def _plain_character(one: str) -> str:
    if one in _SPECIAL:
        return _SPECIAL[one]
    for start, count in _CIRCLED:
        if start <= ord(one) < start + count:
            return chr(ord("A") + ord(one) - start)
    kind = unicodedata.category(one)
    if kind == "Zs":
        return " "
    if kind in ("Cf", "Cs"):
        return ""
    if kind == "Nd":
        return str(unicodedata.decimal(one))
    if unicodedata.decomposition(one).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", one).replace("⁄", "/")
    compatible = unicodedata.normalize("NFKC", one)
    if compatible.isascii() and not unicodedata.decomposition(one).startswith(_KEPT_TAGS):
        return compatible
    return one


def said(text: str) -> tuple[str, bool]:
    """What `text` says outside its thinking, and whether that is all thought that never ended.

    Where nothing is said outside, the thinking itself, whose weak hints should not count.
    """
    outside = "\n".join(text[start:end] for start, end in answered(text)).strip()
    return (_ends(outside), False) if outside else (_ends(text.strip()), True)


def _ends(text: str) -> str:
    """The beginning and the end of a long text: what lies between is reasoning, and would only cost time."""
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n{text[-_TAIL:]}"


def before_next_question(text: str) -> str:
    """The text up to where it goes on with a further question, as base models do behind solved examples."""
    ends = [len(text)]
    for pattern in (_NEXT_QUESTION, _OPTIONS_AND_ANSWER):
        ends += [found.start() for found in pattern.finditer(text) if text[: found.start()].strip()][:1]
    return text[: min(ends)]


def marked(text: str) -> str:
    """The text with `FINAL` in a line of its own before the content of boxes and answer tags, LaTeX's text
    commands replaced by what they hold, and HTML off."""
    if "\\" in text:
        for _ in range(3):
            text = _INNER.sub(r"\1", text)
        text = _LATEX_BRACKETS.sub("", "".join(_with_marked_boxes(text)))
    if "<" in text or "[" in text:
        text = _ANSWER_TAG.sub(f"\n{FINAL} ", text)
        text = _ANSWER_END.sub("\n", text)
        text = _TAG.sub("", text)
    if "{" in text:
        text = _JSON.sub(lambda found: f"\n{FINAL} {found[2].strip(_QUOTES)}\n", text)
    if "####" in text:
        several = len(_HASHES.findall(text)) > 1
        text = _HASHES.sub(lambda found: _final_line(found, several), text)
    return text


def _final_line(found: re.Match[str], several: bool) -> str:
    """`FINAL` for the mark of an answer, nothing for a heading of Markdown."""
    heading = _HEADING_TEXT.match(found[1]) and (several or not found[1][:1].isdigit())
    return f"\n{'' if heading else FINAL} {found[1]}"


def flowing(text: str) -> str:
    """The text with what follows "Answer:" or a heading "Answer" in one line with it."""
    text = _DOTS.sub(" — ", _ABBREVIATED.sub(r"\1:", text))
    return _AFTER_COLON.sub(lambda found: f"{found[1] or ''} ", _TITLE.sub(r"\1: ", text))


def _with_marked_boxes(text: str) -> Iterator[str]:
    at = 0
    for box in _BOX.finditer(text):
        if box.start() < at:
            continue
        end = closing(text, box.end()) if box[1] == "{" else box.end()
        start = box.end() if box[1] == "{" else box.end() - 1
        yield text[at : box.start()]
        yield f"\n{FINAL} {text[start:end]}\n"
        at = end + (box[1] == "{")
    yield text[at:]


def closing(text: str, start: int) -> int:
    """Where the brace closes that opened before `start`; the end of the text where it does not."""
    depth = 1
    for brace in re.compile(r"\\?[{}]").finditer(text, start):
        if brace[0].startswith("\\"):
            continue
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return len(text)
