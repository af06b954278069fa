"""Which engine `roma-ds plan` says to take: one that fits by its own rows, at the rates that it was given."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roma_ds.cli.main import main


def planned(capsys: pytest.CaptureFixture[str], words: str) -> tuple[dict[str, Any], str]:
    """The whole answer, and the reasons of the recommendation."""
    assert main(["plan", *words.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return found, "\n".join(found["recommendation"]["reasons"])


def row(found: dict[str, Any], engine: str, stage: int) -> dict[str, Any]:
    rows = found["passes"]
    return next(row for row in rows if (row["engine"], row["zero_stage"]) == (engine, stage))


@pytest.mark.parametrize(("disk_rate", "engine"), [("1e8", "zero3"), ("1e10", "stream")])
def test_where_both_fit_the_given_rates_decide(
    disk_rate: str, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"qwen3-235b-a22b --device-memory 24GiB --world-size 64 --disk-rate {disk_rate}"
    found, reasons = planned(capsys, words)
    assert found["recommendation"]["ds_config"] == "zero3"
    assert found["recommendation"]["engine"] == engine and f"frozen pass by {engine}" in reasons
    seconds = {name: row(found, name, stage)["seconds"] for name, stage in (("zero3", 3), ("stream", 0))}
    assert min(seconds, key=lambda name: seconds[name]) == engine
    assert row(found, "zero3", 3)["read_bytes"] * 64 == pytest.approx(row(found, "stream", 0)["read_bytes"])


@pytest.mark.parametrize("memory", ["5GiB", "5.4GiB"])
def test_an_engine_that_does_not_fit_is_not_recommended(
    memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, reasons = planned(capsys, f"olmoe-1b-7b --device-memory {memory}")
    best = found["recommendation"]
    assert not row(found, "stream", 0)["fits"] and row(found, "zero3", 3)["fits"]
    assert (best["engine"], best["ds_config"], best["devices"]) == ("zero3", "zero3", 8)
    assert "stream would fit with collect.activation_memory at" in reasons


def test_the_activation_memory_that_is_named_lets_stream_fit(capsys: pytest.CaptureFixture[str]) -> None:
    found, reasons = planned(capsys, "olmoe-1b-7b --device-memory 3GiB")
    assert "collect.activation_memory at 1.1 (GiB)" in reasons
    found, reasons = planned(capsys, "olmoe-1b-7b --device-memory 3GiB --activation-memory 1.1GiB")
    assert row(found, "stream", 0)["fits"] and "activation_memory" not in reasons


def test_the_engine_is_that_of_the_recommended_number_of_devices(capsys: pytest.CaptureFixture[str]) -> None:
    found, reasons = planned(capsys, "qwen3-235b-a22b --device-memory 24GiB --world-size 1")
    assert found["recommendation"]["devices"] == 2 and found["recommendation"]["engine"] == "stream"
    # Half of the network a rank, not all of it.
    assert "223.6 GiB a rank by zero3 do not fit in 21.6 GiB" in reasons


def test_more_devices_are_named_where_the_pass_needs_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = "olmoe-1b-7b --device-memory 5GiB --activation-memory 10GiB --tokens 50000000 --world-size 4"
    best = planned(capsys, words)[0]["recommendation"]
    assert best["engine"] == "zero3" and best["devices"] > 4
    again = planned(capsys, words.replace("--world-size 4", f"--world-size {best['devices']}"))[0]
    assert row(again, "zero3", 3)["fits"] and again["recommendation"]["devices"] == best["devices"]
