"""Text files that a user writes beside the config: hostfiles and .deepspeed_env."""

from __future__ import annotations

import codecs
import os
import tempfile
from pathlib import Path

from roma_ds.errors import UserError


def lines_of(path: Path) -> list[str]:
    """The lines of a file, without a byte-order mark.

    Raises UserError where it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{path} cannot be read: {reason}", "make it a text file in UTF-8 that you may read"
        ) from error


def plain_copy(path: Path) -> Path | None:
    """A copy without its byte-order mark, to be deleted by the caller; None where there is no mark.

    For programs that would take the mark for a part of the first host's name.
    """
    text = path.read_bytes()
    if not text.startswith(codecs.BOM_UTF8):
        return None
    handle, copy = tempfile.mkstemp(prefix="roma_ds_hostfile_")
    with os.fdopen(handle, "wb") as file:
        file.write(text.removeprefix(codecs.BOM_UTF8))
    return Path(copy)
