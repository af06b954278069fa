"""What the reading of one file's rows depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from roma_ds.config.sources import ColumnsConfig
from roma_ds.data.shapes.options import OptionForm


@dataclass(frozen=True)
class Setting:
    """Of one file."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """As the config has them."""
    every_turn: bool = False
    """Whether every assistant turn is an answer."""
    options: OptionForm = field(default_factory=OptionForm)
    """How its options and answers are written."""
    keys: tuple[str, ...] = ()
    """The keys that its shape was told by."""
