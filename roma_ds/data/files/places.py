"""Which files a path of the config means: a file, a folder, a pattern, or several of these."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from roma_ds.data.files.opening import ending_of, open_rows
from roma_ds.data.files.table import RowFile
from roma_ds.data.files.tables import open_saved
from roma_ds.errors import UserError

ROWS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".tab", ".arrow", ".feather")
"""What names of data files end in, packed or not."""
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What marks a folder of `save_to_disk`: of one split, of several."""
_ABOUT = {"dataset_info.json", "dataset_infos.json", _SAVED, _SAVED_SPLITS}
"""JSON files of the same endings that hold no rows."""
_SPLITS = "train|training|validation|valid|val|dev|test|testing|eval|evaluation"


@dataclass(frozen=True)
class Found:
    """A file or a saved folder, with what ids made for its rows begin with."""

    path: Path
    short: str

    @property
    def saved(self) -> bool:
        """Whether it is a folder of `save_to_disk`."""
        return self.path.is_dir()

    @property
    def parts(self) -> list[Path]:
        """The files that hold its rows."""
        return sorted(self.path.glob("*.arrow")) if self.saved else [self.path]

    def open(self) -> RowFile:
        """Look at it. Raises UserError where it cannot be read."""
        return open_saved(self.path, self.short) if self.saved else open_rows(self.path, self.short)


def find_files(paths: tuple[str, ...], split: str) -> tuple[Found, ...]:
    """The files of `paths` in the order of the paths, those of one path by name; none twice.

    split: which files of a folder are meant where their names tell splits apart.
    Raises UserError where a path leads to no data file.
    """
    found = list(dict.fromkeys(file for path in paths for file in _found(Path(path), split)))
    folder = os.path.commonpath([file.parent for file in found])
    names = [file.name for file in found]
    alike = len(set(names)) < len(names)
    return tuple(Found(file, str(file.relative_to(folder)) if alike else file.name) for file in found)


def split_files(folder: Path, split: str) -> tuple[Found, ...]:
    """The files of a split in a folder: `SPLIT.*`, `SPLIT-*`; none where there are none."""
    if not folder.is_dir():
        return ()
    named = re.compile(rf"{re.escape(split)}[.-].*")
    found = [file for file in _data_files(folder) if named.fullmatch(file.name)]
    return tuple(Found(file, file.name) for file in found)


def _found(path: Path, split: str) -> list[Path]:
    if path.is_dir():
        return _of_folder(path, split)
    if path.is_file() or not glob.has_magic(str(path)):
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    # A pattern that names files themselves takes them whatever they are called.
    files = [file for file in found if file.is_file()] or [
        inner for folder in found for inner in _of_folder(folder, split)
    ]
    if not files:
        raise UserError(f"no file is like {path}", "check the pattern in the run config")
    return files


def _of_folder(folder: Path, split: str) -> list[Path]:
    if (folder / _SAVED_SPLITS).is_file():
        if (folder / split / _SAVED).is_file():
            return [folder / split]
        there = ", ".join(sorted(inner.parent.name for inner in folder.glob(f"*/{_SAVED}")))
        raise UserError(f"{folder} has no split {split!r}, but {there}", "name one of these as split")
    if (folder / _SAVED).is_file() and (folder / "dataset_info.json").is_file():
        return [folder]
    files = _data_files(folder)
    if not files and (folder / "data").is_dir():
        files = _data_files(folder / "data")
    if not files:
        inside = sorted(inner.name for inner in folder.iterdir())
        holds = f"it holds {', '.join(inside[:8])}{' ...' * (len(inside) > 8)}" if inside else "it is empty"
        raise UserError(
            f"{folder} has no file of rows in it: {holds}",
            f"give a folder with files that end in {', '.join(ROWS)}, packed or not, or the path of a file",
        )
    splits = {file: re.match(rf"({_SPLITS}|{re.escape(split)})[.-]", file.name) for file in files}
    if not any(splits.values()):
        return files
    own = [file for file, match in splits.items() if match and match[1] == split]
    if not own:
        names = ", ".join(file.name for file in files[:8])
        raise UserError(
            f"{folder} has no file of the split {split!r}, but {names}", "name one of these splits"
        )
    return own


def _data_files(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in files if ending_of(file) in ROWS and file.name not in _ABOUT)
