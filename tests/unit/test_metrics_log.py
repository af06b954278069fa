"""The metrics file survives cuts, resumes and odd numbers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.errors import UserError
from roma_ds.monitor.metrics_log import MetricsLog, read_metrics

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = VALUES | st.text(max_size=8) | st.lists(st.integers(), max_size=3)
RECORDS = st.lists(st.dictionaries(st.text(max_size=6), VALUES, max_size=4), max_size=8)


def _numbered(records: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{**record, "step": place + 1} for place, record in enumerate(records)]


@settings(max_examples=60, deadline=None)
@given(RECORDS, st.data())
def test_any_cut_leaves_the_whole_lines(records: list[dict[str, object]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        with MetricsLog(path) as log:
            for record in _numbered(records):
                log.append(record)
        content = path.read_bytes() if path.exists() else b""
        cut = content[: data.draw(st.integers(0, len(content)))]
        path.write_bytes(cut)
        whole = [json.loads(line) for line in content[: len(cut) + 1].split(b"\n")[: cut.count(b"\n")]]
        found = read_metrics(path)
        # A line cut exactly before its end is whole but for the line break, and is kept.
        assert found in (whole, _numbered(records)[: len(whole) + 1])
        with MetricsLog(path) as log:
            log.append({"step": 99})
        assert read_metrics(path) == [*found, {"step": 99}]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(0, 14))
def test_truncate_after_keeps_exactly_the_earlier_steps(count: int, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        log = MetricsLog(path)
        for number in range(1, count + 1):
            log.append({"step": number})
        log.truncate_after(step)
        log.append({"step": step + 1})
        log.close()
        steps = [record["step"] for record in read_metrics(path)]
        assert steps == [*range(1, min(count, step) + 1), step + 1]
        assert [file.name for file in Path(folder).iterdir()] == ["metrics.jsonl"]


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "train" / "metrics.jsonl")
    log.append({"step": 1})
    assert read_metrics(log.path) == [{"step": 1}]
    log.close()


def test_numbers_of_any_kind_become_json(tmp_path: Path) -> None:
    import torch

    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append(
            {
                "step": np.int64(1),
                "loss": torch.tensor(0.5),
                "nan": float("nan"),
                "inf": np.float32("inf"),
                "layers": np.array([1.0, np.nan]),
                "nested": {"load": (1, 2)},
            }
        )
    assert read_metrics(log.path) == [
        {"step": 1, "loss": 0.5, "nan": None, "inf": None, "layers": [1.0, None], "nested": {"load": [1, 2]}}
    ]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for middle in ('{"step": 2', "[1]"):
        path.write_text('{"step": 1}\n' + middle + '\n{"step": 3}\n')
        with pytest.raises(UserError, match=r"metrics.jsonl:2: not a JSON object"):
            read_metrics(path)
        with pytest.raises(UserError):
            MetricsLog(path)
    assert path.read_text().count("\n") == 3
    path.write_text('{"step": 1}\n7\n')
    assert read_metrics(path) == [{"step": 1}]


def test_an_absent_file_is_an_error_to_read_and_none_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "metrics.jsonl")
    MetricsLog(tmp_path / "metrics.jsonl").truncate_after(3)
    assert not (tmp_path / "metrics.jsonl").exists()
