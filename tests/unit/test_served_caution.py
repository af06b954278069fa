"""A report warns where rounded routers answer otherwise than the ones that were trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from roma_ds.evaluation.results import AS_SERVED
from roma_ds.monitor.as_served import served_cautions, standard_error
from roma_ds.monitor.run_folder import Variant

KEPT = {"dtype": "bfloat16", "changed": 0.11, "kept": 0.842, "exact": False}


def variant(name: str, average: float) -> Variant:
    """Of two tasks with standard errors of 0.03 and 0.04: 0.025 of their mean."""
    tasks = {"one": {"accuracy": average, "stderr": 0.03}, "two": {"accuracy": average, "stderr": 0.04}}
    return Variant(name, {"average": average, "tasks": tasks}, None, None)


def cautions(exact: float, served: float) -> list[str]:
    variants = {"roma": variant("roma", exact), AS_SERVED: variant(AS_SERVED, served)}
    return served_cautions(variants, KEPT)


def test_the_error_is_that_of_a_mean_over_tasks() -> None:
    assert standard_error(variant("roma", 0.5).result) == pytest.approx(0.025)


def test_within_the_standard_error_nothing_is_said() -> None:
    assert cautions(0.70, 0.68) == [] == cautions(0.68, 0.70)


@pytest.mark.parametrize("served", [0.67, 0.73])
def test_beyond_it_both_accuracies_are_named(served: float) -> None:
    (found,) = cautions(0.70, served)
    assert f"RoMA as served answers {100 * served:.1f}% on average, 70.0% with routers in float32" in found
    assert "2.5 points" in found and "leave 84.2% of the update" in found and "gate_dtype=as_stored" in found


def test_without_one_of_them_nothing_is_said() -> None:
    only = variant("roma", 0.70)
    assert served_cautions({"roma": only}, KEPT) == []
    none = replace(only, name=AS_SERVED, result={"average": None, "tasks": {}})
    assert served_cautions({"roma": only, AS_SERVED: none}, None) == []
