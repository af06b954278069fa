"""The report from a run folder: contract of the JSON, self-contained page, honest words, missing inputs."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import ACCURACY, make_run

from roma_ds.errors import UserError
from roma_ds.evaluation.uncertainty import Interval, McNemar
from roma_ds.monitor.comparison import Comparison, sentence
from roma_ds.monitor.figures import clusters, routing_pair
from roma_ds.monitor.report import build_report
from roma_ds.monitor.run_folder import read_run
from roma_ds.monitor.wording import points
from roma_ds.storage.atomic import read_parquet, write_parquet

pytestmark = pytest.mark.usefixtures("sketches")

PICTURES = {"variants", "answers", "training", "expert_load", "routing", "projection"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "a <b> & run")
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("small"), tasks=3, per_task=8, steps=5)


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(small, folder)
    return folder


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text())
    return report


def test_json_has_the_keys_of_the_contract(whole: Path) -> None:
    report = _report(whole)
    assert {"model", "config_hash", "variants", "alignment", "training"} <= report.keys()
    assert re.fullmatch(r"[0-9a-f]{16}", report["config_hash"])
    assert list(report["variants"]) == ["base", "router_tuning", "random_neighbours", "roma", "oracle"]
    for name, variant in report["variants"].items():
        assert variant["average"] == pytest.approx(ACCURACY[name], abs=0.08)
        assert {"n", "accuracy", "stderr"} <= variant["tasks"]["skill_00"].keys()
    for state in ("before", "after"):
        values = report["alignment"][state]
        assert set(values) == {"knn_overlap", "cka", "trustworthiness", "mean_sq_distance"}
        assert all(isinstance(value, float) for value in values.values())
    assert report["alignment"]["after"]["cka"] > report["alignment"]["before"]["cka"]
    training = report["training"]
    assert training["seconds"] == {"embed": 3.2, "collect": 8.1, "index": 0.4, "train": 61.0, "eval": 12.5}
    assert (training["samples"], training["successful_before"], training["successful_after"]) == (100, 75, 81)
    assert (training["trainable_parameters"], training["total_parameters"]) == (10_240, 2_900_000)
    assert 9000 <= training["tokens_per_second"] <= 9100
    assert training["peak_memory_bytes"] == 2**28 + 40
    assert report["model"]["trained_layers"] == [1, 2, 3, 4, 5]


class _References(HTMLParser):
    """Collects every address and every element of a page, and checks that elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.elements: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_one_file_with_everything_in_it(whole: Path) -> None:
    page = (whole / "report" / "report.html").read_text()
    found = _References()
    found.feed(page)
    assert found.open == []
    assert not {"script", "link", "iframe", "object"} & set(found.elements)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.addresses)
    assert found.elements.count("img") == len(PICTURES)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    for anchor in [address[1:] for address in found.addresses if address.startswith("#")]:
        assert f'id="{anchor}"' in page
    for text in (
        "RoMA",
        "router tuning",
        "oracle (uses test labels)",
        "roma-ds run &#x27;my run.yaml&#x27; --ranks 2",
        "a &lt;b&gt; &amp; run",
        "neighbours: 3",
        "packages.deepspeed",
        "answered right before training (S)",
        "k-NN overlap",
    ):
        assert text in page, text
    assert {file.stem for file in (whole / "report").glob("*.png")} == PICTURES


def test_page_and_json_agree_with_the_samples(whole: Path) -> None:
    report = _report(whole)
    compared = report["variants"]["roma"]["compared"]["router_tuning"]
    gap = report["variants"]["roma"]["average"] - report["variants"]["router_tuning"]["average"]
    assert compared["difference"] == pytest.approx(gap)
    assert compared["samples"] == 360
    assert f"{points(compared['low'])} to {points(compared['high'])}" in report["verdict"][0]
    assert report["verdict"][0] in (whole / "report" / "report.html").read_text()


def test_report_is_the_same_when_built_again(whole: Path) -> None:
    before = (whole / "report" / "report.html").read_bytes()
    build_report(whole)
    assert (whole / "report" / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("difference", "p", "expected"),
    [
        ((0.018, 0.004, 0.032), 0.01, "RoMA beats router tuning by 1.8 points (95% interval 0.4 to 3.2)"),
        ((-0.02, -0.03, -0.01), 0.001, "router tuning beats RoMA by 2.0 points (95% interval 1.0 to 3.0)"),
        ((0.003, -0.01, 0.016), 0.6, "no difference found between RoMA and router tuning (+0.3 points"),
        ((0.08, 0.02, 0.16), 0.125, "95% interval +2.0 to +16.0, p 0.12)"),
    ],
)
def test_words_follow_the_numbers(difference: tuple[float, float, float], p: float, expected: str) -> None:
    comparison = Comparison("roma", "router_tuning", Interval(*difference), McNemar(4, 0, p), 100, {})
    assert expected in sentence(comparison)


def test_a_winning_control_is_said_aloud(tmp_path: Path) -> None:
    accuracy = {"base": 0.7, "router_tuning": 0.85, "random_neighbours": 0.8, "roma": 0.72}
    report = build_report(make_run(tmp_path / "run", accuracy=accuracy))
    assert report["verdict"][0].startswith("Router tuning beats RoMA by")
    assert any(note.startswith("The control wins") for note in report["cautions"])


