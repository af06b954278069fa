"""Mutations of dataset rows."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from typing import Any

from mutations import BOM, NAN, Case, invalid_utf8, lose_file, mutates, shuffled

Row = dict[str, Any]
BOTH = ("check", "data")
KIND = "rows"
CONTENT = ("source_document", "input", "system", "passages", "document", "story", "options")


def data_file(case: Case) -> str:
    """Of training or of evaluation."""
    return case.rng.choice(["train.jsonl", "test.jsonl"])


def lines_of(case: Case, file: str) -> list[Row]:
    """Its rows."""
    return [json.loads(line) for line in (case.folder / file).read_text().splitlines()]


def written(rows: list[Any], rng: random.Random) -> bytes:
    """JSON lines in any layout."""
    separators = rng.choice([(",", ":"), (", ", ": "), ("  ,", " :  ")])
    ascii_only = rng.random() < 0.5
    texts = [
        row
        if isinstance(row, str)
        else json.dumps(shuffled(row, rng), separators=separators, ensure_ascii=ascii_only)
        for row in rows
    ]
    return "".join(text + "\n" for text in texts).encode("utf-8", "surrogatepass")


def _as_letter(row: Row, rng: random.Random) -> Row:
    letter = "ABCD"[row["answer"]]
    return {**row, "answer": rng.choice([letter, letter.lower(), f"({letter})", f" {letter} "])}


def _as_hub(row: Row, rng: random.Random) -> Row:
    labels = list(rng.choice(["ABCD", "1234"]))
    choices: Any = {"text": row["choices"], "label": labels}
    if rng.random() < 0.5:
        pairs = zip(row["choices"], labels, strict=True)
        choices = [{"text": text, "label": label} for text, label in pairs]
    rest = {key: value for key, value in row.items() if key != "answer"}
    return {**rest, "choices": choices, rng.choice(["answer", "answerKey"]): labels[row["answer"]]}


def _longer(row: Row, more: str) -> Row:
    return {**row, "question": row["question"] + more}


ACCEPTED: dict[str, Callable[[Row, random.Random], Row]] = {
    "a letter": _as_letter,
    "the option's text": lambda row, rng: {**row, "answer": row["choices"][row["answer"]]},
    "a float without fraction": lambda row, rng: {**row, "answer": float(row["answer"])},
    "options with labels": _as_hub,
    "without id": lambda row, rng: {key: value for key, value in row.items() if key != "id"},
    "a number as id": lambda row, rng: {**row, "id": int(row["id"][1:])},
    "more keys": lambda row, rng: {**row, "source": "a book", "difficulty": 3, "url": None, "index": [1, 2]},
    "a passage": lambda row, rng: {**row, "passage": rng.choice(["w1 w2 w3", "", None])},
    "any characters": lambda row, rng: _longer(row, rng.choice(["é", "問", "🙂", "\u2028", "\t"])),
    "a long question": lambda row, rng: _longer(row, " w7" * rng.choice([300, 3000])),
    "a prompt": lambda row, rng: {
        ("prompt" if key == "question" else key): value for key, value in row.items()
    },
    "two options": lambda row, rng: {**row, "choices": row["choices"][:2], "answer": row["answer"] % 2},
}  # fmt: skip
"""Forms that the documentation names."""

for _name, _change in ACCEPTED.items():

    @mutates(KIND, _name, False, *BOTH)
    def _accepted(case: Case, change: Any = _change) -> str:
        file = data_file(case)
        share = case.rng.choice([0.1, 1.0])
        rows = [change(row, case.rng) if case.rng.random() <= share else row for row in lines_of(case, file)]
        case.write(file, written(rows, case.rng))
        return file


@mutates(KIND, "layout", False, *BOTH)
def _layout(case: Case) -> str:
    file, rng = data_file(case), case.rng
    content = written(lines_of(case, file), rng)
    done = rng.sample(
        ["blank lines", "CRLF", "byte-order mark", "no end", "gzip", "spaces"], rng.randint(1, 4)
    )
    if "blank lines" in done:
        content = b"\n" + content.replace(b"}\n", b"}\n\n  \n", 2)
    if "spaces" in done:
        content = content.replace(b"\n", b"  \n")
    if "CRLF" in done:
        content = content.replace(b"\n", b"\r\n")
    if "no end" in done:
        content = content.rstrip()
    if "byte-order mark" in done:
        content = BOM + content
    case.write(file, gzip.compress(content) if "gzip" in done else content)
    return f"{file}: {', '.join(done)}"


def _without(key: str) -> Callable[[Row, random.Random], Any]:
    return lambda row, rng: {name: value for name, value in row.items() if name != key}


def _put(key: str, *values: Any) -> Callable[[Row, random.Random], Any]:
    return lambda row, rng: {**row, key: rng.choice(values)}


def _cut(row: Row, rng: random.Random) -> str:
    text = json.dumps(row)
    return text[: rng.randrange(1, len(text))]


def _twice(row: Row, rng: random.Random) -> str:
    return json.dumps(row)[:-1] + f', "answer": {(row["answer"] + 1) % 4}}}'


BAD_ROWS: dict[str, Callable[[Row, random.Random], Any]] = {
    "answer out of range": _put("answer", 4, -1, 99, 4.0, 10**30, -1.0),
    "answer that is none": _put("answer", None, True, [1], {"a": 1}, 1.5, "", "E", "none of these", NAN, "5"),
    "no answer": _without("answer"),
    "no question": _without("question"),
    "question that is no text": _put("question", None, "", "  ", 3, ["w1"], {"a": "w1"}, True),
    "options that are none": _put(
        "choices", "w1", [], ["w1"], ["w1", ""], ["w1", None], [1, 2], {"a": "w1"}, 3, [["w1"]]
    ),
    "too many options": _put("choices", [f"w{place}" for place in range(27)]),
    "options without labels": _put("choices", {"text": ["w1", "w2"], "label": ["A"]}, {"text": ["w1", "w2"]}),
    "id that is none": _put("id", None, "", True, 1.5, ["r1"], {"a": 1}, NAN),
    "passage that is no text": _put("passage", 3, ["w1"], {"a": "w1"}, True),
    "content that nothing reads": lambda row, rng: {**row, rng.choice(CONTENT): "w1 w2 w3 more to read"},
    "half a surrogate pair": lambda row, rng: json.dumps({**row, "question": "w1 \ud83d w2"}),
    "half a pair in a key": lambda row, rng: json.dumps({**row, "\udc00": "w2"}),
    "no object": lambda row, rng: rng.choice(["[]", "null", "3", '"text"', "[1, 2]", "true"]),
    "truncated row": _cut,
    "single quotes": lambda row, rng: json.dumps(row).replace('"', "'"),
    "a comma too many": lambda row, rng: json.dumps(row)[:-1] + ",}",
    "two rows on a line": lambda row, rng: json.dumps(row) + " " + json.dumps(row),
    "nested too deep": lambda row, rng: '{"id": ' + "[" * rng.choice([2000, 100_000]),
    "a number of 5000 digits": lambda row, rng: json.dumps(row)[:-1] + ', "size": ' + "7" * 5000 + "}",
    "a key twice": _twice,
    "no JSON": lambda row, rng: rng.choice(
        ["id,question,answer", "<html>", "question: what", "# rows", "{", "}"]
    ),
}  # fmt: skip

for _name, _spoil in BAD_ROWS.items():

    @mutates(KIND, _name, True, *BOTH)
    def _bad_row(case: Case, spoil: Any = _spoil) -> str:
        file = data_file(case)
        rows: list[Any] = list(lines_of(case, file))
        place = case.rng.randrange(len(rows))
        rows[place] = spoil(rows[place], case.rng)
        # What is text already must not be laid out anew.
        case.write(file, written(rows, case.rng))
        return f"{file}:{place + 1}: {str(rows[place])[:50]!r}"


@mutates(KIND, "id twice", True, *BOTH)
def _id_twice(case: Case) -> str:
    file = data_file(case)
    rows = lines_of(case, file)
    first, second = case.rng.sample(range(len(rows)), 2)
    rows[first]["id"] = rows[second]["id"]
    case.write(file, written(rows, case.rng))
    return file


def _gzip_cut(text: bytes, rng: random.Random) -> bytes:
    packed = gzip.compress(text)
    return packed[: rng.randrange(11, len(packed) - 1)]


def _gzip_flipped(text: bytes, rng: random.Random) -> bytes:
    packed = bytearray(gzip.compress(text))
    packed[-rng.randrange(5, 9)] ^= 1 << rng.randrange(8)
    return bytes(packed)


def _cut_file(text: bytes, rng: random.Random) -> bytes:
    last = text.rstrip(b"\n").rindex(b"\n") + 1
    return text[: rng.randrange(last + 1, len(text) - 2)]


BAD_FILES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated file": _cut_file,
    "not UTF-8": invalid_utf8,
    "Latin-1": lambda text, rng: text.replace(b"w", "é".encode("latin-1"), 3),
    "UTF-16": lambda text, rng: text.decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-16-be"])),
    "no rows": lambda text, rng: rng.choice([b"", b"\n\n", b"  \n"]),
    "truncated gzip": _gzip_cut,
    "damaged gzip": _gzip_flipped,
    "a JSON array": lambda text, rng: b"[" + text.strip().replace(b"\n", b",\n") + b"]",
    "indented JSON": lambda text, rng: "\n".join(
        json.dumps(json.loads(line), indent=2) for line in text.splitlines()
    ).encode(),
    "another kind": lambda text, rng: (
        rng.choice([b"PAR1", b"BZh9", b"PK\x03\x04", b"ORC", b"SQLite format 3\0"]) + bytes(99)
    ),
    "zeros": lambda text, rng: bytes(len(text)),
    "a table of text": lambda text, rng: b"id,question,answer\n1,w1,0\n",
}  # fmt: skip

READ_FILES = {"a JSON array", "indented JSON"}
"""Those that are read whatever their name says."""

for _name, _damage in BAD_FILES.items():

    @mutates(KIND, _name, _name not in READ_FILES, *BOTH)
    def _bad_file(case: Case, damage: Any = _damage) -> str:
        file = data_file(case)
        case.write(file, damage((case.folder / file).read_bytes(), case.rng))
        return file


lose_file(KIND, BOTH, data_file)
