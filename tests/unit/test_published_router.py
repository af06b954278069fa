"""A router file by its path, or by its repository: here from the cache alone. From a hub: tests/cli."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from roma_ds.errors import UserError
from roma_ds.storage.published_router import local_router


def cached(folder: Path, owner: str, name: str, commit: str = "abc") -> Path:
    """As huggingface_hub lays a repository down."""
    place = folder / f"models--{owner}--{name}"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit / "router.safetensors").write_text("weights")
    return place / "snapshots" / commit / "router.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_path_is_taken_as_it_is() -> None:
    assert local_router("runs/a/router.safetensors") == Path("runs/a/router.safetensors")


def test_without_network_the_cache_serves(cache: Path) -> None:
    path = cached(cache, "somebody", "routers-1.5")
    assert local_router("hub:somebody/routers-1.5") == path
    assert local_router("hub:somebody/routers-1.5@main") == path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hub:somebody/other", "is not in the hub's cache, and cannot be fetched: HF_HUB_OFFLINE is set"),
        ("hub:somebody/routers@v2", "is not in the hub's cache"),
        ("hub:", "hub: names no repository"),
        ("hub:routers", "hub:routers names no repository"),
        ("hub:a/b/c", "hub:a/b/c names no repository"),
        ("hub:a/b@", "hub:a/b@ names no repository"),
        ("hub:../../etc", "names no repository|is not in the hub's cache|cannot be fetched"),
    ],
)
def test_what_cannot_be_had_is_named(cache: Path, given: str, message: str) -> None:
    cached(cache, "somebody", "routers")
    with pytest.raises(UserError, match=message) as refused:
        local_router(given)
    assert refused.value.fix
