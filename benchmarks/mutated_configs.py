"""Mutations of run configs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import yaml
from config_values import KEYS
from mutations import (
    BOM,
    Case,
    at,
    invalid_utf8,
    lose_file,
    misspelt,
    mutates,
    places,
    put,
    shuffled,
)

CONFIG = "run.yaml"
BOTH = ("check", "data")


def config_of(case: Case) -> dict[str, Any]:
    """The values of the run config."""
    return dict(yaml.safe_load((case.folder / CONFIG).read_text()))


def write_config(case: Case, values: Any) -> None:
    """As YAML in any layout."""
    if case.rng.random() < 0.7:
        values = shuffled(values, case.rng)
    text = yaml.safe_dump(
        values,
        default_flow_style=case.rng.choice([None, True, False]),
        sort_keys=False,
        allow_unicode=case.rng.random() < 0.5,
        indent=case.rng.choice([2, 4]),
        width=case.rng.choice([40, 10_000]),
    )
    case.write(CONFIG, text)


@mutates("run config", "other values", False, *BOTH)
def _other_values(case: Case) -> str:
    values = config_of(case)
    chosen = case.rng.sample(list(KEYS), case.rng.randint(1, 6))
    for key in chosen:
        put(values, key, KEYS[key][0](case.rng))
    write_config(case, values)
    return ", ".join(chosen)


@mutates("run config", "layout", False, *BOTH)
def _layout(case: Case) -> str:
    write_config(case, config_of(case))
    text = (case.folder / CONFIG).read_text()
    done = case.rng.sample(
        ["comments", "blank lines", "start", "end", "CRLF", "byte-order mark", "spaces"],
        case.rng.randint(1, 4),
    )
    lines = text.splitlines()
    if "comments" in done:
        lines = ["# a run", *lines, "# its end: {not: [yaml"]
    if "blank lines" in done:
        lines = ["", *lines, "", "   "]
    if "start" in done:
        lines = ["---", *lines]
    if "end" in done:
        lines = [*lines, "..."]
    if "spaces" in done:
        lines = [line + "  " for line in lines]
    content = ("\r\n" if "CRLF" in done else "\n").join([*lines, ""]).encode()
    case.write(CONFIG, BOM + content if "byte-order mark" in done else content)
    return ", ".join(done)


@mutates("run config", "written as JSON", False, *BOTH)
def _json_config(case: Case) -> str:
    case.write(CONFIG, json.dumps(shuffled(config_of(case), case.rng), indent=1))
    return CONFIG


@mutates("run config", "empty sections", False, *BOTH)
def _empty_sections(case: Case) -> str:
    values = config_of(case)
    for key in case.rng.sample(["collect", "index", "guards"], case.rng.randint(1, 3)):
        values[key] = case.rng.choice([None, {}])
    write_config(case, values)
    return "null or {}"


@mutates("run config", "unknown key", True, *BOTH)
def _unknown_key(case: Case) -> str:
    values = config_of(case)
    section = at(values, case.rng.choice(places(values)))
    known = case.rng.choice(list(section))
    key = (
        misspelt(str(known), case.rng)
        if case.rng.random() < 0.7
        else case.rng.choice(["a b", "ü", "x" * 300])
    )
    section[key] = section.pop(known) if case.rng.random() < 0.5 else 3
    write_config(case, values)
    return key[:40]


@mutates("run config", "a key that is no text", True, *BOTH)
def _odd_key(case: Case) -> str:
    values = config_of(case)
    key = case.rng.choice([3, 1.5, True, None])
    at(values, case.rng.choice(places(values)))[key] = 3
    write_config(case, values)
    return repr(key)


@mutates("run config", "wrong value", True, "check")
def _wrong_value(case: Case) -> str:
    values = config_of(case)
    key = case.rng.choice(list(KEYS))
    bad = case.rng.choice(KEYS[key][1])
    put(values, key, bad)
    write_config(case, values)
    return f"{key}: {str(bad)[:40]!r}"


@mutates("run config", "wrong section", True, *BOTH)
def _wrong_section(case: Case) -> str:
    values = config_of(case)
    key = case.rng.choice(["model", "data", "embed", "roma", "train", "eval", "index", "guards"])
    values[key] = case.rng.choice([[], [1], "text", 3, True, [{"path": "model"}]])
    write_config(case, values)
    return f"{key}: {values[key]!r}"


@mutates("run config", "missing key", True, *BOTH)
def _missing_key(case: Case) -> str:
    values = config_of(case)
    key = case.rng.choice(["model", "model.path", "data", "data.train", "eval", "eval.tasks", "output_dir"])
    section, _, last = key.rpartition(".")
    del (values[section] if section else values)[last]
    write_config(case, values)
    return key


@mutates("run config", "missing file", True, "check")
def _named_file(case: Case) -> str:
    values = config_of(case)
    key = case.rng.choice(["model.path", "data.train.0.path", "embed.model", "deepspeed"])
    put(values, key, case.rng.choice(["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "./no\u00fc.json"]))
    write_config(case, values)
    return key


@mutates("run config", "contradiction", True, *BOTH)
def _contradiction(case: Case) -> str:
    values = config_of(case)
    name, changes = case.rng.choice(
        [
            ("best and not kept", {"train.result": "best", "train.keep_best": False}),
            ("batch and accumulation", {"train.batch": 8, "train.gradient_accumulation": 2}),
            ("sharded and repaired", {"index.placement": "sharded", "index.on_mismatch": "repair"}),
            ("torch with lists", {"index.backend": "torch", "index.factory": "IVF4,Flat"}),
            ("name and path", {"data.train.0.name": "boolq"}),
            ("excluded and trained on", {"data.exclude": ["train"]}),
            ("neither name nor path", {"data.train.0.path": None}),
            ("no training data", {"data.train": []}),
        ]
    )
    for key, value in changes.items():
        put(values, key, value)
    write_config(case, values)
    return name


YAML_DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "tab": lambda text, rng: text + b"\n\ttab: 1\n",
    "unclosed": lambda text, rng: (
        text + rng.choice([b"x: [1, 2\n", b'x: "text\n', b"x: {a: 1\n", b"x: 'a\n"])
    ),
    "key twice": lambda text, rng: text + rng.choice([b"train: {epochs: 1}\n", b"output_dir: other\n"]),
    "not UTF-8": invalid_utf8,
    "control character": lambda text, rng: text.replace(b"m", rng.choice([b"\0", b"\x07", b"\x1b"]), 1),
    "two documents": lambda text, rng: text + b"---\n" + text,
    "undefined alias": lambda text, rng: text + b"x: *nowhere\n",
    "a tag of Python": lambda text, rng: text + b"x: !!python/object/apply:os.getcwd []\n",
    "unknown tag": lambda text, rng: text + b"x: !mine 3\n",
    "an alias of itself": lambda text, rng: (
        text + rng.choice([b"x: &a [*a]\n", b"index: &a {backend: *a}\n"])
    ),
    "a list as key": lambda text, rng: text + b"? [a, b]\n: 3\n",
    "merged number": lambda text, rng: text + b"<<: 3\n",
    "nested too deep": lambda text, rng: text + b"x: " + b"[" * rng.choice([200, 3000]),
    "a number of 5000 digits": lambda text, rng: text + b"x: " + b"7" * 5000 + b"\n",
    "no mapping": lambda text, rng: rng.choice(
        [b"[]\n", b"- a\n- b\n", b"text\n", b"3\n", b"", b"# nothing\n"]
    ),
    "UTF-16": lambda text, rng: text.decode().encode("utf-16"),
}
for _name, _damage in YAML_DAMAGE.items():

    @mutates("run config", _name, True, *BOTH)
    def _yaml_damage(case: Case, damage: Any = _damage) -> str:
        case.write(CONFIG, damage((case.folder / CONFIG).read_bytes(), case.rng))
        return CONFIG


@mutates("run config", "truncated", True, *BOTH)
def _cut_config(case: Case) -> str:
    text = json.dumps(config_of(case))
    case.write(CONFIG, text[: case.rng.randrange(len(text) - 1)])
    return CONFIG


lose_file("run config", BOTH, lambda case: CONFIG)
