"""Answers of an unfinished writing on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from roma_ds.errors import Interrupted, UserError
from roma_ds.storage.atomic import make_folder, read_json, write_json

MARKER = "writing.json"


@dataclass(frozen=True)
class Written:
    """What was generated for one prompt."""

    text: str
    """The new tokens alone, without the prompt, up to the first stop sequence."""
    tokens: int
    """How many were generated, those behind a stop sequence too."""
    ended: bool
    """False where the limit of new tokens, or a stop sequence before anything was said, cut it off."""


class KeptAnswers:
    """A folder of answers by the number of their prompt; each rank adds files of its own."""

    def __init__(self, folder: Path, fingerprint: str, save_every: float) -> None:
        """fingerprint: of all that the answers depend on; save_every: seconds between files."""
        self.folder, self.fingerprint, self.save_every = folder, fingerprint, save_every

    def read(self) -> dict[int, Written]:
        """For rank 0 before any is added: what is there already; answers of another writing are deleted."""
        if self._of() != self.fingerprint:
            self.remove()
            make_folder(self.folder)
            write_json(self.folder / MARKER, {"fingerprint": self.fingerprint})
        found: dict[int, Written] = {}
        for path in sorted(self.folder.glob("answers-*.json")):
            try:
                found.update({row[0]: Written(*row[1:]) for row in read_json(path)["answers"]})
            except (UserError, LookupError, TypeError):
                # A damaged file counts as absent.
                path.unlink()
        return found

    def add(self, answers: dict[int, Written], rank: int) -> None:
        """Keep more answers of a rank. Raises OSError where the disk does not take them."""
        taken = [int(path.stem.split("-")[1]) for path in self.folder.glob(f"answers-*-{rank}.json")]
        rows = [[number, one.text, one.tokens, one.ended] for number, one in answers.items()]
        write_json(self.folder / f"answers-{max(taken, default=-1) + 1:06d}-{rank}.json", {"answers": rows})

    def _of(self) -> str | None:
        try:
            found: str = read_json(self.folder / MARKER)["fingerprint"]
        except (UserError, LookupError, TypeError):
            return None
        return found

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Saver:
    """Answers of this rank that are not on disk yet; saved on the way, at the end, and on a signal."""

    def __init__(self, kept: KeptAnswers | None, rank: int) -> None:
        self._kept, self._rank = kept, rank
        self._waiting: dict[int, Written] = {}
        self._saved_at = time.monotonic()

    def take(self, answers: dict[int, Written]) -> None:
        """More answers."""
        if self._kept is not None:
            self._waiting.update(answers)
            if time.monotonic() - self._saved_at > self._kept.save_every:
                self._save()

    def _save(self) -> None:
        if self._kept is not None and self._waiting:
            self._kept.add(self._waiting, self._rank)
        self._waiting, self._saved_at = {}, time.monotonic()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None or issubclass(kind, Interrupted):
            self._save()
