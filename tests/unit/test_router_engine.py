"""What the training engine makes of a resolved DeepSpeed config."""

from __future__ import annotations

from typing import Any

import pytest

from roma_ds.training.engine import with_readable_masters


def test_bf16_without_zero_becomes_stage_1_with_a_bucket_for_routers() -> None:
    ds = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 0}}
    zero = with_readable_masters(ds)["zero_optimization"]
    assert zero["stage"] == 1
    # DeepSpeed allocates that many elements with the first gradient; its default takes 1 GB.
    assert zero["reduce_bucket_size"] * 2 < 50e6
    assert ds["zero_optimization"] == {"stage": 0}


def test_a_bucket_that_the_user_wrote_is_kept() -> None:
    ds = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 0, "reduce_bucket_size": 7}}
    assert with_readable_masters(ds)["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 7}


@pytest.mark.parametrize(
    "ds",
    [
        {"bf16": {"enabled": False}, "zero_optimization": {"stage": 0}},
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}},
        {},
    ],
)
def test_other_configs_stay_as_they_are(ds: dict[str, Any]) -> None:
    assert with_readable_masters(ds) == ds
