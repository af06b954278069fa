"""A run of a chat model: every stage reads what its template writes, and the ends of turns are where r is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.projects import Finished, Project, make_project, roma_ds_here, word_rows, write_rows

from roma_ds.data.store import load_samples
from roma_ds.storage.atomic import read_json, read_parquet
from roma_ds.testing.chats import OLMOE, give_template

TASKS = (
    "eval.tasks=[{name: words, path: test.jsonl}, {name: texts, path: texts.jsonl, scoring: cloze}, "
    "{name: written, path: written.jsonl, scoring: generate, shots: 2, shots_path: shots.jsonl}]"
)
CHAT = (
    "data.template=chat", "data.chat.system=w1 w2", "data.chat.kwargs={enable_thinking: false}",
    "eval.max_new_tokens=3", TASKS,
)  # fmt: skip
THINKING = (
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
TEMPLATE = OLMOE.replace("{{ '<|assistant|>\n' }}", "{{ '<|assistant|>\n' }}" + THINKING)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("chat") / "project", epochs=2, vocab_size=220)
    give_template(made.folder / "model", TEMPLATE)
    write_rows(made.folder / "texts.jsonl", word_rows(6, 3000))
    write_rows(made.folder / "written.jsonl", word_rows(6, 4000))
    write_rows(made.folder / "shots.jsonl", word_rows(4, 5000))
    return made


@pytest.fixture(scope="module")
def finished(project: Project) -> Finished:
    return project.run("run", *CHAT, "roma.tokens=user1")


def tokenizer_of(project: Project) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(project.folder / "model")


def test_every_stage_runs(project: Project, finished: Finished) -> None:
    assert finished.code == 0, finished
    assert "prompts     by the chat template (the tokenizer's)" in finished.out
    assert "average accuracy" in finished.out
    routing = np.load(project.out / "collect" / "routing.npy")
    assert routing.shape[0] == 64 and np.isfinite(routing.astype(np.float32)).all()
    written = read_parquet(project.out / "eval" / "roma.samples.parquet")
    texts = [
        text for task, text in zip(written["task"], written["generated"], strict=True) if text is not None
    ]
    assert len(texts) == 6
    assert {"words", "texts", "written"} == set(written["task"])
    card = (project.out / "export" / "README.md").read_text()
    assert "- prompts: data.template chat, system text 'w1 w2', enable_thinking False" in card


def test_prompts_on_disk_are_the_library_s(project: Project, finished: Finished) -> None:
    tokenizer = tokenizer_of(project)
    samples = load_samples(project.out / "data" / "samples.parquet")
    evaluated = load_samples(project.out / "data" / "eval.parquet")
    assert len(samples) == 64 and len(evaluated) == 36
    for sample in (*samples, *evaluated):
        assert sample.messages is not None and sample.templated
        turns = [{"role": one.role, "content": one.content} for one in sample.messages]
        assert sample.prompt == tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert turns[0] == {"role": "system", "content": "w1 w2"}
        assert sample.prompt.endswith("Answer:\n<|assistant|>\n<think>\n\n</think>\n\n")
    roles = {sample.task: [one.role for one in sample.messages or ()] for sample in evaluated}
    assert roles["words"] == roles["texts"] == ["system", "user"]
    assert roles["written"] == ["system", "user", "assistant", "user", "assistant", "user"]
    (shown,) = {
        sample.messages[2].content for sample in evaluated if sample.task == "written" and sample.messages
    }
    assert shown in ("A", "B", "C", "D")
    manifest = read_json(project.out / "data" / "manifest.json")
    assert manifest["template"]["kwargs"] == {"enable_thinking": False}


def test_it_goes_on_until_the_template_changes(project: Project, finished: Finished) -> None:
    again = project.run("train", *CHAT, "roma.tokens=user1")
    assert again.code == 0 and "data: up to date" in again.out and "collect: up to date" in again.out, again
    other = project.run("data", *CHAT, "data.chat.system=w3", f"output_dir={project.out}")
    assert "data: changed since: template" in other.out, other
    back = project.run("data", *CHAT)
    assert "data: changed since: template" in back.out


def test_check_shows_the_prompt_and_where_it_is_read(project: Project) -> None:
    tokenizer = tokenizer_of(project)

    def checked(*more: str) -> str:
        done = roma_ds_here(["check", str(project.config), *more])
        assert done.code == 0, done
        return done.out

    ends = {}
    for tokens in ("last1", "user1"):
        out = checked(*CHAT, f"roma.tokens={tokens}")
        assert "prompts: by the chat template (the tokenizer's)" in out
        assert "<|system|>\nw1 w2\n<|user|>\n" in out and "<|assistant|>\n<think>\n\n</think>\n\n<<" in out
        ends[tokens] = [line for line in out.splitlines() if line.startswith("  r is read at")]
    think, colon = (tokenizer.convert_tokens_to_ids(text) for text in ("</think>", ":"))
    assert ends["last1"][0].endswith(f": {think} '</think>'")
    assert ends["user1"][0].endswith(f": {colon} ':'")
    advice = checked()
    assert (
        "prompts: plain text; the tokenizer has a chat template, which data.template=auto would use" in advice
    )


def test_mistakes_end_in_one_message(project: Project, tmp_path: Path) -> None:
    def refused(*more: str) -> str:
        done = roma_ds_here(["check", str(project.config), *more])
        assert done.code == 2 and "Traceback" not in done.err, done
        return done.err

    assert "roma.tokens: user1 is a place in a chat" in refused("roma.tokens=user1")
    assert "data.chat: is of no use under data.template=plain" in refused("data.chat.system=x")
    assert "is neither a file nor the name" in refused("data.template=chat", "data.chat.template=other")
    assert "tokenize cannot be given here" in refused("data.template=chat", "data.chat.kwargs.tokenize=true")
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for message in messages %}")
    assert "refuses the turns user" in refused("data.template=chat", f"data.chat.template={broken}")


def test_a_tokenizer_without_a_template(tmp_path: Path) -> None:
    made = make_project(tmp_path / "project", rows=8)
    done = roma_ds_here(["check", str(made.config), "data.template=chat"])
    assert done.code == 2 and "has no chat template" in done.err, done
    done = roma_ds_here(["check", str(made.config), "data.template=auto"])
    assert done.code == 0 and "plain text, since the tokenizer has no chat template" in done.out, done
    done = roma_ds_here(["check", str(made.config), "data.template=auto", "roma.tokens=user1"])
    assert done.code == 2 and "roma.tokens is user1, a place in a chat, but" in done.err, done
    data = made.run("data", "data.template=auto", ranks=1)
    assert data.code == 0, data
    record = json.loads((made.out / "data" / "stage.json").read_text())
    assert "template" not in record["inputs"]
    plain = made.run("data", ranks=1)
    assert "data: up to date" in plain.out, plain


STUDY = """\
run: run.yaml
set: [train.epochs=1, data.template=chat, data.chat.system=w1, roma.tokens=user1, eval.max_new_tokens=2, \
"eval.tasks=[{name: words, path: test.jsonl, limit: 8}, \
{name: written, path: written.jsonl, scoring: generate, shots: 1, shots_path: shots.jsonl}]"]
variants: [base, roma, in_context, c3po_regression, {variant: router_tuning, set: [roma.tokens=last1]}]
seeds: [0]
text: plain.txt
text_words: 20
output_dir: study
"""


def test_a_study_of_a_chat_model(project: Project) -> None:
    (project.folder / "plain.txt").write_text(" ".join(f"w{place % 60}" for place in range(100)))
    (project.folder / "study.yaml").write_text(STUDY)
    paths = (f"{key}={project.folder / name}" for key, name in (("run", "run.yaml"), ("text", "plain.txt")))
    more = (*paths, f"output_dir={project.folder / 'study'}")
    done = roma_ds_here(["study", str(project.folder / "study.yaml"), "--ranks", "1", *more])
    assert done.code == 0, done
    shared = project.folder / "study" / "shared" / "data" / "eval.parquet"
    kinds = {sample.task: sample.templated for sample in load_samples(shared)}
    assert kinds == {"words": True, "written": True, "plain_text": False}
    rows = read_json(project.folder / "study" / "report" / "study.json")["entries"]
    assert set(rows) == {"base", "roma", "in_context", "c3po_regression", "router_tuning"}
    assert rows["base"]["perplexity"] > 1
    written = read_parquet(project.folder / "study" / "report" / "in_context" / "seed-0" / "outcome.parquet")
    assert [text is not None for text in written["generated"]] == [
        task == "written" for task in written["task"]
    ]
