"""Links and file names in the documents exist; generated pages are current."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("ds_configs/*.md")])
CODE_FILE = re.compile(r"`((?:roma_ds|launch|docs|tests|ds_configs)/[\w./-]*|[\w-]+\.(?:txt|toml))`")


def test_there_are_documents() -> None:
    assert len(DOCUMENTS) >= 8


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text()
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    broken = [link for link in links if not (document.parent / link.split("#")[0]).exists()]
    broken += [name for name in CODE_FILE.findall(text) if "NAME" not in name and not (ROOT / name).exists()]
    assert not broken, f"{document.name} names {broken}"


def test_the_index_of_the_documents_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert len(pages) > 10
    assert [page for page in pages if f"]({page})" not in index] == []


def test_the_config_reference_is_current() -> None:
    path = ROOT / "docs" / "write_config_reference.py"
    spec = importlib.util.spec_from_file_location("write_config_reference", path)
    assert spec is not None and spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert (ROOT / "docs" / "config.md").read_text() == writer.reference(), (
        "docs/config.md is out of date: run python docs/write_config_reference.py"
    )


def test_the_dependency_page_names_every_requirement() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text().lower()
    lines = re.findall(r'^\s*"([A-Za-z][\w.-]*)[<>=]', (ROOT / "setup.py").read_text(), re.MULTILINE)
    lines += re.findall(r'"([A-Za-z][\w.-]*)>=', (ROOT / "setup.py").read_text())
    missing = sorted({name for name in lines if f"| {name.lower()} |" not in page})
    assert not missing, f"docs/dependencies.md does not explain {missing}"
