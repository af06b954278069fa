"""The package's own source files, as text: what rules about its structure look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "roma_ds"


@dataclass(frozen=True)
class Source:
    """A module of the package: its path below roma_ds/ and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def part(self) -> str:
        """The package or module directly below roma_ds/ that this file belongs to."""
        return Path(self.path).parts[0].removesuffix(".py")

    def imported(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of everything imported, in functions too; `from a import b` gives a.b."""
        package = ["roma_ds", *Path(self.path).parts[:-1]]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)

    def dotted_uses(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of every attribute chain that starts at a plain name."""
        for node in ast.walk(self.tree):
            names: list[str] = []
            inner: ast.expr | None = node if isinstance(node, ast.Attribute) else None
            while isinstance(inner, ast.Attribute):
                names.append(inner.attr)
                inner = inner.value
            if names and isinstance(inner, ast.Name):
                yield inner.lineno, ".".join([inner.id, *reversed(names)])


def package_sources() -> list[Source]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [Source(file.relative_to(PACKAGE).as_posix(), file.read_text()) for file in files]
