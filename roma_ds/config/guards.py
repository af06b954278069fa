"""The section `guards` of a run's YAML file: what ends or refuses a run that cannot go well."""

from __future__ import annotations

from dataclasses import dataclass

from roma_ds.config.constraints import NotNegative, Positive


@dataclass(frozen=True)
class GuardsConfig:
    """What ends a run, or does not let it begin, before time is lost."""

    collective_timeout: Positive = 1800.0
    """Seconds that a rank waits for the others in one exchange; then the run ends with exit code 3 and names
    the stage and the ranks that did not come. Longer than the longest time that ranks work apart."""
    free_disk: NotNegative = 1.0
    """GiB that stay free on the disk of output_dir: less ends training, after its state is saved."""
    first_batch: bool = True
    """Try a batch of the longest samples, forward and backward, before training: memory that does not suffice
    shows in seconds."""
    lost_after: Positive | None = 60.0
    """Seconds without a sign of life after which a rank, with its host, counts as lost and all others stop,
    whatever they do; null does not look for signs of life."""
