"""`roma-ds export --push`: the exported routers and their card to the hub."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from roma_ds.errors import UserError

if TYPE_CHECKING:
    from roma_ds.config import RunConfig
    from roma_ds.export.publish import Destination


def ready_destination(options: argparse.Namespace) -> Destination | None:
    """Where to publish, looked at before anything is computed for it; None without --push.

    Raises UserError where that cannot work: no login, no network, another's name. With --dry-run the hub is
    not asked.
    """
    repository = getattr(options, "push", None)
    if repository is None:
        given = [word for word in ("public", "dry_run") if getattr(options, word, False)]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} goes with --push alone", "add --push OWNER/NAME")
        return None
    from roma_ds.export.publish import Destination, prepare

    destination = Destination(repository, options.public)
    if not options.dry_run:
        prepare(destination)
    return destination


def push(
    destination: Destination, run: RunConfig, folder: Path, dry_run: bool, say: Callable[[str], None]
) -> None:
    """Say what is uploaded from the folder of the export, and upload it unless it is a dry run."""
    from roma_ds.checkpoint.router_file import read_router_file
    from roma_ds.export.card import base_name
    from roma_ds.export.licence import base_licence
    from roma_ds.export.publish import CARD, publish
    from roma_ds.storage.published_router import PUBLISHED

    for line in destination.lines:
        say(f"push: {line}")
    named = read_router_file(folder / PUBLISHED).metadata.get("base_model", "")
    if Path(named).is_absolute():
        say(f"push: the router file names its base model by its path on this machine, {named}")
    if base_licence(run.model) is None:
        say("push: the base model's card states no licence that could be found; the routers' card says so")
    if dry_run:
        say(f"push: {folder / CARD} reads:")
        say((folder / CARD).read_text(encoding="utf-8"))
        say("push: a dry run, nothing was uploaded")
        return
    say(f"push: done, {publish(folder, destination, f'Routers for {base_name(run)}')}")
