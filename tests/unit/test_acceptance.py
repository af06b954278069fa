"""When there is something to embed, and so a model to embed it with is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from data_files import question, run_on, write_rows

from roma_ds.cli.main import main
from roma_ds.config import to_yaml
from roma_ds.embed.encoder_files import embedding_width
from roma_ds.embed.stage import OUTPUTS, embed_inputs
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.pipeline.acceptance import must_embed
from roma_ds.pipeline.data import make_data
from roma_ds.pipeline.folders import Folders
from roma_ds.pipeline.machine_support import LATE, check_machine
from roma_ds.pipeline.plan_of_stages import require_tasks
from roma_ds.pipeline.worker import GOALS


def test_no_tasks_are_nothing_to_evaluate(tmp_path: Path) -> None:
    without = run_on(tmp_path, "eval.tasks=[]")
    for goal in GOALS:
        require_tasks(goal, run_on(tmp_path))
        if goal != "eval":
            require_tasks(goal, without)
    with pytest.raises(UserError, match=r"eval\.tasks is empty: there is nothing to evaluate"):
        require_tasks("eval", without)


def test_embeddings_that_are_there_need_no_model(tmp_path: Path) -> None:
    run = run_on(tmp_path)
    folders = Folders(Path(run.output_dir))
    assert must_embed(run, folders)
    make_data(run, folders, lambda text: None)
    assert must_embed(run, folders)
    record = folders.record("embed")
    record.folder.mkdir()
    for name in OUTPUTS:
        (record.folder / name).write_bytes(b"numbers")
    record.finish(embed_inputs(run, folders.record("data").read()["fingerprint"]), OUTPUTS, 1.0, {})
    assert not must_embed(run, folders)
    assert not must_embed(run_on(tmp_path, "train.lr=0.5"), folders)
    assert must_embed(run_on(tmp_path, "embed.model=demo"), folders)
    assert must_embed(run_on(tmp_path, "data.train=[{path: train.jsonl, limit: 9}]"), folders)
    write_rows(tmp_path / "train.jsonl", [question(place) for place in range(5)])
    assert must_embed(run, folders)


@pytest.mark.parametrize("module", sorted(LATE))
def test_packages_of_later_stages_are_looked_for_first(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_machine({})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentFault, match=f"needed by a later stage: {LATE[module]}"):
        check_machine({})


def test_what_is_refused_is_refused_before_the_data_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(tmp_path)
    (tmp_path / "ds.json").write_text('{"tensorboard": {"enabled": true, "log_dir": "x"}}')
    (tmp_path / "good.json").write_text("{}")
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    typed = ["run", str(tmp_path / "run.yaml"), "model.path=demo", "embed.model=demo"]
    assert main([*typed, "--ds", str(tmp_path / "ds.json")]) == 2
    assert "ds.json: tensorboard.log_dir: unknown key" in capsys.readouterr().err
    good = ["--ds", str(tmp_path / "good.json")]
    assert main([*typed, *good, "index.factory=PQ8x4fs", "roma.epsilon=0.3"]) == 2
    assert "cannot search by roma.epsilon" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main([*typed, *good]) == 3
    assert "no FAISS is installed" in capsys.readouterr().err
    assert not list(Path(run.output_dir).rglob("*.parquet"))


def test_the_width_of_an_embedding_is_read_from_files(tmp_path: Path) -> None:
    assert embedding_width(run_on(tmp_path, "embed.model=demo").embed) == 384
    assert embedding_width(run_on(tmp_path, f"embed.model={tmp_path}").embed) is None
