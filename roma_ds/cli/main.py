"""`roma-ds`: read the arguments, run the command, turn errors into exit codes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from roma_ds.cli.parser import STAGES, build_parser, split_launcher_flags
from roma_ds.errors import NOBODY_READS, RomaError, full_disk, nobody_reads, silence
from roma_ds.storage import TYPED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0 done, 2 user's input, 3 environment, 1 bug, 130 or 143 on a signal, 141 where nobody reads on.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            # Now, while it can still be told what became of it.
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
    except BrokenPipeError:
        if not nobody_reads():
            raise
        silence()
        return NOBODY_READS
    except OSError as error:
        full = full_disk(error)
        if full is None:
            raise
        print(f"roma-ds: error: {full}", file=sys.stderr)
        return full.exit_code


def _run(arguments: list[str]) -> int:
    given, launcher_flags = split_launcher_flags(arguments)
    options = build_parser().parse_args(given)
    # The ranks write down what the user typed, which a launcher hides from them.
    os.environ[TYPED] = shlex.join(["roma-ds", *given, *(["--", *launcher_flags] if launcher_flags else [])])
    from roma_ds.cli import commands

    try:
        if options.command == "run" or options.command in STAGES:
            return commands.run(options, launcher_flags)
        handler = getattr(commands, options.command)
        code: int = handler(options)
        return code
    except RomaError as error:
        print(f"roma-ds: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("roma-ds: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
