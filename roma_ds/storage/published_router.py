"""A router file by its path, or by the name of a repository on the hub that holds it."""

from __future__ import annotations

import re
from pathlib import Path

from roma_ds.errors import UserError
from roma_ds.storage.hub import why_unreachable

HUB = "hub:"
PUBLISHED = "router.safetensors"
"""Name of the router file in a repository."""
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def local_router(given: str) -> Path:
    """The path of a router file that is given as a path, or as `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`.

    Of the hub it is downloaded into the cache of huggingface_hub; where the hub is not to be had, what is in
    that cache is taken. A login that huggingface_hub has stored is used for private repositories. Raises
    UserError where there is no such repository, revision or file, or it may not be read.
    """
    if not given.startswith(HUB):
        return Path(given)
    match = _NAME.fullmatch(given.removeprefix(HUB))
    if match is None:
        raise UserError(f"{given} names no repository", "write hub:OWNER/NAME, or hub:OWNER/NAME@REVISION")
    return _downloaded(given, match[1], match[2])


def _downloaded(given: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import errors, hf_hub_download

    reason = why_unreachable()
    private = "check the name; for a private repository log in by `hf auth login`"
    try:
        return Path(
            hf_hub_download(repository, PUBLISHED, revision=revision, local_files_only=reason is not None)
        )
    except errors.GatedRepoError as error:
        raise UserError(f"{given} is gated", "ask for access on its page, and log in") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"there is no {given}, or it may not be read", private) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{given}: there is no such revision", "check what stands behind the @") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{given} is not in the hub's cache, and cannot be fetched: {reason or _first_line(error)}",
            "run with network access, or give the path of a router file",
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{given} holds no {PUBLISHED}", "name a repository with routers of roma_ds"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise UserError(f"{given} cannot be fetched: {_first_line(error)}", private) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
