"""`roma-ds` within this process: how it ended and all that it said."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, or None where an exception left it; all that it printed."""

    code: int | None
    said: str
    seconds: float


@contextlib.contextmanager
def _limited(seconds: int | None) -> Iterator[None]:
    """Raise TimeoutError inside after so long; None does not, for threads other than the first."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"still at it after {seconds} s")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ask(arguments: Sequence[str], limit: int | None) -> Ended:
    """`roma-ds ARGUMENTS` within this process."""
    from roma_ds.cli.main import main as roma_ds

    # As a terminal has them: what standard output cannot encode is an error.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    variables, started = dict(os.environ), time.monotonic()
    code: int | None = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limited(limit):
            code = roma_ds(list(arguments))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException as error:
        # What leaves the command is what is looked for.
        if isinstance(error, KeyboardInterrupt):
            raise
        err.write(traceback.format_exc())
    finally:
        os.environ.clear()
        os.environ.update(variables)
    texts = []
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    return Ended(code, "\n".join(texts), time.monotonic() - started)
