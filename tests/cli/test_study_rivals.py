"""Rivals in a study: what is measured of their routing, with and without prefix cache."""

from __future__ import annotations

import json
from pathlib import Path

from cli.projects import make_project, roma_ds_here

NAMES = ("lora", "lora_mixture", "prompt_tuning", "prefix_tuning", "dense_bp")
STUDY = """\
run: {run}
set: [train.epochs=1, train.lr={lr}]
variants: [base, {names}]
seeds: [0]
output_dir: {out}
"""


def test_alignment_and_side_effects_of_rivals_are_in_the_result(tmp_path: Path) -> None:
    project = make_project(tmp_path, rows=24)
    found = {}
    for lr in ("1e-2", "1e-12"):
        study = tmp_path / f"study-{lr}.yaml"
        out = tmp_path / lr
        study.write_text(STUDY.format(run=project.config, lr=lr, names=", ".join(NAMES), out=out))
        done = roma_ds_here(["study", str(study), "--ranks", "1"])
        assert done.code == 0, done
        found[lr] = json.loads((out / "report" / "study.json").read_text())["entries"]
    for name in NAMES:
        trained = found["1e-2"][name]
        assert set(trained["alignment"]) == {"words"}, name
        assert 0 < trained["side_effects"]["expert_overlap_with_base"] <= 1, name
        if name.endswith("tuning"):
            # Virtual tokens change what the model reads before anything is learned.
            assert trained["side_effects"]["expert_overlap_with_base"] < 1, name
            continue
        base, untrained = found["1e-12"]["base"], found["1e-12"][name]
        assert untrained["side_effects"]["expert_overlap_with_base"] > 0.99, name
        for measure, value in base["alignment"]["words"].items():
            assert abs(untrained["alignment"]["words"][measure] - value) < 2e-2, (name, measure)
