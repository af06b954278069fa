"""Run a function on several ranks of this host: gloo, file rendezvous, a hard timeout."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

from roma_ds.errors import RomaError

_IMPORTED = (
    "deepspeed",
    # Of ZeRO-3, which compiles by torch._inductor if it is asked to.
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "evaluate",
    "faiss",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.olmoe.modeling_olmoe",
    "sentence_transformers",
    "torch.utils.tensorboard",
    "roma_ds.config.deepspeed_models",
    "roma_ds.monitor.report",
    "roma_ds.pipeline.evaluating",
    "roma_ds.pipeline.stages",
    "roma_ds.pipeline.worker",
    "roma_ds.testing.settled",
)
"""What takes seconds to import is imported once for all calls; each rank is forked from there."""
_ALIKE = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
"""Read by libraries when they are imported."""
_STREAMS = {1: "stdout", 2: "stderr"}


def fork_server() -> ForkServerContext:
    """What starts processes that have imported the libraries; it lives as long as this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_IMPORTED])
    server: Any = forkserver._forkserver
    if server._forkserver_pid is None and server._forkserver_address is not None:
        # This process was forked from it, of which CPython 3.11 would start another one here.
        server.ensure_running = lambda: None
    # Its variables are those of the moment when it is started.
    with mock.patch.dict(os.environ, _ALIKE):
        server.ensure_running()
    return context


def redirect(folder: Path) -> None:
    """Let this process write to the files `stdout` and `stderr` in `folder`, not to the server's streams."""
    for number, name in _STREAMS.items():
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


def _start(
    body: Callable[..., Any],
    rank: int,
    size: int,
    folder: Path,
    variables: Mapping[str, str],
    answers: Connection,
    arguments: tuple[Any, ...],
) -> None:
    redirect(folder)
    os.environ.clear()
    os.environ |= {
        **variables,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_SIZE": str(size),
        # Names of shared memory are made of them; ranks meet through the file.
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(os.getppid()),
        **_ALIKE,
    }
    import torch

    torch.set_num_threads(1)
    from roma_ds.comm import start_world

    code = 0
    try:
        world = start_world(folder / "rendezvous")
        answers.send(body(world, *arguments))
        world.close()
    except RomaError as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except BaseException:  # noqa: BLE001  everything must end this process, or the others would wait
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


class RankFailed(AssertionError):
    """A rank ended with a code other than 0, or the time was up."""

    def __init__(self, codes: dict[int, int | None]) -> None:
        super().__init__(f"exit codes by rank: {codes}")
        self.codes = codes


def on_ranks(size: int, body: Callable[..., Any], *arguments: Any, timeout_s: float = 120.0) -> list[Any]:
    """Call `body(world, *arguments)` on `size` ranks; returns their results in rank order.

    The first rank that fails ends the others. Raises RankFailed, whose `codes` are the exit codes.
    """
    context = fork_server()
    with tempfile.TemporaryDirectory() as name:
        folder, variables = Path(name), dict(os.environ)
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(
                target=_start, args=(body, rank, size, folder, variables, pipes[rank][1], arguments)
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        deadline = time.monotonic() + timeout_s
        results: dict[int, Any] = {}
        try:
            while any(process.is_alive() for process in processes):
                # A rank blocks while its answer does not fit in the pipe, so answers are taken as they come.
                _take(pipes, results)
                late = time.monotonic() > deadline
                if late or any(process.exitcode not in (None, 0) for process in processes):
                    # Ranks that agreed on an error end by themselves within moments.
                    for process in processes:
                        process.join(0 if late else 5)
                    break
                time.sleep(0.02)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
            for number, name in _STREAMS.items():
                if (folder / name).exists():
                    os.write(number, (folder / name).read_bytes())
        codes = {rank: process.exitcode for rank, process in enumerate(processes)}
        if any(codes.values()):
            raise RankFailed(codes)
        _take(pipes, results)
        return [results[rank] for rank in range(size)]


def _take(pipes: list[tuple[Connection, Connection]], results: dict[int, Any]) -> None:
    """Move answers that have come into `results`, by rank."""
    for rank, (receiver, _) in enumerate(pipes):
        if rank in results or receiver.closed or not receiver.poll():
            continue
        try:
            results[rank] = receiver.recv()
        except EOFError:
            # The rank ended without an answer; its exit code tells.
            receiver.close()
