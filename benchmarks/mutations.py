"""Faults and harmless changes of a project's files: the register, and damage that any text can take.

A mutation is labelled when it is made, by what is known of the format, not by what roma_ds does with it.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BOM = b"\xef\xbb\xbf"
NAN, INF = float("nan"), float("inf")


@dataclass
class Case:
    """A copy of the project that one mutation changes."""

    folder: Path
    rng: random.Random
    arguments: list[str] = field(default_factory=list)
    """Of the command, where the mutation chooses them."""

    def read(self, name: str) -> Any:
        """The JSON of a file of the project."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def write(self, name: str, content: bytes | str) -> None:
        """Replace a file."""
        content = content.encode("utf-8") if isinstance(content, str) else content
        (self.folder / name).write_bytes(content)


Apply = Callable[[Case], str]
"""Changes the case; returns what was done, in words."""


@dataclass(frozen=True)
class Mutator:
    """One sort of change, and the commands that read what it changes."""

    kind: str
    name: str
    harmful: bool
    commands: tuple[str, ...]
    apply: Apply


MUTATORS: dict[str, list[Mutator]] = {}
"""By kind of file."""


def mutates(kind: str, name: str, harmful: bool, *commands: str) -> Callable[[Apply], Apply]:
    """Register a function as a mutator."""

    def register(apply: Apply) -> Apply:
        MUTATORS.setdefault(kind, []).append(Mutator(kind, name, harmful, commands, apply))
        return apply

    return register


def choose(kind: str, rng: random.Random) -> Mutator:
    """Any mutator of a kind; two of three are harmful."""
    harmful = rng.random() < 2 / 3
    return rng.choice([one for one in MUTATORS[kind] if one.harmful is harmful])


def shuffled(values: Any, rng: random.Random) -> Any:
    """The same with the keys of all objects in another order."""
    if isinstance(values, dict):
        items = [(key, shuffled(value, rng)) for key, value in values.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(value, rng) for value in values] if isinstance(values, list) else values


def as_json(values: Any, rng: random.Random) -> bytes:
    """JSON in any layout: order of keys, indentation, white space, ends of lines."""
    indent = rng.choice([None, 0, 1, 2, 4, "\t"])
    separators = rng.choice([(",", ":"), (", ", ": "), (" , ", " : ")])
    text = json.dumps(shuffled(values, rng), indent=indent, separators=separators)
    text = rng.choice(["", "\n", "  "]) + text + rng.choice(["", "\n", "\n\n", " \n"])
    return text.replace("\n", rng.choice(["\n", "\r\n"])).encode()


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all objects in nested values, the outermost first."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    found = [path] if isinstance(values, dict) else []
    for key, value in inner:
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


def at(values: Any, path: tuple[Any, ...]) -> Any:
    """What lies there."""
    for key in path:
        values = values[key]
    return values


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the value of a key path such as `train.lr`, making the sections around it."""
    *around, last = path.split(".")
    section: Any = values
    for key in around:
        section = section[int(key)] if isinstance(section, list) else section.setdefault(key, {})
    section[last] = value


def misspelt(word: str, rng: random.Random) -> str:
    """Another word near it: a letter doubled, left out or swapped."""
    place = rng.randrange(len(word))
    return rng.choice(
        [
            word[:place] + word[place] + word[place:],
            word + "s",
            word.replace("_", "-") if "_" in word else word + "_",
            word[::-1] if word[::-1] != word else word + "x",
            f"x_{word}",
        ]
    )


def cut_json(text: bytes, rng: random.Random) -> bytes:
    """An object without its end."""
    return text[: rng.randrange(1, len(text.rstrip()))]


def invalid_utf8(text: bytes, rng: random.Random) -> bytes:
    """With a byte that is in no UTF-8 text."""
    place = rng.randrange(1, len(text))
    return text[:place] + rng.choice([b"\xff", b"\xfe", b"\xc0\xaf"]) + text[place:]


def _comma(text: bytes, rng: random.Random) -> bytes:
    place = text.rindex(b"}")
    return text[:place] + b"," + text[place:]


def _comment(text: bytes, rng: random.Random) -> bytes:
    return text.replace(b"{", b"{ // what follows\n" if rng.random() < 0.5 else b"{ # what follows\n", 1)


JSON_DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": cut_json,
    "not UTF-8": invalid_utf8,
    "UTF-16": lambda text, rng: text.decode().encode(rng.choice(["utf-16", "utf-16-be"])),
    "a comma too many": _comma,
    "a comment in JSON": _comment,
    "single quotes": lambda text, rng: text.replace(b'"', b"'"),
    "two documents": lambda text, rng: text + b"\n" + text,
    "empty": lambda text, rng: rng.choice([b"", b"\n", b"   "]),
    "zeros": lambda text, rng: bytes(len(text)),
    "no object": lambda text, rng: rng.choice([b"[]", b"[1, 2]", b"null", b"3", b'"text"', b"true"]),
    "nested too deep": lambda text, rng: rng.choice([b"[", b'{"a": ']) * rng.choice([2000, 100_000]),
    "a number of 5000 digits": lambda text, rng: text.replace(b"{", b'{"n": ' + b"7" * 5000 + b", ", 1),
}
"""What no reader of a JSON object takes, of a text that is one with at least one key."""


def damage_json(kind: str, commands: tuple[str, ...], pick: Callable[[Case], str], *without: str) -> None:
    """Register all damage to JSON for a kind; pick: the file, by its path in the project."""
    for name, damage in JSON_DAMAGE.items():
        if name not in without:

            def apply(case: Case, damage: Any = damage) -> str:
                file = pick(case)
                case.write(file, damage((case.folder / file).read_bytes(), case.rng))
                return file

            mutates(kind, name, True, *commands)(apply)


def lose_file(kind: str, commands: tuple[str, ...], pick: Callable[[Case], str]) -> None:
    """Register that a file is not there, and that a folder is in its place."""

    def lost(case: Case) -> str:
        file = pick(case)
        (case.folder / file).unlink()
        return file

    def folder(case: Case) -> str:
        file = lost(case)
        (case.folder / file).mkdir()
        return file

    def link(case: Case) -> str:
        file = lost(case)
        (case.folder / file).symlink_to("nowhere-at-all")
        return file

    mutates(kind, "missing file", True, *commands)(lost)
    mutates(kind, "a folder in its place", True, *commands)(folder)
    mutates(kind, "a link to nowhere", True, *commands)(link)


def copied(base: Path, folder: Path) -> Path:
    """A copy of the project to change."""
    shutil.copytree(base, folder, symlinks=True)
    return folder
