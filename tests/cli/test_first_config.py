"""`roma-ds init --data` on ten files: a config that passes `check` and runs, or one line on what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli.own_files import NAMES, UNCLEAR, WITH_OPTIONS, WITH_TEXTS, lines, save_chat_model, write_file
from cli.projects import Finished, Project, make_project, roma_ds, roma_ds_here, word_rows, write_rows

from roma_ds.config import RunConfig, load_run_config
from roma_ds.config.yaml_text import parse
from roma_ds.data.store import load_samples

KINDS = {
    "ours": "JSON lines, 48 rows of the shape question (question, answer, choices)",
    "letters": "CSV, 48 rows of the shape question (question, answer, A, B, C, D)",
    "saved": "Arrow folder, 48 rows of the shape question (question, answerKey, choices)",
    "parts": "3 files, JSON lines, 48 rows of the shape question (question, answer, choices)",
    "alpaca": "Parquet, 48 rows of the shape instruction (instruction, output)",
    "messages": "JSON lines, gzip, 48 rows of the shape conversation (messages)",
    "sharegpt": "JSON array, 48 rows of the shape conversation (conversations)",
    "pairs": "TSV, 48 rows of the shape prompt and completion (prompt, completion)",
    "reading": "JSON lines, zstd, 48 rows of the shape question with answers (question, answers)",
}
TAKEN = {
    "ours": "'choices': the options",
    "letters": "'A', 'B', 'C', 'D': the options, one column each",
    "saved": "'answerKey': the answer",
    "parts": "'answer': the answer",
    "alpaca": "'input': put behind the instruction",
    "messages": "'messages': the turns: what the assistant says last is the answer",
    "sharegpt": "'conversations': the turns: what the assistant says last is the answer",
    "pairs": "'completion': the answer",
    "reading": "'context': the passage, before the question",
}


@dataclass(frozen=True)
class Made:
    """What `init` printed for one of the files, and its config on disk."""

    finished: Finished
    config: Path

    @property
    def run(self) -> RunConfig:
        return load_run_config(self.config)


@dataclass(frozen=True)
class Folder:
    """A chat model, a file to evaluate on, and the ten files, each in a folder of its own."""

    path: Path

    @property
    def model(self) -> str:
        return str(self.path / "model")

    def file(self, name: str) -> Path:
        place = self.path / name
        return next(place.iterdir()) if place.exists() else write_file(name, place, self.path / "model")

    def init(self, name: str, *more: str, test: bool = True) -> Made:
        tests = ["--test", str(self.path / "test.jsonl")] if test else []
        finished = roma_ds_here(["init", "--data", str(self.file(name)), *tests, self.model, *more])
        config = self.path / f"{name}.yaml"
        config.write_text(finished.out)
        return Made(finished, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("own"))
    save_chat_model(made.path / "model")
    write_rows(made.path / "test.jsonl", word_rows(24, 1000))
    return made


def samples_of(folder: Folder, made: Made) -> list[Any]:
    out = folder.path / "out" / made.config.stem
    done = roma_ds_here(["data", str(made.config), f"output_dir={out}"])
    assert done.code == 0, done
    return load_samples(out / "data" / "samples.parquet")


@pytest.mark.parametrize("name", [name for name in NAMES if name != UNCLEAR])
def test_the_config_passes_check_and_reads_the_file(folder: Folder, name: str) -> None:
    made = folder.init(name)
    said = made.finished.err
    assert made.finished.code == 0, made.finished
    assert f"data.train: {folder.file(name)}" in said and KINDS[name] in said, said
    assert f"  {TAKEN[name]}\n" in said and "  one row: {" in said and "  read as: {" in said
    assert "trained: the routers of layers 2, 3, " in said
    assert "prompts: by the chat template (the tokenizer's)" in said
    assert "samples: 48 to train on, 24 to evaluate on" in said
    assert ("note: answers are texts" in said) == (name in WITH_TEXTS)
    label = made.run.data.train[0].label
    assert said.endswith(f"  roma-ds check {label}.yaml\n  roma-ds run {label}.yaml\n")
    assert ("turns" in parse(made.finished.out)["data"]) == (name in ("messages", "sharegpt"))

    checked = roma_ds_here(["check", str(made.config)])
    assert checked.code == 0 and "48 training samples" in checked.out, checked

    samples = samples_of(folder, made)
    assert len(samples) == 48 and all(sample.templated for sample in samples)
    if name in WITH_OPTIONS:
        ours = {(sample.prompt, sample.target) for sample in samples_of(folder, folder.init("ours"))}
        assert len(ours) == 48
        assert {(sample.prompt, sample.target) for sample in samples} == ours
    else:
        assert not any(sample.options for sample in samples)
        assert len({sample.prompt for sample in samples}) == 48


@pytest.mark.parametrize("name", ["letters", "messages"])
def test_the_config_runs(folder: Folder, name: str) -> None:
    made = folder.init(name)
    done = roma_ds("run", str(made.config), "train.epochs=1", cwd=folder.path)
    assert done.code == 0 and "average accuracy" in done.out, done
    out = folder.path / "runs" / made.run.data.train[0].label
    assert (out / "train" / "router.safetensors").is_file()
    assert (out / "controls" / "router_tuning" / "router.safetensors").is_file()
    assert (out / "report" / "report.html").is_file()


def one_line(finished: Finished) -> str:
    assert finished.code == 2 and finished.out == "", finished
    assert finished.err.startswith("roma-ds: error: ") and finished.err.count("\n") == 1, finished
    return finished.err


def test_what_cannot_be_told_is_said_in_one_line(folder: Folder) -> None:
    said = one_line(folder.init(UNCLEAR).finished)
    assert "which column is question and which is answer cannot be told" in said
    assert "'first', 'second', 'third'" in said and "data.train.0.columns=" in said
    other = ["--data", str(folder.file("ours")), "--test", str(folder.file(UNCLEAR)), folder.model]
    assert "eval.tasks.0.columns=" in one_line(roma_ds_here(["init", *other]))
    made = folder.init(UNCLEAR, "data.train.0.columns={question: first, answer: second}")
    assert made.finished.code == 0, made.finished
    assert "  'third': not read\n" in made.finished.err
    assert made.run.data.train[0].columns.question == "first"
    assert roma_ds_here(["check", str(made.config)]).code == 0


def test_mistakes_end_in_one_line(folder: Folder, tmp_path: Path) -> None:
    ours = str(folder.file("ours"))

    def refused(*arguments: str) -> str:
        return one_line(roma_ds_here(["init", *arguments]))

    assert "does not exist" in refused("--data", str(tmp_path / "gone.jsonl"), folder.model)
    assert "no file is like" in refused("--data", str(tmp_path / "*.jsonl"), folder.model)
    assert "no_such" in refused("--data", ours, str(tmp_path / "no_such"))
    assert "unknown key" in refused("--data", ours, folder.model, "roma.lamda=1")
    assert "embed.model" in refused("--data", ours, folder.model, f"embed.model={tmp_path}")
    bad = write_rows(tmp_path / "bad.jsonl", [{"question": "w1", "answer": ""}] * 3)
    assert "bad.jsonl:1: " in (said := refused("--data", str(bad), folder.model)) and "2 lines more" in said
    write_rows(bad, [{"question": "w1", "answer": ""}, *word_rows(8, 0)])
    finished = roma_ds_here(["init", "--data", str(bad), folder.model, "data.on_bad_row=skip"])
    assert finished.code == 0 and "1 malformed rows left out" in finished.err, finished
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{not JSON\n")
    assert "broken.jsonl:1: not valid JSON" in refused("--data", str(broken), folder.model)
    (tmp_path / "empty.jsonl").touch()
    assert "holds no rows" in refused("--data", str(tmp_path / "empty.jsonl"), folder.model)
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}])
    assert "which answers are preferred" in refused("--data", str(pairs), folder.model)
    assert "no training sample is left" in refused("--data", ours, "--test", ours, folder.model)
    for extra in (["--test", ours], ["roma.lambda=1"]):
        finished = roma_ds_here(["init", "olmoe", *extra])
        assert finished.code == 2 and "goes with --data alone" in finished.err, finished
    finished = roma_ds_here(["init", folder.model])
    assert finished.code == 2 and "name the data by --data" in finished.err, finished


def test_without_a_test_file_nothing_is_evaluated_and_the_config_says_so(folder: Folder) -> None:
    made = folder.init("ours", test=False)
    assert made.finished.code == 0 and "48 to train on, 0 to evaluate on" in made.finished.err
    assert made.run.eval.tasks == () and "a run does not split one off" in made.finished.out
    assert "a run does not split one off" in made.finished.err
    assert roma_ds_here(["check", str(made.config)]).code == 0


def test_a_folder_s_own_test_split_is_evaluated(folder: Folder, tmp_path: Path) -> None:
    for name, first in (("train-0", 0), ("train-1", 100), ("test", 1000)):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / f"{name}.jsonl").write_bytes(lines(word_rows(20, first)))
    finished = roma_ds_here(["init", "--data", str(tmp_path / "split"), folder.model])
    assert finished.code == 0 and "40 to train on, 20 to evaluate on" in finished.err, finished
    task = {"name": "split", "path": str(tmp_path / "split"), "split": "test"}
    assert parse(finished.out)["eval"]["tasks"] == [task]


def test_several_files_patterns_and_free_text_tests(folder: Folder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "rows.jsonl", word_rows(12, 0 if name == "a" else 500))
    free = write_rows(tmp_path / "free.jsonl", [{"question": "w1 w2", "answer": "w3"}])
    data = [str(tmp_path / "a" / "rows.jsonl"), str(tmp_path / "b" / "*.jsonl")]
    tests = [str(free), data[1].replace("*", "rows")]
    given = [word for path in data for word in ("--data", path)] + [
        word for path in tests for word in ("--test", path)
    ]
    changes = ["data.decontaminate=off", "train.epochs=1", "eval.max_new_tokens=4"]
    finished = roma_ds_here(["init", *given, folder.model, *changes])
    assert finished.code == 0, finished
    config = tmp_path / "both.yaml"
    config.write_text(finished.out)
    run = load_run_config(config)
    assert [(item.label, item.path) for item in run.data.train] == list(zip(("rows", "b"), data, strict=True))
    assert [task.scoring for task in run.eval.tasks] == ["generate", None]
    assert run.eval.max_new_tokens == 4
    assert (run.data.decontaminate, run.train.epochs, run.train.batch) == ("off", 1, 32)


def test_a_model_without_a_template_and_a_dense_one(tmp_path: Path) -> None:
    project: Project = make_project(tmp_path / "plain", rows=12)
    data = ["--data", str(project.folder / "train.jsonl")]
    finished = roma_ds_here(["init", *data, str(project.folder / "model")])
    assert finished.code == 0, finished
    assert "prompts: plain text, since the tokenizer has no chat template" in finished.err
    dense = make_project(tmp_path / "dense", "llama", rows=12)
    finished = roma_ds_here(["init", *data, str(dense.folder / "model")])
    assert "can be trained" in one_line(finished)
