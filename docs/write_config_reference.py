"""Writes docs/config.md from the config classes: `python docs/write_config_reference.py`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import get_args

from roma_ds.config import chat, frozen_models, optimisation, schema, sources, study

TARGET = Path(__file__).with_name("config.md")

HEAD = """# Run config

One YAML file describes a run. This page is written by `python docs/write_config_reference.py` from
`roma_ds/config/schema.py`, `sources.py`, `chat.py`, `frozen_models.py` and `optimisation.py`; a test fails
when the two differ.

- `roma-ds init NAME` prints a packaged config with comments; `roma-ds ls configs` lists them.
- Unknown keys, wrong types and contradictions are refused, all of them in one message, with exit code 2.
- Every command that takes a config also takes overrides: `roma.lambda=0.5 train.epochs=1`.
- Relative paths are relative to the config file. `model.path` and `embed.model` are taken for hub ids unless
  they start with `.`, `/` or `~` or name a folder there, and `data.chat.template` for a name unless it begins
  so, ends in `.jinja` or is a file there. Of a judge `MODULE:FUNCTION` in `data.train[]` the file `MODULE.py`
  is taken where it lies there, else the module of that name on Python's path.
- `data.train` is a list of datasets and `eval.tasks` a list of tasks; a plain task name stands for
  `{name: NAME}`.
"""

FOOT = """
## DeepSpeed JSON

`deepspeed` names a DeepSpeed JSON file: ZeRO stage, offload, communication, monitor and logging are set
there, as in any DeepSpeed project. What the run config already says (batch sizes, clipping, precision) may be
left out, set to `"auto"` or repeated; a value that contradicts the run config is an error that names both
files and both keys. Every `"auto"` is resolved before DeepSpeed sees the file, and the result is kept as
`ds_config.resolved.json` in the run folder. An `optimizer` or `scheduler` section with values of its own is
refused: both are built from `train`. What DeepSpeed's own models do not take (unknown keys of any section,
types, ranges), and what only its engine or the optimizer of that stage refuses, is named with its key path by
`roma-ds check`, and by a run before its first stage, all at once. A size written as text (`"5e8"`) or as a
fraction is refused with the number to write. Sections that are switched off (`enabled: false`, a device of
`none`, a size of 1) are no fault, whatever else is in them. A key given twice is refused; a byte-order mark
at the beginning of either file is dropped. The packaged files are described in `ds_configs/README.md`.
"""

SECTIONS = (
    ("", schema.RunConfig),
    ("model", schema.ModelConfig),
    ("data", schema.DataConfig),
    ("data.train[]", sources.DatasetConfig),
    ("data.train[].columns", sources.ColumnsConfig),
    ("data.chat", chat.ChatConfig),
    ("embed", frozen_models.EmbedConfig),
    ("roma", schema.RomaConfig),
    ("collect", frozen_models.CollectConfig),
    ("index", schema.IndexConfig),
    ("train", optimisation.TrainConfig),
    ("eval", schema.EvalConfig),
    ("eval.tasks[]", schema.TaskConfig),
    ("guards", optimisation.GuardsConfig),
)


STUDY_HEAD = """
# Study config

What `roma-ds study` takes; [study.md](study.md) explains it. `set`, `grid` and `sweep` hold overrides of the
run config, as on the command line.
"""

STUDY_SECTIONS = (
    ("", study.StudyConfig),
    ("variants[]", study.VariantConfig),
    ("select", study.SelectConfig),
)


def class_nodes() -> dict[str, ast.ClassDef]:
    """The classes of the schema's modules by name."""
    trees = [
        ast.parse(inspect.getsource(module))
        for module in (schema, sources, chat, frozen_models, optimisation, study)
    ]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def field_rows(node: ast.ClassDef) -> dict[str, tuple[str, str | None, str]]:
    """Per field of a class: its type as written, its default as written (None: required), its docstring."""
    rows: dict[str, tuple[str, str | None, str]] = {}
    for item, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        value = getattr(following, "value", None) if isinstance(following, ast.Expr) else None
        text = value.value if isinstance(value, ast.Constant) else ""
        default = None if item.value is None else ast.unparse(item.value)
        rows[item.target.id] = (ast.unparse(item.annotation), default, str(text))
    return rows


