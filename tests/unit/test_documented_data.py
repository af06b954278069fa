"""What docs/data.md says of files and rows is what the reader does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documented_rows import NAME, PAGE, Example, examples, outcome, run_of
from row_files import KINDS

from roma_ds.config.yaml_text import parse
from roma_ds.data.files.opening import SEPARATED
from roma_ds.data.files.packed import PACKINGS
from roma_ds.data.shapes.chat import ROLES
from roma_ds.data.shapes.detection import SHAPES

EXAMPLES = list(examples())
TEXT = PAGE.read_text()


def test_every_block_of_rows_is_an_example() -> None:
    assert len(EXAMPLES) == TEXT.count("```json\n") == TEXT.count("```text\n") > 20


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.rows[:50])
def test_an_example_becomes_what_the_page_says(tmp_path: Path, example: Example) -> None:
    assert outcome(example, tmp_path) == example.said


def test_an_example_that_has_drifted_would_be_seen(tmp_path: Path) -> None:
    first = EXAMPLES[0]
    assert outcome(Example(first.rows.replace("tin", "lead"), first.config, ""), tmp_path) != first.said


def test_blocks_of_config_are_configs(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) > 4
    for block in blocks:
        run = run_of(block, tmp_path)
        assert run.data.train and set(parse(block)) <= {"data", "eval"}


def test_every_shape_has_an_example() -> None:
    rows = " ".join(example.rows for example in EXAMPLES)
    for shape in SHAPES:
        assert any(f'"{key}"' in rows for key in shape.needs[-1]), shape.name
    assert NAME not in rows


def test_kinds_packings_and_speakers_are_named() -> None:
    files = TEXT[TEXT.index("## Files") : TEXT.index("## Where they lie")]
    for kind, _ in KINDS.values():
        named = kind.split(",")[0].replace("JSON objects over several lines", "over several lines")
        assert named in files, kind
    assert not [packing for packing in PACKINGS.values() if packing not in files]
    assert all(f"`{ending}`" in files for ending in SEPARATED)
    speakers = TEXT[TEXT.index("Speakers are called") :].partition("\n")[0]
    assert not [name for name in ROLES if name not in speakers and name != "function_call"]
