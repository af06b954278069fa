"""What the monitors of the DeepSpeed JSON get, read back from their files or from a stand-in."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from synthetic_run import make_run
from watched_training import SETTINGS, watch

from roma_ds.monitor.hyperparameters import flat, write_settings
from roma_ds.monitor.run_folder import read_run
from roma_ds.monitor.services import send_results
from roma_ds.monitor.tensorboard_projector import add_projections
from roma_ds.monitor.tensorboard_results import add_results


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Stand-ins of wandb and comet_ml that write down what they are told."""
    told: dict[str, list[Any]] = {"wandb": [], "comet": [], "started": []}
    wandb: Any = ModuleType("wandb")
    wandb.init = lambda **given: told["started"].append(("wandb", given["project"]))
    wandb.log = lambda data, step=None, commit=None: told["wandb"].append((data, step))
    wandb.config = SimpleNamespace(update=lambda values, allow_val_change: told["wandb"].append(values))
    comet: Any = ModuleType("comet_ml")
    experiment = SimpleNamespace(
        set_name=lambda name: None,
        log_parameters=lambda values: told["comet"].append(values),
        __internal_api__log_metric__=lambda *given, **named: told["comet"].append((given, named)),
        log_metric=lambda *given, **named: told["comet"].append((given, named)),
    )
    comet.start = lambda **given: told["started"].append(("comet", given["project"])) or experiment
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "comet_ml", comet)
    return told


