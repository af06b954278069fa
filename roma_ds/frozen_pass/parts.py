"""Results of an unfinished frozen pass, kept so that a killed pass goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from roma_ds.errors import UserError
from roma_ds.sequences.found import Found
from roma_ds.storage.atomic import make_folder, read_json, write_json

MARKER = "pass.json"


class Parts:
    """A folder of result files; each rank adds its own, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self) -> str | None:
        """Fingerprint of the pass whose parts lie here; None without any."""
        try:
            found: str = read_json(self.folder / MARKER)["fingerprint"]
        except (UserError, KeyError, TypeError):
            return None
        return found

    def prepare(self, fingerprint: str, keep: bool) -> None:
        """For rank 0 before it adds any: forget the parts of another pass, or all unless `keep`."""
        if not keep or self.of() != fingerprint:
            self.remove()
            make_folder(self.folder)
            write_json(self.folder / MARKER, {"fingerprint": fingerprint})

    def add(self, found: Found, rank: int) -> None:
        """Keep more results of a rank. Raises OSError where the disk does not take them."""
        taken = [int(path.stem.split("-")[1]) for path in self.folder.glob(f"part-*-{rank}.safetensors")]
        found.save(self.folder / f"part-{max(taken, default=-1) + 1:06d}-{rank}.safetensors")

    def __iter__(self) -> Iterator[Found]:
        """Every whole part; a damaged file counts as absent and is deleted."""
        for path in sorted(self.folder.glob("part-*.safetensors")):
            try:
                yield Found.load(path)
            except UserError:
                path.unlink()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
