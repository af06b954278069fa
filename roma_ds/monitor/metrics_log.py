"""metrics.jsonl: one JSON object a log step, whole lines only, cut back on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from roma_ds.errors import UserError
from roma_ds.storage.atomic import write_bytes

Record = dict[str, Any]


class MetricsLog:
    """Appends records to `path`; every line is flushed, so a killed run loses at most the line it was at.

    Opening an existing file drops a damaged last line. Raises UserError when an earlier line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: IO[bytes] | None = None
        self._keep(None)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line. Tensors and NumPy numbers are unwrapped; NaN and infinities become null."""
        line = json.dumps(_plain(record), allow_nan=False) + "\n"
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open(self.path, "ab")  # noqa: SIM115 - lives as long as the log
        self._handle.write(line.encode())
        self._handle.flush()

    def truncate_after(self, step: int) -> None:
        """Drop lines of later steps, so that a resumed run does not log a step twice."""
        self._keep(step)

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, last_step: int | None) -> None:
        self.close()
        if not self.path.exists():
            return
        old = self.path.read_bytes()
        kept = [
            line + b"\n"
            for line, record in _parse(self.path, old)
            if last_step is None or record.get("step", 0) <= last_step
        ]
        new = b"".join(kept)
        if new != old:
            write_bytes(self.path, new)


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics file; a damaged last line is left out.

    Raises UserError when the file is absent or an earlier line is damaged, naming the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "run the train stage") from error
    return [record for _, record in _parse(path, content)]


def _parse(path: Path, content: bytes) -> list[tuple[bytes, Record]]:
    """(line without its end, record) for each whole line; blank lines are left out."""
    lines = content.split(b"\n")
    last = max((place for place, line in enumerate(lines) if line.strip()), default=-1)
    parsed = []
    for place, line in enumerate(lines[: last + 1]):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if place == last:
                break
            raise _damaged(path, place) from error
        if not isinstance(record, dict):
            if place == last:
                break
            raise _damaged(path, place)
        parsed.append((line, record))
    return parsed


def _damaged(path: Path, place: int) -> UserError:
    return UserError(f"{path}:{place + 1}: not a JSON object", "delete the line, or the file to train again")


def _plain(value: Any) -> Any:
    """`value` with JSON types only."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
