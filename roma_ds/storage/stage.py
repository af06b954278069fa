"""The record that a finished stage leaves in its folder, and the test whether it is still up to date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.errors import UserError
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import read_json, write_json


@dataclass(frozen=True)
class StageRecord:
    """`stage.json` in `folder`: what the stage was made from, what it made, how long it took."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        """Where the record lies. Stages that share a folder have one record each."""
        return self.folder / ("stage.json" if self.folder.name == self.name else f"{self.name}.stage.json")

    def extra(self) -> dict[str, Any]:
        """Facts that the stage recorded; none before its end."""
        try:
            return dict(read_json(self.path).get("extra") or {})
        except (UserError, AttributeError, TypeError, ValueError):
            return {}

    def why_stale(self, inputs: Mapping[str, Any]) -> str | None:
        """None when up to date, otherwise the reason to run the stage again, in words."""
        if not self.path.exists():
            return "not run yet"
        try:
            record = read_json(self.path)
            old, outputs = dict(record["inputs"]), dict(record["outputs"])
        except (UserError, KeyError, TypeError, ValueError):
            return "its record is damaged"
        # As JSON: what was written as a tuple is read back as a list.
        changed = sorted(key for key in {*old, *inputs} if _unlike(old.get(key), inputs.get(key)))
        if changed:
            return "changed since: " + ", ".join(changed)
        for name, size in outputs.items():
            file = self.folder / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has another size than when it was written"
        return None

    def finish(
        self, inputs: Mapping[str, Any], outputs: list[str], seconds: float, extra: Mapping[str, Any]
    ) -> None:
        """Write the record; `outputs` are names relative to the stage's folder."""
        write_json(
            self.path,
            {
                "stage": self.name,
                "fingerprint": fingerprint.of_json(dict(inputs)),
                "inputs": dict(inputs),
                "outputs": {name: (self.folder / name).stat().st_size for name in sorted(outputs)},
                "seconds": round(seconds, 3),
                "extra": dict(extra),
            },
        )

    def read(self) -> dict[str, Any]:
        """The record as written. Raises UserError when the stage has not run."""
        record: dict[str, Any] = read_json(self.path)
        return record


def _unlike(one: Any, other: Any) -> bool:
    return fingerprint.of_json(one) != fingerprint.of_json(other)