def test_an_always_first_model_is_seen_at_once(tmp_path: Path) -> None:
    accuracy = {"base": 0.25, "router_tuning": 0.27, "roma": 0.26}
    report = build_report(make_run(tmp_path / "run", accuracy=accuracy, always_first="roma"))
    assert any("RoMA answers A in 100% of skill_00" in note for note in report["cautions"])
    assert any("Not above always giving the most common answer" in note for note in report["cautions"])
    assert not report["verdict"][0].startswith("RoMA beats")


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        (["controls", "eval/router_tuning.json"], "router tuning was not evaluated"),
        (["eval/roma.json"], "RoMA was not evaluated"),
        (["train/metrics.jsonl", "controls"], "no training curves"),
        (["embed/eval_embeddings.npy"], "eval_embeddings.npy does not exist"),
        (["eval/roma.routing.npy"], "before training only"),
        (["eval/base.routing.npy"], "no routing pictures"),
        (["data/eval.parquet"], "no routing pictures"),
        (["eval/roma.samples.parquet"], "roma.samples.parquet does not exist"),
        (["environment.json", "config.resolved.yaml"], "settings are not shown"),
        (["train/stage.json", "collect", "data"], "outcome.parquet does not exist"),
        (["eval"], "no variant was evaluated"),
    ],
)
def test_what_is_missing_is_noted_and_the_rest_reported(copy: Path, missing: list[str], note: str) -> None:
    for name in missing:
        target = copy / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    build_report(copy)
    report = _report(copy)
    assert any(note in entry for entry in report["notes"]), report["notes"]
    assert {"base", "router_tuning", "roma"} <= report["variants"].keys()
    assert set(report["alignment"]["before"]) == {"knn_overlap", "cka", "trustworthiness", "mean_sq_distance"}
    assert report["verdict"]
    assert "RoMA report" in (copy / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    "name",
    [
        "eval/roma.json",
        "eval/roma.samples.parquet",
        "eval/roma.routing.npy",
        "environment.json",
        "config.resolved.yaml",
    ],
)
def test_damaged_files_are_noted(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"{ no")
    report = build_report(copy)
    assert any(Path(name).name in note for note in report["notes"]), report["notes"]


def test_a_run_without_tasks_says_so(copy: Path) -> None:
    """Also where an earlier config of the folder was evaluated: its numbers are none of this run."""
    config = copy / "config.resolved.yaml"
    tasks = "tasks: [{name: test, path: test.jsonl}]"
    assert tasks in config.read_text()
    config.write_text(config.read_text().replace(tasks, "tasks: []"))
    report = build_report(copy)
    assert report["verdict"] == ["Nothing was evaluated, since eval.tasks is empty."]
    assert not any(entry["evaluated"] for entry in report["variants"].values())
    assert report["training"]["seconds"]["eval"] is None and report["training"]["successful_after"] is None
    assert report["training"]["steps"] is not None
    page = (copy / "report" / "report.html").read_text()
    assert page.count("Nothing was evaluated, since eval.tasks is empty") == 2


def test_routing_of_another_shape_is_not_mixed_in(copy: Path) -> None:
    np.save(copy / "eval" / "roma.routing.npy", np.ones((5, 6, 16), dtype=np.float16))
    report = build_report(copy)
    assert any("before training only" in note for note in report["notes"])
    assert report["alignment"]["after"]["cka"] is None


def test_samples_are_labelled_by_skill_unless_there_are_too_many(copy: Path) -> None:
    columns = read_parquet(copy / "data" / "eval.parquet")
    count = len(columns["id"])
    assert read_run(copy).labels() == columns["task"]
    for skills, expected in (
        (["sum", "half"] * (count // 2), ["sum", "half"] * (count // 2)),
        ([None] * count, columns["task"]),
    ):
        write_parquet(copy / "data" / "eval.parquet", {**columns, "skill": skills})
        assert read_run(copy).labels() == expected
    longer = {"task": ["x"] * 50, "subject": [f"subject {n}" for n in range(50)]}
    write_parquet(copy / "data" / "eval.parquet", longer)
    assert read_run(copy).labels() == ["x"] * 50


def test_one_task_is_shown_by_clusters_of_its_embeddings(tmp_path: Path) -> None:
    pair = routing_pair(read_run(make_run(tmp_path / "run", tasks=1, per_task=80, steps=3)))
    assert not isinstance(pair, str)
    assert len(set(pair.labels)) > 6 and all(label.startswith("cluster ") for label in pair.labels)
    assert pair.embeddings is not None
    assert clusters(pair.embeddings) == pair.labels
    assert set(clusters(pair.embeddings[:20])) == {"all"}


def test_routing_that_is_no_number_is_not_drawn(copy: Path) -> None:
    routing = np.load(copy / "eval" / "roma.routing.npy")
    np.save(copy / "eval" / "roma.routing.npy", routing * np.float16("nan"))
    assert any("NaN" in note for note in build_report(copy)["notes"])


def test_an_empty_folder_and_no_folder(tmp_path: Path) -> None:
    report = build_report(tmp_path)
    assert report["verdict"] == ["RoMA was not evaluated, so there is no verdict."]
    with pytest.raises(UserError, match="is no folder"):
        build_report(tmp_path / "absent")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last2", [4, 5]),
        ("first2", [0, 1]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("[2, 4]", [1, 3]),
        ("last99", range(6)),
    ],
)
def test_trained_layers_are_found_in_the_routing(copy: Path, layers: str, expected: list[int]) -> None:
    """The routing's layer axis counts MoE layers, here 1 to 6: the first layer of the model is dense."""
    config = copy / "config.resolved.yaml"
    config.write_text(config.read_text().replace("layers: last5", f"layers: {layers}"))
    record = json.loads((copy / "collect" / "stage.json").read_text())
    record["extra"]["layers"] = [1, 2, 3, 4, 5, 6]
    (copy / "collect" / "stage.json").write_text(json.dumps(record))
    assert read_run(copy).chosen_layers(6) == list(expected)
    assert read_run(copy).moe_layers(6) == [1, 2, 3, 4, 5, 6]
