"""Marks by folder, a CPU accelerator where there is no GPU, and nothing fetched from a hub."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from cli.projects import Project

LAYERS = ("unit", "distributed", "deepspeed", "cli", "hosts")
LONGEST = (
    "test_resume", "test_live_index", "test_equalities", "test_frozen_pass", "test_refreshed_training",
    "test_resume_everywhere", "test_harness", "test_full_size", "test_bad_input", "test_kills",
    "test_study_writing", "test_real_data", "test_study_command", "test_transports", "test_training_guards",
    "test_cached_runs", "test_commands", "test_families_on_ranks", "test_cache_made_again",
    "test_benchmarks_run",
)  # fmt: skip
"""Files that take longest go first, so that processes which take file by file end together."""
HERE = Path(__file__).parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Networks of these tests are too small for two threads, which mostly wait for each other, and equal work on
# other numbers of ranks gives equal bits only where each has as many threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd")):
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def not_synced(descriptor: Any) -> None:
    """Nothing that a test writes must survive a power cut."""


os.fsync = not_synced

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@functools.cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        layer = item.path.relative_to(HERE).parts[0]
        if layer in LAYERS:
            item.add_marker(getattr(pytest.mark, layer))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Leave the libraries' objects alone: closing a network collects garbage, among millions of theirs."""
    global _modules
    if len(sys.modules) > _modules + 200:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


_modules = 0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    spent = Counter[str]()
    for reports in terminalreporter.stats.values():
        for done in reports:
            if isinstance(done, pytest.TestReport):
                spent[done.nodeid.split("/")[1]] += done.duration
    if spent:
        terminalreporter.section("seconds in tests by layer")
        terminalreporter.line(", ".join(f"{layer} {spent[layer]:.0f}" for layer in LAYERS if layer in spent))
    failed = os.environ.get("ROMA_DS_FAILED_BEFORE")
    if failed:
        terminalreporter.section("failed before the tests (see above)", red=True)
        terminalreporter.line(failed)


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny project in float32 whose run is made up to the neighbours; copy it, do not change it.

    The processes of one pass of the tests share it.
    """
    from cli.projects import Project, make_project

    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder = place / "indexed"
    with (place / "indexed.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            done = make_project(folder).run("index", ranks=1)
            assert done.code == 0, done
            lock.write("made")
    return Project(folder, folder / "out")
