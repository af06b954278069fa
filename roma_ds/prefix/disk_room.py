"""Room on disk for the prefix cache: checked before it is taken, and one error when there is none."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from roma_ds.errors import EnvironmentFault

RESERVE = 1 << 30
"""Bytes that stay free for everything else that a run writes."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FIX = "train.prefix_cache=off, or another output_dir"


def check_room(folder: Path, needed: int, useless: Sequence[Path], older: Sequence[Path]) -> None:
    """Raise EnvironmentFault unless `needed` bytes fit beside RESERVE, once the `useless` files are gone.

    folder: need not exist yet. older: files that the user could delete to make room.
    """
    free = _free(folder) + _allocated(useless)
    if needed <= free - RESERVE:
        return
    fix = FIX
    if older and needed <= free + _allocated(older) - RESERVE:
        fix += f", or delete the older prefix cache in {folder} ({_size(_allocated(older))})"
    raise EnvironmentFault(
        f"the prefix cache needs {_size(needed)} of disk at {folder}, free are {_size(free)}, "
        f"of which {_size(RESERVE)} are kept for other files",
        fix,
    )


def preallocate(path: Path, size: int) -> None:
    """A file of `size` zero bytes whose blocks are taken, where the file system can do that."""
    with open(path, "wb") as file:
        try:
            # The system call refuses 0.
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            file.truncate(size)
        os.fsync(file.fileno())


@contextlib.contextmanager
def disk_faults(folder: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into an EnvironmentFault; a full disk with the bytes `needed` in all."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise EnvironmentFault(
                f"the prefix cache in {folder} cannot be used: {error}", "check the disk, or " + FIX
            ) from error
        raise EnvironmentFault(
            f"the disk is full: the prefix cache needs {_size(needed)} at {folder}, "
            f"free are {_size(_free(folder))}",
            FIX,
        ) from error


@contextlib.contextmanager
def cleaned_up(folder: Path, staging: Path) -> Iterator[None]:
    """Remove `staging` at the end and, after an error, the folders that were made on the way to it."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):
            for path in absent:
                path.rmdir()
        raise
    shutil.rmtree(staging)


def _free(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _allocated(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


def _size(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB ({count} bytes)"
