"""What of a checkpoint does not fit the network that its config describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from roma_ds.errors import UserError

SHOWN = 4


@dataclass(frozen=True)
class LoadReport:
    """What would leave a tensor of the network without its own values, or stored values without a place."""

    missing: tuple[str, ...]
    """Tensors of the network that no stored tensor gives; other loaders fill them with random values."""
    unfit: tuple[str, ...]
    """What is wrong with tensors of another shape, or with lists of experts of another length, in words."""
    unexpected: tuple[str, ...]
    """Checkpoint keys that belong nowhere in the network."""

    def refuse(self, path: str, sizes: Mapping[str, int]) -> None:
        """Raises UserError with all problems; path: of the checkpoint, as the user named it.

        sizes: what its config.json says of them, by key.
        """
        kinds = (
            ("tensors are missing", self.missing),
            ("tensors do not fit", self.unfit),
            ("tensors belong nowhere", self.unexpected),
        )
        lines = [
            f"  {len(found)} {title}: {', '.join(found[:SHOWN])}{', ...' if len(found) > SHOWN else ''}"
            for title, found in kinds
            if found
        ]
        if lines:
            lines.append(f"  its config.json has {', '.join(f'{key} {size}' for key, size in sizes.items())}")
            raise UserError(
                f"model.path: the weights of {path} are not those of its config.json:\n" + "\n".join(lines),
                "use a complete checkpoint with the config.json that belongs to it",
            )
