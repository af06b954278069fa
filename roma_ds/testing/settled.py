"""Imported last by the server that ranks of tests are forked from.

Which operations DeepSpeed can build is asked here, since it runs a compiler to know, and transformers is told
of our models, for which it compiles a thousand patterns. What lies in memory by then is never garbage:
Python's collector would walk through it whenever a network is closed, half a second each time, and copy its
pages. And nothing that a test writes must survive a power cut, so files are not synced.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import deepspeed

from roma_ds.families.own_models import register_own_models


def not_synced(fd: Any) -> None:
    """In place of `os.fsync`."""


os.fsync = not_synced
_ = deepspeed.ops.__compatible_ops__
register_own_models()
gc.collect()
gc.freeze()
