"""The examples of docs/data.md: rows, what the config says of them, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roma_ds.config import RunConfig, parse_run_config
from roma_ds.config.yaml_text import dump, parse
from roma_ds.data import load_training
from roma_ds.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
_EXAMPLE = re.compile(r"```json\n(.*?)```\n(?:```yaml\n(.*?)```\n)?```text\n(.*?)```\n", re.DOTALL)
NAME = "rows.jsonl"


@dataclass(frozen=True)
class Example:
    """Rows as JSON lines, part of a config as YAML or nothing, and what the page says becomes of them."""

    rows: str
    config: str
    said: str


def examples() -> Iterator[Example]:
    for rows, config, said in _EXAMPLE.findall(PAGE.read_text()):
        yield Example(rows, config, said.removesuffix("\n"))


def run_of(config: str, folder: Path) -> RunConfig:
    """A run on `rows.jsonl` in `folder`, with what an example says of its config."""
    values = parse(config) or {}
    data = {"train": [{"path": NAME}], **values.pop("data", {})}
    rest = {"model": {"path": "owner/model"}, "eval": {"tasks": []}, "output_dir": "out", **values}
    return parse_run_config(dump({**rest, "data": data}), folder / "run.yaml")


def outcome(example: Example, folder: Path) -> str:
    """What becomes of the rows: prompts with their answers, equal ones once, or why they are refused."""
    (folder / NAME).write_text(example.rows)
    try:
        samples, [record] = load_training(run_of(example.config, folder))
    except UserError as error:
        first = error.message.splitlines()[0].replace(f"{folder}/", "")
        return f"refused: {first}"
    texts = list(dict.fromkeys(f"{sample.prompt}<<{sample.target}>>" for sample in samples))
    left_out = [line.replace(f"{folder}/", "") for line in record.left_out()]
    return "\n\n".join([*texts, *(["\n".join(left_out)] if left_out else [])])
