"""Hidden states of many batches between two layers: in memory where they fit, else in two files by turns."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.families.entering import Entering
from roma_ds.prefix.disk_room import FULL, RESERVE, preallocate
from roma_ds.storage.atomic import make_folder
from roma_ds.storage.raw_values import bytes_of, read_at, write_at

FIX = "free some disk, or another output_dir"
FILES = ("activations-0.bin", "activations-1.bin")


class Activations:
    """Tables [rows, width] by batch, what one layer reads while it writes what the next one reads.

    Whatever is on disk and whole stays so until the next whole state is there: `save` gives its number, from
    which `restore` goes on, with or without the same budget of memory.
    """

    def __init__(
        self, folder: Path, room: Sequence[int], tables: Sequence[Entering], memory_bytes: int
    ) -> None:
        """room: most rows of each batch. tables: what enters each step, by its number.

        Raises EnvironmentFault where the disk is too small.
        """
        self.folder, self.tables = folder, tables
        row = max(table.token_bytes for table in tables)
        *self.places, self.total = accumulate((rows * row for rows in room), initial=0)
        self.in_memory = self.total <= memory_bytes
        self._held: dict[int, torch.Tensor] = {}
        self._files: dict[int, int] = {}
        self._current: int | None = None
        self._check_room()

    def _check_room(self) -> None:
        make_folder(self.folder)
        known = sum(path.stat().st_blocks * 512 for path in self._paths() if path.exists())
        free = shutil.disk_usage(self.folder).free
        if 2 * self.total - known > free - RESERVE and 2 * self.total > known:
            raise self._full(free)

    def _full(self, free: int) -> EnvironmentFault:
        return EnvironmentFault(
            f"the hidden states between two layers need {_gib(2 * self.total)} of disk at {self.folder}, "
            f"free are {_gib(free)}, of which {_gib(RESERVE)} are kept for other files",
            FIX,
        )

    def _paths(self) -> list[Path]:
        return [self.folder / name for name in FILES]

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise self._full(shutil.disk_usage(self.folder).free) from error
            raise EnvironmentFault(f"{self.folder} cannot be written or read: {error}", FIX) from error

    def _file(self, number: int) -> int:
        """The open file, with its room on disk taken."""
        if number not in self._files:
            path = self._paths()[number]
            with self._disk():
                if not path.exists() or path.stat().st_size != self.total:
                    try:
                        preallocate(path, self.total)
                    except OSError:
                        path.unlink(missing_ok=True)
                        raise
                self._files[number] = os.open(path, os.O_RDWR)
        return self._files[number]

    def _other(self) -> int:
        return 0 if self._current is None else 1 - self._current

    def restore(self, number: int, step: int, rows: Sequence[int]) -> None:
        """Go on from what `save` left; step: that reads it; rows: of each batch.

        Raises UserError where it is not there whole.
        """
        path = self._paths()[number]
        if not path.exists() or path.stat().st_size != self.total:
            raise UserError(f"{path} is not whole", "rerun from the start")
        self._current = number
        if self.in_memory:
            self._held = {batch: self._from_file(step, batch, count) for batch, count in enumerate(rows)}

    def read(self, step: int, batch: int, rows: int) -> torch.Tensor:
        """The table [rows, width] that this step reads, on the CPU; not to be changed in place."""
        return self._held[batch] if self.in_memory else self._from_file(step, batch, rows)

    def write(self, batch: int, values: torch.Tensor) -> None:
        """What the next step reads of a batch, once it was read here: [rows, width]."""
        values = values.detach().to("cpu").contiguous()
        if self.in_memory:
            # A slice would keep all of what it was cut from.
            whole = values.untyped_storage().nbytes() == values.nbytes
            self._held[batch] = values if whole else values.clone()
        else:
            self._to_file(self._other(), batch, values)

    def turn(self) -> None:
        """The layer is done: what was written is what the next one reads."""
        if not self.in_memory:
            self._sync(self._other())
            self._current = self._other()

    def save(self) -> int:
        """Number of the file that holds, safely on disk, what the next layer reads."""
        if self.in_memory:
            number = self._other()
            for batch, values in self._held.items():
                self._to_file(number, batch, values)
            self._sync(number)
            self._current = number
        assert self._current is not None
        return self._current

    def tidy(self) -> None:
        """Once a record names the current file: give back the other one where only saving needs it."""
        if self.in_memory and self._current is not None:
            self._close(self._other())
            self._paths()[self._other()].unlink(missing_ok=True)

    def remove(self) -> None:
        """Close and delete the files."""
        self.close()
        for path in self._paths():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for number in list(self._files):
            self._close(number)

    def _close(self, number: int) -> None:
        if number in self._files:
            os.close(self._files.pop(number))

    def _sync(self, number: int) -> None:
        with self._disk():
            os.fsync(self._file(number))

    def _to_file(self, number: int, batch: int, values: torch.Tensor) -> None:
        file = self._file(number)
        with self._disk():
            write_at(file, bytes_of(values), self.places[batch])

    def _from_file(self, step: int, batch: int, rows: int) -> torch.Tensor:
        assert self._current is not None
        values = torch.empty((rows, self.tables[step].width), dtype=self.tables[step].dtype)
        file = self._file(self._current)
        with self._disk():
            if not read_at(file, bytes_of(values), self.places[batch]):
                raise OSError(f"{self._paths()[self._current]} became shorter")
        return values


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
