"""Two runs never write into one folder."""

from __future__ import annotations

import os
from pathlib import Path

from cli.projects import make_project, roma_ds_here

from roma_ds.storage.run_lock import locked


def test_the_second_run_is_refused_and_names_the_first(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    with locked(project.out):
        done = roma_ds_here(project.arguments("data", ranks=1))
        assert done.code == 2
        assert f"{project.out} is in use by process {os.getpid()} on host" in done.err, done
        assert "Traceback" not in done.err
        assert not (project.out / "data").exists()
    assert roma_ds_here(project.arguments("data", ranks=1)).code == 0
