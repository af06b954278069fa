"""Short stable hashes of configs and files, by which a stage knows whether it is up to date."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def of_json(content: Any) -> str:
    """16 hexadecimal digits of a JSON value, independent of key order."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def of_folder(path: Path) -> str:
    """16 digits for the names, sizes and modification times in a folder: cheap even for large checkpoints."""
    entries = [
        (str(item.relative_to(path)), item.stat().st_size, item.stat().st_mtime_ns)
        for item in sorted(path.rglob("*"))
        if item.is_file()
    ]
    return of_json(entries)
