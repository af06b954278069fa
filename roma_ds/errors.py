"""Errors whose message is meant for the user, each with the exit code of its kind."""

from __future__ import annotations

import errno
import os
import re
import select
import signal


class RomaError(Exception):
    """A failure with a message and, where there is one, the step that mends it.

    `str()` gives the message, then the fix on a line of its own.
    """

    exit_code = 1
    agreed = False
    """True once every rank raises this same error, so that one of them prints it."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


class UserError(RomaError):
    """The user's input (config, data, arguments) cannot be used. Exit code 2."""

    exit_code = 2


class EnvironmentFault(RomaError):
    """The machine or its software lacks something. Exit code 3."""

    exit_code = 3


class Interrupted(RomaError):
    """A signal asked the run to end; what had to be saved is saved. Exit code 128 + signal number."""

    def __init__(self, signum: int, message: str | None = None) -> None:
        name = signal.Signals(signum).name
        super().__init__(message or f"stopped by {name}", "rerun the same command to go on")
        self.signum = signum
        self.exit_code = 128 + signum


NOBODY_READS = 128 + signal.SIGPIPE
"""Exit code where what read the output, such as `head`, has ended: nothing is left to say."""


def nobody_reads() -> bool:
    """Whether what this process writes to, by its standard output or error, has no reader any more."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    # A terminal that was hung up says POLLHUP as well.
    states = (happened & (select.POLLERR | select.POLLHUP) for _, happened in poll.poll(0))
    return any(state == select.POLLERR for state in states)


def silence() -> None:
    """Let what is still to be written to the standard output and error go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)


FULL = (errno.ENOSPC, errno.EDQUOT)


def full_disk(error: BaseException) -> EnvironmentFault | None:
    """The error to show in place of one that says that a disk is full; None for any other."""
    number = error.errno if isinstance(error, OSError) else None
    # safetensors reports what the system said as text.
    said = re.search(r"\(os error (\d+)\)", str(error))
    if number is None and said:
        number = int(said[1])
    if number not in FULL:
        return None
    fault = EnvironmentFault(
        f"the disk is full: {error}", "make room there and rerun the same command, or use another output_dir"
    )
    fault.__cause__ = error
    return fault


def error_for(exit_code: int, message: str, fix: str | None) -> RomaError:
    """The error of the kind that ends with `exit_code`; used to raise one rank's error on every rank."""
    if exit_code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1):
        return Interrupted(exit_code - 128, message)
    kind = {2: UserError, 3: EnvironmentFault}.get(exit_code, RomaError)
    return kind(message, fix)


def out_of_memory(error: BaseException) -> EnvironmentFault | None:
    """The error to show in place of one that says that memory is used up; None for any other."""
    full = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    # torch's own class for devices, which this module does not import, and what its CPU allocator says.
    full = full or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if not full:
        return None
    said = (str(error).strip().splitlines() or ["an allocation failed"])[0]
    return EnvironmentFault(
        f"not enough memory: {said}",
        "a smaller train.micro_batch and eval.batch_size, fewer roma.layers, or more ranks under ZeRO-3",
    )
