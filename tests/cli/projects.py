"""Small projects on disk, `roma-ds` as a process of its own, and what a run left behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from cli.warm import WarmCommand

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
DESCRIPTIONS = ("config.resolved.yaml", "ds_config.resolved.json", "environment.json")
"""What every start of a run writes anew."""

RUN = """\
model: {{path: model, dtype: {dtype}}}
data: {{train: [{{path: train.jsonl}}], max_tokens: 160}}
embed: {{model: demo}}
roma: {{layers: last2}}
train: {{epochs: {epochs}, micro_batch: 8, lr: 1.0e-2, save_every: 8, log_every: 5}}
eval: {{tasks: [{{name: words, path: test.jsonl}}]}}
controls: []
deepspeed: zero0
output_dir: out
"""


def word_rows(count: int, first: int, words: int = 12, choices: int = 4) -> list[dict[str, Any]]:
    """Questions of random words, each with another id; the same for equal arguments."""
    rng = random.Random(first)
    return [
        {
            "id": f"r{first + place}",
            "question": " ".join(f"w{rng.randrange(60)}" for _ in range(rng.randrange(words // 2, words))),
            "choices": [f"w{60 + number}" for number in rng.sample(range(50), choices)],
            "answer": rng.randrange(choices),
        }
        for place in range(count)
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Project:
    """A config with its data and model, and the folder of its run."""

    folder: Path
    out: Path

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    def copied(self, out: Path) -> Project:
        """The same project with a copy of its run, so that what is there need not be made again."""
        shutil.copytree(self.out, out)
        return replace(self, out=out)

    def arguments(self, command: str, *more: str, ranks: int = 2) -> list[str]:
        given = [f"output_dir={self.out}", *(word for word in more if not word.startswith("--"))]
        flags = [word for word in more if word.startswith("--")]
        return [command, str(self.config), "--ranks", str(ranks), *flags, *given]

    def run(self, command: str, *more: str, ranks: int = 2, timeout_s: float = 280) -> Finished:
        """`roma-ds COMMAND run.yaml --ranks N ...`; `more` holds flags and overrides."""
        return roma_ds(*self.arguments(command, *more, ranks=ranks), cwd=self.folder, timeout_s=timeout_s)

    def routers(self, variant: str = "roma") -> dict[str, Any]:
        from safetensors.numpy import load_file

        folder = self.out / "train" if variant == "roma" else self.out / "controls" / variant
        return load_file(folder / "router.safetensors")

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; none before the first."""
        path = self.out / "train" / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def make_project(
    folder: Path,
    model_type: str = "olmoe",
    dtype: str = "float32",
    rows: int = 64,
    epochs: int = 6,
    words: int = 12,
    **model: Any,
) -> Project:
    """Write a random model of `model_type`, data and a config; nothing is run."""
    from roma_ds.testing.tiny_models import save_tiny

    folder.mkdir(parents=True, exist_ok=True)
    save_tiny(folder / "model", model_type, dtype=dtype, **{"shard_size": "200KB", **model})
    write_rows(folder / "train.jsonl", word_rows(rows, 0, words))
    write_rows(folder / "test.jsonl", word_rows(24, 1000, words))
    (folder / "run.yaml").write_text(RUN.format(dtype=dtype, epochs=epochs))
    return Project(folder, folder / "out")


@dataclass(frozen=True)
class Finished:
    """How a process ended and what it said."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- standard output\n{self.out}\n--- standard error\n{self.err}"


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])}


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [*top.children(recursive=True), top]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def none_left(family: Sequence[psutil.Process]) -> None:
    """Asserts that these processes have ended, or do so within seconds."""
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


class Started:
    """A command that runs in the background; its output goes to files, so no pipe can fill up."""

    def __init__(self, command: Sequence[str], cwd: Path) -> None:
        self._out, self._err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        self.process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def ranks(self) -> list[psutil.Process]:
        """The processes that the deepspeed launcher started, in the order of ranks."""
        wanted = re.compile(r"--local_rank=\d+")
        return [
            process
            for process in self.descendants()
            if any(wanted.fullmatch(word) for word in process.cmdline())
        ]

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, signum: int) -> None:
        """To the command alone."""
        self.process.send_signal(signum)

    def finish(self, timeout_s: float) -> Finished:
        """Wait for the end; after `timeout_s` kill everything and fail."""
        try:
            code = self.process.wait(timeout_s)
        except BaseException as error:
            kill_tree(self.process.pid)
            self.process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise AssertionError(f"still running after {timeout_s} s\n{self._read(-9)}") from error
        return self._read(code)

    def _read(self, code: int) -> Finished:
        texts = []
        for handle in (self._out, self._err):
            handle.seek(0)
            texts.append(handle.read())
        return Finished(code, *texts)


class Forked:
    """`roma-ds ...` in the background as `roma_ds` starts it; with the calls of `Started`."""

    def __init__(self, arguments: Sequence[str], cwd: Path) -> None:
        self._command = WarmCommand(arguments, cwd)

    def descendants(self) -> list[psutil.Process]:
        return self.ranks()

    def ranks(self) -> list[psutil.Process]:
        found = []
        for pid in self._command.ranks():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def has_ended(self) -> bool:
        return self._command.has_ended()

    def signal(self, signum: int) -> None:
        self._command.signal(signum)

    def finish(self, timeout_s: float) -> Finished:
        return Finished(*self._command.finish(timeout_s))


def run_command(command: Sequence[str], cwd: Path, timeout_s: float = 280) -> Finished:
    return Started(command, cwd).finish(timeout_s)


def roma_ds(*arguments: str, cwd: Path, timeout_s: float = 280) -> Finished:
    """`roma-ds ...` in processes of its own, without the start of interpreter and launcher: see warm.py."""
    return Forked(arguments, cwd).finish(timeout_s)


def typed(*arguments: str, cwd: Path, timeout_s: float = 280) -> Finished:
    """`roma-ds ...` as a user types it, launcher and all."""
    return run_command([str(BIN / "roma-ds"), *arguments], cwd, timeout_s)


def roma_ds_here(arguments: Sequence[str]) -> Finished:
    """The same within this process, on one rank: what is only refused needs no process of its own."""
    from roma_ds.cli.main import main

    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(list(arguments))
    finally:
        # A run takes over signals and variables.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
    return Finished(code, out.getvalue(), err.getvalue())


def contents(folder: Path, without: Sequence[str] = DESCRIPTIONS) -> dict[str, str]:
    """Hash of every file below `folder`, by its path there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }


def largest_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Over all tensors, which must have the same names and shapes."""
    assert first.keys() == second.keys()
    assert all(first[name].shape == second[name].shape for name in first)
    return max(float(abs(first[name] - second[name]).max()) for name in first)
