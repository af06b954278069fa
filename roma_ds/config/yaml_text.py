"""YAML with the scalars of version 1.2: `1e-3` is a number, `off` and `2024-01-01` are text.

A key given twice is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import yaml

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_NULL = re.compile(r"~|null|Null|NULL|")

_RESOLVERS = (
    ("tag:yaml.org,2002:bool", re.compile(f"^(?:{_BOOL.pattern})$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(f"^(?:{_INT.pattern})$"), list("-+0123456789")),
    ("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+.0123456789")),
    ("tag:yaml.org,2002:null", re.compile(f"^(?:{_NULL.pattern})$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", re.compile(r"^(?:<<)$"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    message = f"{key.value!r} is already given in line {seen[key.value]}"
                    raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
                seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    if text.endswith((".inf", ".nan")):
        return math.nan if text == ".nan" else math.copysign(math.inf, -1 if text[0] == "-" else 1)
    return float(text)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read back as text."""


# The loader reads by version 1.2 alone, the dumper quotes by the rules of both.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


class YamlProblem(Exception):
    """Text that is not the YAML we take. `line` counts from 1; None where the parser names none."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


def parse(text: str) -> Any:
    """The value of a YAML document. Raises YamlProblem."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        parts = [part for part in (error.problem, error.context) if part]
        raise YamlProblem(mark.line + 1 if mark else None, ", ".join(parts)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(line, f"a character that YAML does not allow: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise YamlProblem(None, str(error)) from error


def dump(value: Any) -> str:
    """`value` as block-style YAML, keys in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


class _InlineDumper(_Dumper):
    """Escapes line ends, all that YAML knows."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _one_line(dumper: _InlineDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if _LINE_END.search(text) else None)


_LINE_END = re.compile("[\n\r\x85\u2028\u2029]")
_InlineDumper.add_representer(str, _one_line)


def inline(value: Any) -> str:
    """`value` on one line."""
    options: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "width": math.inf}
    text: str = yaml.dump(value, Dumper=_InlineDumper, allow_unicode=True, **options)
    return text.removesuffix("\n").removesuffix("\n...")


def comments_of(text: str) -> dict[str, str]:
    """The comments behind the keys of block-style YAML, by key path (`roma.lambda`)."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)(\w+):(?: .*?)??(?:\s+# (.*))?$", line)
        if match:
            depth = len(match[1])
            path = [*(parent for parent in path if parent[0] < depth), (depth, match[2])]
            if match[3]:
                found[".".join(key for _, key in path)] = match[3]
    return found


def commented(
    values: Mapping[str, Any], comments: Mapping[str, str], notes: Mapping[str, Sequence[str]]
) -> str:
    """`values` as block-style YAML with lists on a line or an entry a line.

    comments: behind a key, by key path. notes: lines above it, or above an entry of a list (`eval.tasks.0`).
    """
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping) or (lines and lines[-1].startswith(" ")):
            lines.append("")
        lines += _lines(key, value, key, "", comments, notes)
    return "\n".join(lines).lstrip("\n") + "\n"


def _lines(
    key: str,
    value: Any,
    path: str,
    indent: str,
    comments: Mapping[str, str],
    notes: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    yield from (f"{indent}# {note}" for note in notes.get(path, ()))
    within = isinstance(value, Mapping) and bool(value)
    entries = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    line = f"{indent}{key}:" if within or entries else f"{indent}{key}: {inline(value)}"
    yield f"{line:<27} # {comments[path]}" if path in comments else line
    if within:
        for inner, content in value.items():
            yield from _lines(inner, content, f"{path}.{inner}", indent + "  ", comments, notes)
    elif entries:
        for place, item in enumerate(value):
            yield from (f"{indent}  # {note}" for note in notes.get(f"{path}.{place}", ()))
            yield f"{indent}  - {inline(item)}"
