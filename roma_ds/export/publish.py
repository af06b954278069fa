"""An exported router file and its card to a repository on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.errors import UserError
from roma_ds.storage.hub import why_unreachable
from roma_ds.storage.published_router import PUBLISHED

CARD = "README.md"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LOGIN = "log in by `hf auth login`, or set HF_TOKEN, with a token that may write"


@dataclass(frozen=True)
class Destination:
    """Where routers are to be published."""

    repository: str
    """OWNER/NAME"""
    public: bool
    """Whether everybody may read it; else it is made private, and one that is public is refused."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.repository):
            raise UserError(f"--push {self.repository} names no repository", "write --push OWNER/NAME")

    @property
    def lines(self) -> list[str]:
        """What will be done, in words."""
        how = "public" if self.public else "private, unless it is there and public: then nothing is uploaded"
        return [f"to {self.repository} on the hub, {how}", f"files: {PUBLISHED}, {CARD}"]


def prepare(destination: Destination) -> None:
    """Look whether the upload may go on, before anything is computed for it.

    Raises UserError where the hub is not to be had, there is no login or one that may not write there, or the
    repository is public and was not to be.
    """
    if reason := why_unreachable():
        raise UserError(
            f"--push needs the hub, and it is not to be had: {reason}",
            "run with network access and without HF_HUB_OFFLINE, or export without --push",
        )
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise UserError("--push needs a login to the hub, and there is none", _LOGIN)
    api = HfApi()
    with _told("the hub refuses the login", _LOGIN):
        who: dict[str, Any] = api.whoami()
    owner = destination.repository.partition("/")[0]
    names = [who.get("name"), *(one.get("name") for one in who.get("orgs", ()))]
    if owner not in names:
        raise UserError(
            f"--push {destination.repository}: the login is that of {who.get('name')}, which is no member of "
            f"{owner}",
            f"push to one of {', '.join(f'{name}/NAME' for name in names if name)}, or log in as another",
        )
    with _told(f"the hub does not say what {destination.repository} is", _LOGIN):
        try:
            private = bool(api.repo_info(destination.repository).private)
        except RepositoryNotFoundError:
            return
    if not private and not destination.public:
        raise UserError(
            f"{destination.repository} is public, and --push keeps to itself what it uploads",
            "add --public if everybody is to read it, or push to another repository",
        )


def publish(folder: Path, destination: Destination, message: str) -> str:
    """Upload the router file and card in `folder`; the address of the commit.

    A repository that is not there is made. Raises UserError where the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _told(f"the hub refuses the upload to {destination.repository}", _LOGIN):
        api.create_repo(destination.repository, private=not destination.public, exist_ok=True)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in (PUBLISHED, CARD)
        ]
        commit = api.create_commit(destination.repository, operations, commit_message=message)
    return str(commit.commit_url)


@contextmanager
def _told(what: str, fix: str) -> Iterator[None]:
    """The hub's refusals, and a line that breaks, as the user's; no message of theirs holds a token."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        said = error.server_message or (str(error).strip().splitlines() or [""])[0]
        status = getattr(error.response, "status_code", None)
        raise UserError(f"{what}: {status} {said}".rstrip(), fix) from error
    except Exception as error:
        # Of the library that huggingface_hub speaks through, which was another one before.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise UserError(f"{what}: {type(error).__name__}: {error}", "try again") from error
