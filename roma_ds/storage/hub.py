"""The model hub, asked once whether it is there: a machine without network need not wait for it."""

from __future__ import annotations

import os
from functools import cache


@cache
def why_unreachable() -> str | None:
    """Why the hub is not to be had; None where it answers. Asked once in a process, without repetition.

    huggingface_hub itself asks six times for every file, over 23 seconds. Where the hub does not answer, this
    process and those that it starts use its local cache alone, as with HF_HUB_OFFLINE=1.
    HF_HUB_ETAG_TIMEOUT bounds the wait (10 seconds by default).
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # noqa: BLE001  of whichever library huggingface_hub speaks through
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        return f"{constants.ENDPOINT} does not answer: {error or type(error).__name__}"
    return None
