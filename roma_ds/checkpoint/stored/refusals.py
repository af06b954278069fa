"""What to say of weights that are no numbers, and of experts that cannot stay as they are stored."""

from __future__ import annotations

from collections.abc import Sequence

from roma_ds.errors import UserError

NAMED = 4
"""Parameters that a message names."""


def not_finite(names: Sequence[str]) -> UserError:
    """For parameters of a checkpoint with values that are not finite."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return UserError(
        f"values of the checkpoint are not finite (NaN or infinity): {', '.join(names[:NAMED])}{more}",
        "fetch or save the checkpoint anew; a merge or a conversion to another type may have made them",
    )


def none_kept(path: str) -> UserError:
    """For a checkpoint, none of whose experts can be kept as they are stored."""
    return UserError(
        f"model.frozen: stored is not possible with {path}: no experts of these layers are stored in codes, "
        "all alike, that take less memory than their values",
        "set model.frozen to decoded or auto",
    )
