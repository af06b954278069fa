"""A benchmark that wraps the package from outside still finds what it wraps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli.warm import run_launcher

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.timeout(400)


def test_the_index_is_timed_in_real_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import launched
    from index_speed import main

    forking = SimpleNamespace(run=run_launcher, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(launched, "subprocess", forking)
    small = {
        "layers": 3, "hidden": 16, "experts": 4, "top-k": 2, "expert-width": 8, "heads": 2,
        "key-value-heads": 2, "head-width": 8, "samples": 96, "tokens": 8, "steps": 8,
    }  # fmt: skip
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    out = tmp_path / "results"
    main(
        ["share", *words, "--trained", "last2", "--repeats", "1", "--placements", "sharded",
         "--work", str(tmp_path / "work"), "--out", str(out)]
    )  # fmt: skip
    result = json.loads((out / "index-share-96-ranks2-sharded.json").read_text())
    turn, still = result["turns"][0], result["without_refreshing"][0]
    assert turn["steps"] > 0 and 0 < turn["share"] < 1 and turn["seconds"]["clock"] > 0
    assert turn["shares"]["processor time beside the training"] > 0
    assert still["shares"]["processor time beside the training"] == 0
