"""What can be done with the models of a family, and why something cannot."""

from __future__ import annotations

from dataclasses import dataclass

CAPABILITIES = {
    "load": "read the published checkpoints",
    "route": "r says how the model itself chooses and weighs its experts",
    "suffix": "cut a suffix: the prefix cache, and the engine that streams layer by layer",
    "zero3": "partition the weights over the ranks",
    "merge": "write a checkpoint that stock transformers loads",
}
"""By name, what each means. A family has all of them but for its limits."""
LEVELS = ("experimental", "unsupported")


@dataclass(frozen=True)
class Limit:
    """A capability that a family does not fully have."""

    capability: str
    """A key of CAPABILITIES."""
    level: str
    """`experimental`: it runs, with the reservation that the reason names; or `unsupported`."""
    reason: str
    """One sentence without a full stop."""


FLOAT8 = Limit("load", "experimental", "the published weights are FP8: a copy in bfloat16 is needed")
"""Of families whose publisher has no other weights."""
