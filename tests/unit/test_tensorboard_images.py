"""Images written for TensorBoard, read back from the event files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import make_run

from roma_ds.errors import UserError
from roma_ds.monitor.report import build_report
from roma_ds.monitor.tensorboard_images import add_images
from roma_ds.storage.atomic import write_json


def _images(folder: Path) -> dict[str, list[bytes]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return {tag: [e.encoded_image_string for e in events.Images(tag)] for tag in events.Tags()["images"]}


def test_pictures_of_the_report_are_the_images(tmp_path: Path) -> None:
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    run = make_run(tmp_path / "run", tasks=3, per_task=20, steps=5)
    scalars = SummaryWriter(str(run / "train" / "tensorboard"))
    scalars.add_scalar("loss", 1.0, 0)
    scalars.close()
    build_report(run)
    for _ in range(2):
        assert add_images(run) == 6
    images = _images(run / "train" / "tensorboard")
    assert set(images) == {f"report/{file.stem}" for file in (run / "report").glob("*.png")}
    assert "report/routing" in images and "report/projection" in images
    for tag, encoded in images.items():
        assert len(encoded) == 1, "a second call replaces the images of the first"
        shown = imread(io.BytesIO(encoded[0]))[:, :, :3]
        expected = imread(run / "report" / f"{tag.removeprefix('report/')}.png")[:, :, :3]
        assert np.abs(shown - expected).max() < 0.01
    assert len(list((run / "train" / "tensorboard").iterdir())) == 2
    report = build_report(run)
    assert not any("TensorBoard" in note for note in report["notes"])


def test_pictures_are_drawn_when_there_is_no_report_yet(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=2, per_task=10, accuracy={"base": 0.5}, steps=3)
    (run / "eval" / "base.routing.npy").unlink()
    assert add_images(run) == 3


def test_nothing_is_written_when_tensorboard_is_off_or_there_is_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=2, per_task=10, accuracy={"base": 0.5}, steps=3)
    write_json(run / "ds_config.resolved.json", {"tensorboard": {"enabled": False}})
    assert add_images(run) == 0
    assert not (run / "train" / "tensorboard").exists()
    (tmp_path / "empty").mkdir()
    assert add_images(tmp_path / "empty") == 0
    with pytest.raises(UserError, match="is no folder"):
        add_images(tmp_path / "absent")
