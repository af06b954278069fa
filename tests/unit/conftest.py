"""Tiny checkpoints, one of each family, made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers, 8 experts, top-2, hidden 32, float32."""
    from roma_ds.testing.tiny_models import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny") / "olmoe")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tiny_olmoe, of another family and seed."""
    from roma_ds.testing.tiny_models import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny") / "qwen3_moe", "qwen3_moe", seed=1)


@pytest.fixture(params=["tiny_olmoe", "tiny_qwen3"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Each family in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_olmoe: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_olmoe)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order, so that equal work gives equal bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sketches() -> Iterator[None]:
    """Pictures are drawn small and of few points, texts wherever: for tests that do not look at them."""
    from roma_ds.monitor.plots import projection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("roma_ds.monitor.plots.canvas.LAYOUT", None)
        patch.setattr("roma_ds.monitor.plots.canvas.DOTS_PER_INCH", 20)
        patch.setitem(projection.__globals__, "MAX_POINTS", 40)
        yield
