"""What the metrics of options tell the library `evaluate` of themselves."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


def option_info(description: str, returns: str) -> Any:
    """The `evaluate.MetricInfo` of a metric of numbers of options. returns: its values, in words."""
    number = datasets.Value("int64")
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=(
            "Args:\n"
            "    predictions: numbers of the predicted options; -1 where no option was given.\n"
            "    references: numbers of the right options.\n"
            f"Returns:\n    {returns}\n"
        ),
        features=datasets.Features({"predictions": number, "references": number}),
    )
