"""The packaged config `real_data` on real questions, with the real OLMoE tokenizer and random weights."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cli.projects import ROOT, Forked, roma_ds

from roma_ds.config import preset_text
from roma_ds.testing.tiny_models import save_with_vocabulary

DATA = Path(os.environ.get("ROMA_DS_TEST_DATA") or ROOT.parent / "shared" / "data").resolve()
TOKENIZER = DATA / "tokenizers" / "olmoe_tokenizer.json.gz"
TRAINING, EVALUATION = 60, 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not TOKENIZER.exists(), reason=f"no benchmark files in {DATA} (ROMA_DS_TEST_DATA)"),
]


def lines(path: Path) -> list[dict[str, Any]]:
    whole = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in whole if line.endswith("\n")]


def test_the_packaged_config_stopped_and_run_again(tmp_path: Path) -> None:
    save_with_vocabulary(tmp_path / "model", TOKENIZER, "bfloat16")
    (tmp_path / "real_data.yaml").write_text(preset_text("real_data"))
    line = [
        "run",
        "real_data.yaml",
        "--ranks",
        "2",
        f"data.data_root={DATA}",
        f"eval.data_root={DATA}",
        f"data.train.0.limit={TRAINING}",
        f"eval.limit={EVALUATION}",
        "train.batch=4",
        "train.micro_batch=2",
        "train.save_every=5",
        "train.log_every=1",
        "train.epochs=2",
    ]
    out = tmp_path / "runs" / "real_data"
    started = Forked(line, tmp_path)
    deadline = time.monotonic() + 300
    while len(lines(out / "train" / "metrics.jsonl")) < 8 and not started.has_ended():
        assert time.monotonic() < deadline, started.finish(0.1)
        time.sleep(0.05)
    started.signal(signal.SIGTERM)
    stopped = started.finish(120)
    assert stopped.code == 143, stopped

    done = roma_ds(*line, cwd=tmp_path, timeout_s=400)
    assert done.code == 0, done
    assert "resumed after step" in done.out and "train router_tuning: up to date" in done.out, done
    steps = [entry["step"] for entry in lines(out / "train" / "metrics.jsonl")]
    assert steps == list(range(1, 2 * TRAINING // 4 + 1))

    report = json.loads((out / "report" / "report.json").read_text())
    assert set(report["variants"]) == {"base", "router_tuning", "roma"}
    assert report["training"]["samples"] == TRAINING
    for variant in report["variants"]:
        measured = json.loads((out / "eval" / f"{variant}.json").read_text())["tasks"]
        assert set(measured) == {"arc_easy", "arc_challenge"}
        for task, result in measured.items():
            assert report["variants"][variant]["tasks"][task]["n"] == result["n"] == EVALUATION
            # Four or five options, random weights: 25 % within four standard errors.
            assert abs(result["accuracy"] - 0.25) < 0.28, (variant, task, result)
            assert sum(result["predicted"].values()) == EVALUATION
            assert set(result["predicted"]) <= set("ABCDE")
    page = (out / "report" / "report.html").read_text()
    assert "arc_challenge" in page and "data:image/png" in page
