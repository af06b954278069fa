"""`roma-ds eval` with generated answers, of models without routers, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli.projects import Finished, Project, contents, make_project, roma_ds_here, word_rows, write_rows
from cli.test_bad_input import refusal

from roma_ds.storage.atomic import read_parquet

TASKS = "[{name: words, path: test.jsonl}, {name: sums, path: sums.jsonl, scoring: generate}]"
SUMS = [{"id": str(n), "question": f"w{n} w{n + 1}", "answer": f"{2 * n + 1}"} for n in range(7)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("evaluation"), rows=24, epochs=1)
    write_rows(made.folder / "sums.jsonl", SUMS)
    return made


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Project:
    from transformers import AutoConfig, AutoModelForCausalLM

    from roma_ds.testing.tiny_models import save_tokenizer

    made = make_project(tmp_path_factory.mktemp("dense"), rows=24, epochs=1)
    for file in (made.folder / "model").iterdir():
        file.unlink()
    config = AutoConfig.for_model(
        "llama", vocab_size=save_tokenizer(made.folder / "model"), hidden_size=32, intermediate_size=48,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=None,
        eos_token_id=2, max_position_embeddings=160,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(made.folder / "model")
    write_rows(made.folder / "sums.jsonl", SUMS)
    return made


def here(project: Project, command: str, *more: str) -> Finished:
    return roma_ds_here(project.arguments(command, *more, ranks=1))


def results(project: Project, variant: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    folder = project.out / "eval"
    content = json.loads((folder / f"{variant}.json").read_text())
    return content["tasks"], read_parquet(folder / f"{variant}.samples.parquet")


def test_a_run_without_tasks_trains_exports_and_says_so(project: Project, tmp_path: Path) -> None:
    """Training here, evaluation elsewhere."""
    only = replace(project, out=tmp_path / "out")
    words = ("eval.tasks=[]", "train.batch=8", "train.micro_batch=3")
    done = here(only, "run", *words)
    assert done.code == 0 and "Nothing was evaluated, since eval.tasks is empty" in done.out, done
    assert "an update has 8 samples: 1 rank x 3 micro-batches of at most 3" in done.out, done
    assert not (only.out / "eval").exists() and only.routers()
    assert "Not evaluated" in (only.out / "export" / "README.md").read_text()
    report = json.loads((only.out / "report" / "report.json").read_text())
    assert report["verdict"] == ["Nothing was evaluated, since eval.tasks is empty."]
    again = here(only, "run", *words)
    assert again.code == 0 and "train roma: up to date" in again.out and "report: up to date" in again.out

    checked = here(only, "check", *words)
    assert checked.code == 0 and "eval.tasks is empty: nothing is evaluated" in checked.out, checked
    refusal(here(only, "eval", *words), "eval.tasks is empty: there is nothing to evaluate", "name tasks")
    (tmp_path / "study.yaml").write_text(
        f"run: {only.config}\nset: ['eval.tasks=[]']\nvariants: [base, roma]\noutput_dir: study\n"
    )
    study = roma_ds_here(["study", str(tmp_path / "study.yaml"), "--ranks", "1"])
    refusal(study, "eval.tasks of the run run.yaml is empty", "name tasks")


def test_base_and_tuned_model_write_answers_beside_scored_ones(project: Project) -> None:
    done = project.run("eval", f"eval.tasks={TASKS}", "eval.max_new_tokens=6", "deepspeed=zero3", ranks=2)
    assert done.code == 0, done
    for variant in ("base", "roma"):
        tasks, records = results(project, variant)
        assert [tasks[name]["scoring"] for name in ("words", "sums")] == ["letter", "generate"]
        assert (tasks["words"]["n"], tasks["sums"]["n"], tasks["sums"]["rows"]) == (24, 7, 7)
        assert records["generated"][:24] == [None] * 24 and all(records["generated"][24:])
        assert set(records["new_tokens"][24:]) <= set(range(1, 7))
        assert "unfinished" in tasks["sums"] and "unfinished" not in tasks["words"]
        assert f"eval {variant}: average accuracy" in done.out and "(words " in done.out
    again = here(project, "eval", f"eval.tasks={TASKS}", "eval.max_new_tokens=6", "deepspeed=zero3")
    assert again.out.count("up to date") >= 6, again


def test_a_model_without_routers_is_evaluated_by_the_same_command(dense: Project) -> None:
    done = here(dense, "eval", f"eval.tasks={TASKS}", "eval.max_new_tokens=4")
    assert (
        done.code == 0
        and "'llama' has no routers that roma_ds knows; the base model alone is evaluated" in done.out
    ), done
    tasks, records = results(dense, "base")
    assert (tasks["words"]["n"], tasks["sums"]["n"]) == (24, 7)
    assert sum(tasks["words"]["predicted"].values()) == 24 and len(records["id"]) == 31
    unread = [not text for text in records["extracted"][24:]]
    assert tasks["sums"]["unread"] == sum(unread) / 7 > 0 and "unread" not in tasks["words"]
    share = f"no answer could be read in sums {100 * tasks['sums']['unread']:.2f}% of the generated texts"
    assert tasks["sums"]["answers"] == "roma" and share in done.out
    assert not (dense.out / "train").exists() and not (dense.out / "collect").exists()
    again = here(dense, "eval", "--variant=base", f"eval.tasks={TASKS}", "eval.max_new_tokens=4")
    assert "eval base: up to date" in again.out, again
    changed = here(dense, "eval", f"eval.tasks={TASKS}", "eval.max_new_tokens=5")
    assert "eval base: changed since: generate" in changed.out, changed
    before = contents(dense.out, without=())
    long = ("data.long_prompts=refuse", "data.max_tokens=9")
    refusal(here(dense, "eval", f"eval.tasks={TASKS}", *long), "tokens, 9 are allowed")
    assert contents(dense.out, without=()) == before
    strict = here(dense, "eval", f"eval.tasks={TASKS}", "eval.max_new_tokens=4", "eval.answers=strict-match")
    tasks, records = results(dense, "base")
    assert strict.code == 0 and tasks["sums"]["answers"] == "strict-match", strict
    assert tasks["sums"]["unread"] == 1.0 and records["extracted"][24:] == [""] * 7


def test_training_a_model_without_routers_is_refused(dense: Project) -> None:
    for command, more in (("run", ()), ("train", ()), ("eval", ("--variant=roma",))):
        refusal(here(dense, command, *more), "model type 'llama' has no routers")


def test_check_says_that_such_a_model_can_be_evaluated_alone(dense: Project) -> None:
    done = here(dense, "check", f"eval.tasks={TASKS}", "eval.max_new_tokens=4")
    assert done.code == 0, done
    assert "'llama' has no routers that roma_ds knows: `roma-ds eval` measures it" in done.out
    assert "evaluation data: 31 evaluation samples" in done.out and "first 31 evaluation samples" in done.out
    for name in ("weights", "training data", "tokens", "memory"):
        assert f"{name}: not looked at, since nothing can be trained" in done.out
    broken = here(dense, "check", "eval.tasks=[{name: words, path: nowhere.jsonl}]")
    assert broken.code == 2 and "nowhere.jsonl" in broken.err, broken


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["eval.shots=2"], "the task words names no file of solved examples"),
        (["eval.tasks=[{name: words, path: test.jsonl, shots_path: shots.jsonl, shots: 9}]"], "has 3 rows"),
        (
            ["eval.tasks=[{name: arc_easy, split: tests}]"],
            "arc_easy has no split 'tests'; did you mean 'test'?",
        ),
        (["eval.tasks=[{name: arc_easy}]", "eval.data_root=."], "there is no such folder or it is empty"),
        (["eval.tasks=[{name: sums, path: sums.jsonl}]"], "sums has free-text answers, which letter scoring"),
        (["data.long_prompts=refuse", "data.max_tokens=9"], "tokens, 9 are allowed"),
        (
            ["eval.tasks=[{name: sums, path: sums.jsonl, scoring: generate}]", "eval.max_new_tokens=900"],
            "its answer leaves no room for a prompt in the model's context of 512 tokens",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_evaluated_is_refused(project: Project, overrides: list[str], says: str) -> None:
    write_rows(project.folder / "shots.jsonl", word_rows(3, 5000))
    folder = project.folder / "refused"
    refusal(here(Project(project.folder, folder), "eval", "--variant=base", *overrides), says)


def test_prompts_that_are_cut_are_counted(project: Project) -> None:
    out = Project(project.folder, project.folder / "cut")
    done = here(out, "eval", "--variant=base", "data.max_tokens=12")
    assert done.code == 0, done
    content = json.loads((out.out / "eval" / "base.json").read_text())
    assert 0 < content["truncated"] == content["tasks"]["words"]["truncated"] <= 24


def test_an_option_without_tokens_is_refused(project: Project) -> None:
    """Of a tokenizer that drops a character: the row is sound, and nothing of the option is left."""
    model = project.folder / "deaf"
    shutil.copytree(project.folder / "model", model)
    content = json.loads((model / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    (model / "tokenizer.json").write_text(json.dumps(content))
    rows = word_rows(3, 7000)
    rows[1]["choices"][2] = "~"
    write_rows(project.folder / "deaf.jsonl", rows)
    out = Project(project.folder, project.folder / "without")
    for command, more in (
        ("eval", ("--variant=base", "eval.tasks=[{name: words, path: deaf.jsonl, scoring: cloze}]")),
        ("check", ("data.train=[{path: deaf.jsonl, answer: text}]",)),
    ):
        done = here(out, command, *more, f"model.path={model}")
        refusal(done, "/r7001: its option ' ~' has no tokens for this tokenizer")
