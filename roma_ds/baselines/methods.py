"""Every variant that a study may name: what kind it is, and what it costs at test time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from roma_ds.baselines.rivals import RIVALS
from roma_ds.baselines.variants import TRAINED

Kind = Literal["base", "routers", "rival", "test_time"]


@dataclass(frozen=True)
class Method:
    """A variant."""

    name: str
    kind: Kind
    description: str
    uses_test_labels: bool = False
    """An upper bound, no method: it sees the answers of the test."""
    seeded: bool = True
    """Whether the seed changes anything: the choice of training samples, their order."""


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("base", "base", "the pretrained model", seeded=False),
        *(Method(one.name, "routers", one.description) for one in TRAINED.values()),
        *(Method(name, "rival", one.description) for name, one in RIVALS.items()),
        Method("c3po_regression", "test_time", "C3PO by kernel regression: no training, no test labels"),
        Method(
            "c3po_descent", "test_time", "C3PO by neighbourhood gradient descent: no training, no test labels"
        ),
        Method("in_context", "test_time", "the k nearest successful neighbours as solved examples"),
        Method(
            "oracle",
            "test_time",
            "oracle routing (eq 1): descent on the loss of the true test answer",
            uses_test_labels=True,
            seeded=False,
        ),
    )
}