@pytest.fixture
def monitor(services: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """DeepSpeed's own, with all four back ends."""
    import deepspeed.comm as comm
    from deepspeed.monitor import comet, csv_monitor, tensorboard, wandb
    from deepspeed.monitor import monitor as master
    from deepspeed.monitor.config import get_monitor_config

    for module in (comm, comet.dist, csv_monitor.dist, tensorboard.dist, wandb.dist, master.dist):
        monkeypatch.setattr(module, "get_rank", lambda *given: 0)
    for module in (comet, wandb):
        for name in ("check_comet_availability", "check_wandb_availability"):
            monkeypatch.setattr(module, name, lambda: None, raising=False)
    sections = {
        "tensorboard": {"enabled": True, "output_path": str(tmp_path), "job_name": "tensorboard"},
        "csv_monitor": {"enabled": True, "output_path": str(tmp_path), "job_name": "csv"},
        "wandb": {"enabled": True, "project": "routers"},
        "comet": {"enabled": True, "project": "routers", "samples_log_interval": 1},
    }
    yield master.MonitorMaster(get_monitor_config(sections))


def last_scalars(folder: Path) -> dict[str, tuple[int, float]]:
    """By tag the last step and its value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    last = {tag: events.Scalars(tag)[-1] for tag in events.Tags()["scalars"]}
    return {tag: (event.step, event.value) for tag, event in last.items()}


def scalars(folder: Path) -> dict[str, float]:
    return {tag: value for tag, (_, value) in last_scalars(folder).items()}


def test_every_back_end_gets_the_same_metrics(
    monitor: Any, services: dict[str, list[Any]], tmp_path: Path
) -> None:
    watch(monitor)
    found = scalars(tmp_path / "tensorboard")
    expected = {
        "train/loss": 1.5, "train/skipped_steps": 2, "train/grad_norm_ratio": 1.0,
        "ranks/straggler_gap": 0.25, "ranks/slowest_rank": 1, "ranks/gathered_bytes": 4096,
        "ranks/tokens_per_second/rank_0": 600,
        "ranks/memory_bytes/rank_1": 5000, "ranks/busy/rank_1": pytest.approx(0.9),
        "expert_load_largest/layer_2": 0.75, "expert_load_entropy/layer_11": 1.0,
    }  # fmt: skip
    assert {tag: found[tag] for tag in expected} == expected
    logged = {name: value for data, _ in services["wandb"][1:] for name, value in data.items()}
    assert logged == pytest.approx(found)
    assert {step for _, step in services["wandb"][1:]} == {10}
    assert len(services["comet"]) == 1 + len(found), "the settings, then a call a metric"
    for tag, value in found.items():
        with open(tmp_path / "csv" / f"{tag.replace('/', '_')}.csv") as file:
            head, row = list(csv.reader(file))
        assert head == ["step", tag.rpartition("/")[2]]
        assert (int(row[0]), float(row[1])) == (10, pytest.approx(value))


def test_settings_go_to_the_services(monitor: Any, services: dict[str, list[Any]]) -> None:
    watch(monitor)
    assert services["started"] == [("wandb", "routers"), ("comet", "routers")]
    assert services["wandb"][0] == SETTINGS
    assert services["comet"][0] == SETTINGS


def test_results_go_to_the_services_at_the_last_step(
    monitor: Any, services: dict[str, list[Any]], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", tasks=2, per_task=20, steps=5)
    sections = {
        "tensorboard": {"enabled": True},
        "csv_monitor": {"enabled": True, "output_path": str(tmp_path), "job_name": "results"},
        "wandb": {"enabled": True, "project": "routers"},
        "comet": {"enabled": False},
    }
    (run / "ds_config.resolved.json").write_text(json.dumps(sections))
    services["comet"].clear()
    send_results(run)
    assert not services["comet"]
    accuracy = json.loads((run / "eval" / "roma.json").read_text())["average"]
    logged = {name: (value, step) for data, step in services["wandb"] for name, value in data.items()}
    assert logged["eval/roma/average"] == (pytest.approx(accuracy), 5)
    assert {"eval/base/average", "eval/base/skill_00", "eval/router_tuning/skill_01"} < set(logged)
    with open(tmp_path / "results" / "eval_roma_average.csv") as file:
        assert list(csv.reader(file)) == [["step", "average"], ["5", str(accuracy)]]


def test_what_is_not_a_number_is_left_out(monitor: Any, tmp_path: Path) -> None:
    watch(monitor, loss=float("nan"), grad_norm_task=None)
    found = scalars(tmp_path / "tensorboard")
    assert "train/loss" not in found and "train/grad_norm_ratio" not in found
    assert found["train/task_loss"] == 1.25


def test_settings_are_flat() -> None:
    nested = {"train": {"lr": 0.1, "on": True}, "layers": [1, 2], "limit": None, "deep": {"a": {"b": "x"}}}
    assert flat(nested) == {
        "train.lr": 0.1, "train.on": True, "layers": "[1, 2]", "limit": "None", "deep.a.b": "x",
    }  # fmt: skip


def test_hyperparameters_and_texts_are_in_the_event_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    for rate in (0.1, 0.001):
        write_settings(tmp_path, {**SETTINGS, "train.lr": rate}, {"config": "train:\n  lr: 0.001"})
    assert len(list(tmp_path.iterdir())) == 1, "a second call replaces the first"
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["tensors"] == ["config/text_summary"]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    train:\n      lr: 0.001"
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["train.lr"].number_value == 0.001
    assert values["roma.layers"].string_value == "last5"
    assert values["train.task_loss"].string_value == "true"


def test_the_projector_gets_points_and_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=3, per_task=20, steps=5)
    board = run / "train" / "tensorboard"
    board.mkdir(parents=True)
    for _ in range(2):
        assert add_results(run) == ["embeddings", "routing base", "routing roma"]
    text = (board / "projector_config.pbtxt").read_text()
    assert text.count("embeddings {") == 3
    read = read_run(run)
    assert read.embeddings is not None
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    config = text_format.Parse(text, ProjectorConfig())
    for cloud in config.embeddings:
        points = [line.split("\t") for line in (board / cloud.tensor_path).read_text().splitlines()]
        labels = [line.split("\t") for line in (board / cloud.metadata_path).read_text().splitlines()]
        assert [len(points), len(points[0])] == list(cloud.tensor_shape)
        assert len(labels) == 1 + len(points) == 61
        assert labels[0][0] == "label"
        assert [row[0] for row in labels[1:]] == read.labels()
    assert scalars(board)["eval/average"] == pytest.approx(read.variants["roma"].result["average"], abs=1e-6)
    steps = {tag: step for tag, (step, _) in last_scalars(board).items()}
    assert steps["base/eval/average"] == 0
    assert steps["eval/average"] == read.metrics["roma"][-1]["step"] == 5


def test_without_curves_nothing_is_projected(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=2, per_task=10, accuracy={"base": 0.5}, steps=3)
    assert add_results(run) == []
    assert add_projections(read_run(run), tmp_path / "board") == ["embeddings", "routing base"]
