"""What the tests on several hosts share: the project, its training on one host, and what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cli.projects import Project
from hosts import evidence
from hosts.cluster import on_one_host, prepared
from hosts.namespaces import Hosts, why_no_hosts, why_no_ssh


@pytest.fixture(scope="session", autouse=True)
def can_make_hosts() -> None:
    if reason := why_no_hosts():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def facts() -> Iterator[dict[str, list[Any]]]:
    """What was seen, for the evidence."""
    found: dict[str, list[Any]] = {"equal": [], "losses": [], "signals": []}
    yield found
    if path := evidence.wanted():
        evidence.write(path, found)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return prepared(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def reference(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Project]:
    """The same training by as many ranks of one host, by ZeRO stage and settings."""
    known: dict[tuple[int, int, tuple[str, ...]], Project] = {}

    def at(stage: int, ranks: int = 2, more: tuple[str, ...] = ()) -> Project:
        if (stage, ranks, more) not in known:
            out = tmp_path_factory.mktemp("one_host") / "out"
            known[stage, ranks, more] = on_one_host(project, out, stage, ranks, more)
        return known[stage, ranks, more]

    return at


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts(2, ssh=why_no_ssh() is None) as made:
        yield made
