"""`roma-ds eval --router`: routers that were trained elsewhere, on the tasks of a run."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from roma_ds.errors import UserError
from roma_ds.storage.atomic import make_folder, writing


@dataclass(frozen=True)
class EvaluatedRouter:
    """A router file that can be read."""

    path: Path

    def place(self, folder: Path) -> None:
        """Copy it into the run, where all ranks find it."""
        from roma_ds.storage.published_router import PUBLISHED

        with writing(make_folder(folder) / PUBLISHED) as temporary:
            shutil.copyfile(self.path, temporary)


def evaluated_router(options: argparse.Namespace) -> EvaluatedRouter | None:
    """The router file of --router; None without one. Raises UserError where it cannot be read."""
    given = getattr(options, "router", None)
    if given is None:
        return None
    if options.variant is not None:
        raise UserError("--router and --variant exclude each other", "leave one of them out")
    from roma_ds.checkpoint.router_file import read_router_file
    from roma_ds.storage.published_router import local_router

    path = local_router(given)
    read_router_file(path)
    return EvaluatedRouter(path)
