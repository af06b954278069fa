"""Every command of docs/first-hour.md, in its order, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli.browser import said_address
from cli.own_files import asked_pairs, lines, save_chat_model, table_text
from cli.projects import BIN, Finished, roma_ds, run_command, word_rows

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "first-hour.md").read_text()
MODEL = "OLMoE-1B-7B-0125-Instruct"
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line
]
SHELL = ("head", "tail")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hour")
    save_chat_model(made / MODEL)
    (made / "all.jsonl").write_bytes(lines(word_rows(148, 0)))
    pairs = [{"first": pair["asked"], "second": pair["said"]} for pair in asked_pairs(12, 7)]
    (made / "odd.csv").write_bytes(table_text(pairs, ","))
    return made


def ran(line: str, folder: Path) -> Finished:
    """A line of the page; what goes into a file does so only where all went well, as a user looks first."""
    command, _, target = line.partition(" > ")
    name, *arguments = shlex.split(command)
    if name in SHELL:
        subprocess.run(line, shell=True, cwd=folder, check=True)
        return Finished(0, "", "")
    if name == "tensorboard":
        server = [str(BIN / name), *arguments, "--port", "0", "--load_fast=false"]
        os.chdir(folder)
        with said_address(server, r"(http://\S+:\d+)/? ") as address:
            return Finished(0, address, "")
    assert name == "roma-ds", line
    done = roma_ds(*arguments, cwd=folder)
    if target:
        (folder / target).write_text(done.out)
    return done


def test_the_page_holds_its_steps() -> None:
    names = [shlex.split(line)[0] for line in COMMANDS]
    assert names[:3] == ["head", "tail", "roma-ds"] and set(names) == {*SHELL, "roma-ds", "tensorboard"}
    steps = [shlex.split(line)[1] for line in COMMANDS if line.startswith("roma-ds")]
    assert steps == ["init", "init", "check", "run", "run", "run", "merge"]


@pytest.mark.timeout(900)
def test_every_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for line in COMMANDS:
        done = ran(line, folder)
        assert done.code == 0, f"{line}\n{done}"
    assert (folder / "runs" / "mine" / "report" / "report.html").is_file()
    assert (folder / "runs" / "mine" / "controls" / "random_neighbours").is_dir()
    [block] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    used = run_command([sys.executable, "-c", block], folder)
    assert used.code == 0 and "<|assistant|>" in used.out, used
