"""`roma-ds plan`: what it makes of its options."""

from __future__ import annotations

import pytest

from roma_ds.cli.main import main


def test_fewer_tokens_than_a_sample_has_make_a_shorter_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "olmoe-1b-7b", "--tokens", "10", "--micro-batch", "8"]) == 0
    assert "8 samples of 10 tokens a rank and step" in capsys.readouterr().out