def plain_type(annotation: str) -> str:
    """The type in the words of YAML."""
    named = {
        "Text": "text",
        "str": "text",
        "Count": "whole number from 1",
        "Positive": "number above 0",
        "NotNegative": "number from 0",
        "Share": "fraction from 0, below 1",
        "AnswerForm": ", ".join(f"`{form}`" for form in get_args(sources.AnswerForm)),
        "Paths": "text or list of text",
        "EmbeddedText": ", ".join(f"`{form}`" for form in get_args(frozen_models.EmbeddedText)),
        "bool": "true or false",
        "int": "whole number",
        "float": "number",
        "None": "null",
        "Seeds": "list of whole numbers from 0, below 2^32",
    }

    def describe(node: ast.expr) -> str:
        if isinstance(node, ast.BinOp):
            return f"{describe(node.left)} or {describe(node.right)}"
        if isinstance(node, ast.Subscript):
            kind = ast.unparse(node.slice if not isinstance(node.slice, ast.Tuple) else node.value)
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            match ast.unparse(node.value):
                case "Literal":
                    return ", ".join(f"`{ast.literal_eval(item)}`" for item in inner)
                case "Annotated":
                    return describe(inner[0]) + limits(inner[1:])
                case "dict":
                    return "named values"
                case "tuple":
                    return f"list of {describe(inner[0])}".replace("section", "sections")
            return kind
        text = ast.unparse(node)
        if text == "Control":
            return "`router_tuning`, `random_neighbours`"
        return named.get(text, "section" if text.endswith("Config") else text)

    return describe(ast.parse(annotation, mode="eval").body)


def limits(annotations: list[ast.expr]) -> str:
    """The bounds of a Range, in words."""
    words = {"above": "above", "at_least": "from", "below": "below", "at_most": "to"}
    parts = [
        f"{words[keyword.arg]} {ast.unparse(keyword.value).replace('2 ** 32', '2^32')}"
        for item in annotations
        if isinstance(item, ast.Call) and ast.unparse(item.func) == "Range"
        for keyword in item.keywords
        if keyword.arg in words
    ]
    return f" {' '.join(parts)}" if parts else ""


def plain_default(default: str | None) -> str:
    """The default as YAML would write it."""
    if default is None:
        return "required"
    if default == "field(default_factory=dict)":
        return "`{}`"
    if default.startswith("field(default_factory"):
        return "its defaults"
    value = ast.literal_eval(default)
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else 'null' if value is None else value}`"


def reference() -> str:
    """The whole page."""
    run = "\n".join([HEAD.rstrip(), *tables(SECTIONS)])
    return run + "\n" + FOOT + STUDY_HEAD + "\n".join(tables(STUDY_SECTIONS)) + "\n"


def tables(sections: tuple[tuple[str, type], ...]) -> list[str]:
    """A table for each section, under its title."""
    nodes = class_nodes()
    parts: list[str] = []
    for prefix, owner in sections:
        title = f"`{prefix}`" if prefix else "Top level"
        parts.append(f"\n## {title}\n\n{(owner.__doc__ or '').strip()}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        rows = field_rows(nodes[owner.__name__])
        for item in dataclasses.fields(owner):
            if item.metadata.get("key", True):
                annotation, default, text = rows[item.name]
                key = ".".join(filter(None, [prefix, item.name.rstrip("_")]))
                row = f"| `{key}` | {plain_type(annotation)} | {plain_default(default)} | {text} |"
                parts.append(" ".join(row.split()))
    return parts


if __name__ == "__main__":
    TARGET.write_text(reference())
    sys.stdout.write(f"wrote {TARGET}\n")
