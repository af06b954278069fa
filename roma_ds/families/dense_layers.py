"""Which decoder layers of a config have no router, and how a config says so for a part of the layers.

Layers are numbered from 0. A part keeps its layers' kinds, under new numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from roma_ds.errors import UserError


@dataclass(frozen=True)
class NoDenseLayers:
    """Every layer has a router."""

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the config attributes that hold a step from layer to layer."""
        return ()

    def is_sparse(self, config: Any, layer: int) -> bool:
        """Whether layer `layer` of a model config has a router."""
        return True

    def cut(self, config: Any, short: Any, first: int, last: int) -> None:
        """Let `short`, of layers `first` to `last` - 1 of `config`, name the same layers dense."""

    def __str__(self) -> str:
        return "none"


@dataclass(frozen=True)
class ListedDenseLayers:
    """Dense are the layers in a list, and those that a step leaves out."""

    attribute: str
    """Name of the config attribute that lists them; absent or None is an empty list."""
    step_attribute: str
    """Name of the config attribute s by which only layers s - 1, 2 s - 1, ... are sparse."""

    @property
    def steps(self) -> tuple[str, ...]:
        """As `NoDenseLayers`."""
        return (self.step_attribute,)

    def is_sparse(self, config: Any, layer: int) -> bool:
        """As `NoDenseLayers`."""
        listed = getattr(config, self.attribute) or ()
        return layer not in listed and (layer + 1) % int(getattr(config, self.step_attribute)) == 0

    def cut(self, config: Any, short: Any, first: int, last: int) -> None:
        """As `NoDenseLayers`."""
        # Which layers the step leaves out depends on their numbers in the whole model: they are listed.
        dense = [layer - first for layer in range(first, last) if not self.is_sparse(config, layer)]
        setattr(short, self.attribute, dense)
        setattr(short, self.step_attribute, 1)

    def __str__(self) -> str:
        return f"`{self.attribute}`, `{self.step_attribute}`"


@dataclass(frozen=True)
class LeadingDenseLayers:
    """Dense are the first layers."""

    attribute: str
    """Name of the config attribute that says how many."""

    @property
    def steps(self) -> tuple[str, ...]:
        """As `NoDenseLayers`."""
        return ()

    def is_sparse(self, config: Any, layer: int) -> bool:
        """As `NoDenseLayers`."""
        return layer >= int(getattr(config, self.attribute))

    def cut(self, config: Any, short: Any, first: int, last: int) -> None:
        """As `NoDenseLayers`."""
        setattr(short, self.attribute, max(0, int(getattr(config, self.attribute)) - first))

    def __str__(self) -> str:
        return f"the first `{self.attribute}`"


@dataclass(frozen=True)
class SparseRange:
    """Sparse are the layers of a range, or every s-th of them."""

    start_attribute: str
    """Name of the config attribute with the first of the range."""
    end_attribute: str
    """Name of the config attribute with the last of the range."""
    step_attribute: str
    """Name of the config attribute s by which only layers s - 1, 2 s - 1, ... are sparse."""

    @property
    def steps(self) -> tuple[str, ...]:
        """As `NoDenseLayers`."""
        return (self.step_attribute,)

    def is_sparse(self, config: Any, layer: int) -> bool:
        """As `NoDenseLayers`."""
        start, end, step = self._values(config)
        return start <= layer <= end and (layer + 1) % step == 0

    def _values(self, config: Any) -> tuple[int, int, int]:
        names = (self.start_attribute, self.end_attribute, self.step_attribute)
        start, end, step = (int(getattr(config, name)) for name in names)
        return start, end, step

    def cut(self, config: Any, short: Any, first: int, last: int) -> None:
        """As `NoDenseLayers`. Raises UserError where a step does not fit the part's first layer."""
        start, end, step = self._values(config)
        if first % step:
            raise UserError(
                f"a model with {self.step_attribute}={step} cannot be cut at layer {first}",
                f"choose roma.layers so that the first one is a multiple of {step}",
            )
        setattr(short, self.start_attribute, max(0, start - first))
        setattr(short, self.end_attribute, end - first)

    def __str__(self) -> str:
        names = (self.start_attribute, self.end_attribute, self.step_attribute)
        return "outside " + ", ".join(f"`{name}`" for name in names)


DenseLayers = NoDenseLayers | ListedDenseLayers | LeadingDenseLayers | SparseRange
