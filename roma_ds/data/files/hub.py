"""Datasets on the hub by OWNER/NAME, as `datasets` loads them; JSON and text in columns are read here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from roma_ds.data.files.opening import ending_of, open_rows
from roma_ds.data.files.places import ROWS
from roma_ds.data.files.table import BATCH, Batch, RowFile
from roma_ds.data.files.tables import table_batches
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.storage.hub import why_unreachable

_RETYPED = ("json", "csv")
"""What `datasets` guesses types for: a text that looks like a date or a number does not stay what it is."""
_HUB = "hf://datasets/"
_AT_HAND = "download it elsewhere and give its files by path"


@dataclass(frozen=True)
class HubRows:
    """One split of a dataset on the hub."""

    name: str
    split: str
    subset: str | None = None
    revision: str | None = None
    first: int | None = None
    """Rows to read; nothing else is downloaded, but whole files where they are JSON or text in columns."""

    @property
    def origin(self) -> str:
        """What it is called."""
        named = "/".join(part for part in ("hub", self.name, self.subset) if part)
        return named + (f"@{self.revision}" if self.revision else "")

    def open(self) -> RowFile:
        """The split as rows; the hub is asked when they are read.

        Reading raises EnvironmentFault where the hub cannot be reached or does not have it, UserError where
        it has no such split or configuration.
        """
        return RowFile(self.origin, self.split, "hub dataset", partial(_batches, self), lines=False)


def _batches(rows: HubRows) -> Iterator[Batch]:
    # Before `datasets` is imported, which looks once whether there is a network.
    why_unreachable()
    files = _files_of(rows)
    if files:
        done = 0
        for file in files:
            for batch in file.batches():
                yield Batch(batch.rows, range(done + 1, done + len(batch.rows) + 1), batch.halves)
                done += len(batch.rows)
        return
    loaded = _loaded(rows)
    if hasattr(loaded, "with_format"):
        size = min(BATCH, rows.first or BATCH)
        tables = loaded.with_format("arrow").iter(size)
        yield from table_batches(batch for table in tables for batch in table.combine_chunks().to_batches())
        return
    remaining, done = iter(loaded), 0
    while found := list(islice(remaining, BATCH)):
        yield Batch(found, range(done + 1, done + len(found) + 1))
        done += len(found)


def _loaded(rows: HubRows) -> Any:
    import datasets

    try:
        return datasets.load_dataset(rows.name, rows.subset, split=rows.split, **_asked(rows))
    except ValueError as error:
        raise UserError(
            f"{rows.origin}, split {rows.split}: {_first_line(error)}",
            "name one of its splits by split, and one of its configurations by subset",
        ) from error
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise EnvironmentFault(f"cannot load {rows.origin}: {_first_line(error)}", _AT_HAND) from error


def _asked(rows: HubRows) -> dict[str, Any]:
    given = {"revision": rows.revision, "streaming": True if rows.first is not None else None}
    return {key: value for key, value in given.items() if value is not None}


def _files_of(rows: HubRows) -> list[RowFile]:
    """The split's files where types would be guessed for them; none where `datasets` keeps what they hold."""
    import datasets

    given = {"revision": rows.revision} if rows.revision else {}
    try:
        builder = datasets.load_dataset_builder(rows.name, rows.subset, **given)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        # Loading it says why.
        return []
    config = builder.config
    if builder.name not in _RETYPED or getattr(config, "field", None) is not None:
        return []
    places = [str(place) for place in (config.data_files or {}).get(rows.split, ())]
    if not all(ending_of(Path(place)) in ROWS for place in places):
        return []
    return [_opened(place) for place in places]


def _opened(place: str) -> RowFile:
    """A file as `datasets` names it: a path, or hf://datasets/OWNER/NAME@COMMIT/PATH."""
    from huggingface_hub import hf_hub_download

    if not place.startswith(_HUB):
        return open_rows(Path(place))
    owner, named, path = place.removeprefix(_HUB).split("/", 2)
    name, _, commit = named.partition("@")
    file = hf_hub_download(f"{owner}/{name}", path, repo_type="dataset", revision=unquote(commit) or None)
    return open_rows(Path(file))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
