"""Oracle routing, run by `roma-ds study`, gains on the packaged model what the model's card states."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli.projects import ROOT, roma_ds, write_rows

from roma_ds.demo.model_card import MEASURED_SEED
from roma_ds.demo.project import write_study_project
from roma_ds.demo.suite import generate

CARD = ROOT / "roma_ds" / "demo" / "model" / "README.md"
STUDY = """\
run: project/run.yaml
set: [train.samples=null]
variants: [base, oracle]
seeds: [0]
select: {tasks: [validation]}
report: [test]
output_dir: study
"""


def test_the_gap_on_the_card_s_own_rows(tmp_path: Path) -> None:
    card = " ".join(CARD.read_text().split())
    stated = re.search(r"Oracle routing \((\d+) rows\): .*? it gains ([\d.]+) points", card)
    procedure = re.search(r"learning rate ([\d.]+), at most (\d+) steps", card)
    assert stated and procedure
    rows, gap = int(stated[1]), float(stated[2])
    write_study_project(tmp_path / "project")
    write_rows(tmp_path / "project" / "test.jsonl", generate("test", 2000, MEASURED_SEED)[:rows])
    # Neither is trained; what is trained on is collected all the same.
    write_rows(tmp_path / "project" / "train.jsonl", generate("train", 40, 0))
    (tmp_path / "study.yaml").write_text(STUDY)
    done = roma_ds("study", "study.yaml", "--ranks", "1", cwd=tmp_path, timeout_s=280)
    assert done.code == 0, done
    entries = json.loads((tmp_path / "study" / "report" / "study.json").read_text())["entries"]
    gained = 100 * (entries["oracle"]["accuracy"] - entries["base"]["accuracy"])
    assert gained == pytest.approx(gap, abs=0.5 + 1e-6), "at most one row of 200 apart"
    taken = entries["oracle"]["facts"]["procedure"]
    assert (taken["lr"], taken["steps"]) == (float(procedure[1]), int(procedure[2]))
