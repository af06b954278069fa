"""Which decoder layers of a config have no router. Layers are numbered from 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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

    def __str__(self) -> str:
        names = (self.start_attribute, self.end_attribute, self.step_attribute)
        return "outside " + ", ".join(f"`{name}`" for name in names)


@dataclass(frozen=True)
class NamedSparseLayers:
    """Sparse are the layers with one name in a list of one name a layer."""

    attribute: str
    """Name of the config attribute with the list."""
    name: str
    """Of sparse layers."""

    @property
    def steps(self) -> tuple[str, ...]:
        """As `NoDenseLayers`."""
        return ()

    def is_sparse(self, config: Any, layer: int) -> bool:
        """As `NoDenseLayers`."""
        names = getattr(config, self.attribute) or ()
        return layer < len(names) and names[layer] == self.name

    def __str__(self) -> str:
        return f"those that are not `{self.name}` in `{self.attribute}`"


@dataclass(frozen=True)
class ListedSparseLayers:
    """Sparse are the layers in a list."""

    attribute: str
    """Name of the config attribute that lists them."""

    @property
    def steps(self) -> tuple[str, ...]:
        """As `NoDenseLayers`."""
        return ()

    def is_sparse(self, config: Any, layer: int) -> bool:
        """As `NoDenseLayers`."""
        return layer in (getattr(config, self.attribute) or ())

    def __str__(self) -> str:
        return f"those that `{self.attribute}` lacks"


@dataclass(frozen=True)
class PeriodicSparseLayers:
    """Sparse is every p-th layer, from an offset on."""

    period_attribute: str
    """Name of the config attribute with p."""
    offset_attribute: str
    """Name of the config attribute with the number of the first."""

    @property
    def steps(self) -> tuple[str, ...]:
        """As `NoDenseLayers`."""
        return (self.period_attribute,)

    def is_sparse(self, config: Any, layer: int) -> bool:
        """As `NoDenseLayers`."""
        period, offset = (
            int(getattr(config, name)) for name in (self.period_attribute, self.offset_attribute)
        )
        return layer % period == offset

    def __str__(self) -> str:
        return f"those outside `{self.period_attribute}`, `{self.offset_attribute}`"


DenseLayers = (
    NoDenseLayers
    | ListedDenseLayers
    | LeadingDenseLayers
    | SparseRange
    | NamedSparseLayers
    | ListedSparseLayers
    | PeriodicSparseLayers
)
