"""The section `guards` of a run's YAML file: what ends or refuses a run that cannot go well."""

from __future__ import annotations

from dataclasses import dataclass

from roma_ds.config.constraints import Positive


@dataclass(frozen=True)
class GuardsConfig:
    """What ends a run, or does not let it begin, before time is lost."""

    collective_timeout: Positive = 1800.0
    """Seconds that a rank waits for the others in one exchange; then the run ends with exit code 3 and names
    the stage and the ranks that did not come. Longer than the longest time that ranks work apart."""
