"""Text files that a user writes beside the config: hostfiles and .deepspeed_env."""

from __future__ import annotations

from pathlib import Path

from roma_ds.errors import UserError


def lines_of(path: Path) -> list[str]:
    """The lines of a file. Raises UserError where it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{path} cannot be read: {reason}", "make it a text file in UTF-8 that you may read"
        ) from error
