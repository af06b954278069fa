"""No file of the package imports another that imports it, by way of others neither; folders stay small."""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from package_sources import Source, package_sources

MOST_FILES = 20
"""On one level of a folder; families/ has a file for each family."""


def module(source: Source) -> str:
    """Dotted name of a file below roma_ds/."""
    return ".".join(["roma_ds", *Path(source.path).with_suffix("").parts]).removesuffix(".__init__")


def circle(sources: list[Source]) -> list[str]:
    """Modules of which each imports the next, the last being the first again; empty where there are none.

    Imports inside functions and under TYPE_CHECKING count: they too say that two files are one.
    """
    modules = {module(source) for source in sources}
    graph: dict[str, set[str]] = {}
    for source in sources:
        mine = module(source)
        found = {name if name in modules else name.rpartition(".")[0] for _, name in source.imported()}
        graph[mine] = (found & modules) - {mine}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # graphlib lists each module before those that import it.
        return list(reversed(error.args[1]))
    return []


def crowded(sources: list[Source]) -> list[str]:
    """Folders with more files than a reader takes in at a look."""
    files = Counter(str(Path(source.path).parent) for source in sources)
    return [folder for folder, count in files.items() if count > MOST_FILES and folder != "families"]


def test_no_circles() -> None:
    assert not (found := circle(package_sources())), " imports ".join(found)


def test_no_crowded_folders() -> None:
    assert not crowded(package_sources())


TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from roma_ds.comm.beats import Beats\n"


@pytest.mark.parametrize(
    "texts",
    [
        {"a/one.py": "from roma_ds.a import two\n", "a/two.py": "from roma_ds.a.one import f\n"},
        {"a/one.py": "import roma_ds.b.two\n", "b/two.py": "def f():\n    from roma_ds.a.one import g\n"},
        {
            "a/one.py": "from .two import f\n",
            "a/two.py": "from ..b.three import f\n",
            "b/three.py": "from roma_ds.a.one import g\n",
        },
        {"a/__init__.py": "from roma_ds.a.one import f\n", "a/one.py": "from roma_ds.a import g\n"},
    ],
    ids=["two", "in a function", "three", "a package and its file"],
)
def test_a_circle_is_found(texts: dict[str, str]) -> None:
    found = circle([Source(path, text) for path, text in texts.items()])
    assert found[0] == found[-1] and set(found) == {module(Source(path, "")) for path in texts}


def test_a_circle_put_into_the_package_is_found() -> None:
    """Under TYPE_CHECKING, between two files of which one imports the other today."""
    sources = {source.path: source for source in package_sources()}
    assert any(name.startswith("roma_ds.comm.presence") for _, name in sources["comm/beats.py"].imported())
    sources["comm/presence.py"] = Source("comm/presence.py", sources["comm/presence.py"].text + TYPES)
    assert {"roma_ds.comm.presence", "roma_ds.comm.beats"} == set(circle(list(sources.values())))


def test_no_circle_is_seen_where_there_is_none() -> None:
    sources = [
        Source("a/__init__.py", "from roma_ds.a.one import f\n"),
        Source("a/one.py", "import roma_ds\nfrom roma_ds.a.two import f\nfrom roma_ds.a.one import f\n"),
        Source("a/two.py", "import os\n"),
    ]
    assert circle(sources) == []


def test_a_crowded_folder_is_found() -> None:
    files = [Source(f"a/b/file{number}.py", "") for number in range(MOST_FILES + 1)]
    assert crowded(files) == ["a/b"]
    assert not crowded(files[1:])
    assert not crowded([Source(f"families/{number}.py", "") for number in range(99)])
