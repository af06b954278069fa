"""Our cloze and letter scores against lm-evaluation-harness's own, option by option, on the same rows.

    python benchmarks/harness_agreement.py --data DATA --out results
    python benchmarks/harness_agreement.py --data DATA --out results --chat newline

DATA holds the benchmark files (`NAME/SPLIT.jsonl.gz`) and `tokenizers/olmoe_tokenizer.json.gz`. The model is
a small one of random weights with that tokenizer. Ours is `roma-ds eval`; the harness runs its own task
files, with its own prompts, on rows in the columns that the hub has, by its own model class `hf`. Exits with
1 where a log-likelihood differs by more than the tolerance or an accuracy differs. Needs the extra `eval`.

With --chat prompts are written by a chat template: ours under `data.template: chat`, the harness's with
`--apply_chat_template`, `--fewshot_as_multiturn` and `--system_instruction`. Where the template's generation
prompt ends in white space (`newline`), the harness counts that to every option, and ours to the prompt. What
each option has more than the first one of its question is then compared, of tasks whose options follow one
prompt.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import write_result

from roma_ds.testing.chats import OLMOE, give_template
from roma_ds.testing.tiny_models import save_with_vocabulary

TOLERANCE = 1e-3
"""Nats, the largest difference of a log-likelihood."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Compared:
    """A task, where the harness keeps its file, and our rows in the columns of its dataset."""

    name: str
    split: str
    file: str
    columns: Callable[[dict[str, Any]], dict[str, Any]]
    scoring: str = "cloze"
    shots: int = 0
    examples: str = "train"
    """The split whose first rows are the solved examples of both sides."""


def _arc(row: dict[str, Any]) -> dict[str, Any]:
    labels = [str(place + 1) for place in range(len(row["choices"]))]
    listed = {"text": row["choices"], "label": labels}
    return {"question": row["question"], "choices": listed, "answerKey": labels[row["answer"]]}


def _piqa(row: dict[str, Any]) -> dict[str, Any]:
    first, second = row["choices"]
    return {"goal": row["question"], "sol1": first, "sol2": second, "label": row["answer"]}


def _hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    activity, _, scene = row["question"].partition(": ")
    return {
        "activity_label": activity,
        "ctx_a": scene,
        "ctx_b": "",
        "endings": row["choices"],
        "label": str(row["answer"]),
    }


def _winogrande(row: dict[str, Any]) -> dict[str, Any]:
    first, second = row["choices"]
    return {
        "sentence": row["question"],
        "option1": first,
        "option2": second,
        "answer": str(row["answer"] + 1),
    }


def _boolq(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "passage": row["passage"],
        "question": row["question"].removesuffix("?"),
        "label": row["answer"],
    }


def _mmlu(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("question", "choices", "answer", "subject")}


TASKS = (
    Compared("arc_easy", "test", "arc/arc_easy.yaml", _arc),
    Compared("piqa", "validation", "piqa/piqa.yaml", _piqa),
    Compared("hellaswag", "validation", "hellaswag/hellaswag.yaml", _hellaswag),
    Compared("winogrande", "validation", "winogrande/default.yaml", _winogrande),
    Compared("boolq", "validation", "super_glue/boolq/default.yaml", _boolq),
    Compared("arc_challenge", "test", "arc/arc_challenge.yaml", _arc),
    Compared("mmlu", "test", "mmlu/default/mmlu_anatomy.yaml", _mmlu, "letter", shots=5, examples="dev"),
)
"""MMLU is one subject, with the five examples that the harness takes; it too asks for letters."""
SUBJECT = "anatomy"
CHATS = {"newline": OLMOE, "token": OLMOE.replace("<|assistant|>\n", "<|assistant|>")}
"""Chat templates by what their generation prompts end in."""
SYSTEM = "Answer as well as you can."


def read(path: Path) -> Rows:
    """Rows of a gzipped JSON-lines file."""
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return [json.loads(line) for line in lines if line]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepare(data: Path, work: Path, rows: int, tasks: Sequence[Compared], template: str = "") -> None:
    """The model, the first `rows` of each task in our form and the harness's, and its task files.

    template: a chat template that its tokenizer gets, and BOS with it.
    """
    import lm_eval

    save_with_vocabulary(work / "model", data / "tokenizers" / "olmoe_tokenizer.json.gz")
    if template:
        give_template(work / "model", template, bos="<|endoftext|>")
    own = Path(lm_eval.__file__).parent / "tasks"
    (work / "tasks").mkdir()
    for task in tasks:
        chosen = read(data / task.name / f"{task.split}.jsonl.gz")
        if task.name == "mmlu":
            chosen = [row for row in chosen if row["subject"] == SUBJECT]
        chosen = chosen[:rows]
        write(work / "data" / task.name / f"{task.split}.jsonl", chosen)
        file = write(work / "hub" / f"{task.name}.jsonl", [task.columns(row) for row in chosen])
        files = {task.split: str(file)}
        lines = [f"include: {own / task.file}", f"task: compared_{task.name}", "dataset_path: json"]
        lines += ["dataset_name: null", "training_split: null", "tag: null"]
        lines += [f"{name}_split: null" for name in ("validation", "test") if name != task.split]
        lines += [f"{task.split}_split: {task.split}"]
        if task.shots:
            solved = read(data / task.name / f"{task.examples}.jsonl.gz")
            solved = [row for row in solved if row.get("subject") in (None, SUBJECT)][: task.shots]
            write(shots_of(work, task), solved)
            file = write(work / "hub" / f"{task.name}.shots.jsonl", [task.columns(row) for row in solved])
            files["dev"] = str(file)
            # The harness's default draws other examples for each question.
            lines += ["fewshot_split: dev", "fewshot_config: {sampler: first_n}"]
        lines += [
            "dataset_kwargs:",
            "  data_files:",
            *(f"    {name}: {path}" for name, path in files.items()),
        ]
        (work / "tasks" / f"compared_{task.name}.yaml").write_text("\n".join(lines) + "\n")


def shots_of(work: Path, task: Compared) -> Path:
    """The file of a task's solved examples in our form."""
    return work / "data" / f"{task.name}.shots.jsonl"


def listed(work: Path, task: Compared) -> str:
    """A task as `eval.tasks` has it."""
    shots = f", shots_path: {shots_of(work, task)}" if task.shots else ""
    return f"{{name: {task.name}, scoring: {task.scoring}, shots: {task.shots}{shots}}}"


def ours(
    work: Path, tasks: Sequence[Compared], chat: bool = False
) -> tuple[dict[str, list[list[float]]], dict[str, Any]]:
    """Log-likelihoods by task, row and option, and the results, of `roma-ds eval`."""
    from roma_ds.cli.main import main
    from roma_ds.storage.atomic import read_json, read_parquet

    template = f"template: chat, chat: {{system: {SYSTEM}}}" if chat else "template: plain"
    train = write(work / "train.jsonl", [_UNUSED])
    (work / "run.yaml").write_text(
        f"model: {{path: {work / 'model'}, dtype: float32}}\n"
        f"data: {{train: [{{path: {train}}}], max_tokens: 2048, {template}}}\n"
        "roma: {layers: last1}\n"
        f"eval: {{tasks: [{', '.join(listed(work, task) for task in tasks)}], data_root: {work / 'data'}}}\n"
        "deepspeed: zero0\n"
        f"output_dir: {work / 'out'}\n"
    )
    code = main(["eval", str(work / "run.yaml"), "--variant", "base", "--ranks", "1"])
    if code:
        raise SystemExit(code)
    columns = read_parquet(work / "out" / "eval" / "base.samples.parquet")
    found: dict[str, list[list[float]]] = {task.name: [] for task in tasks}
    for name, values in zip(columns["task"], columns["option_loglikelihoods"], strict=True):
        found[name].append(values)
    return found, read_json(work / "out" / "eval" / "base.json")["tasks"]


_UNUSED = {"id": "1", "question": "Unused?", "choices": ["no", "yes"], "answer": 0}


def harness(
    work: Path, tasks: Sequence[Compared], model: str = "hf", chat: bool = False, **arguments: Any
) -> tuple[dict[str, list[list[float]]], dict[str, Any]]:
    """The same of lm-evaluation-harness, by one of its model classes."""
    samples, metrics = harness_samples(work, tasks, model, chat, **arguments)
    found = {
        task: [[float(one[0][0]) for one in sample["resps"]] for sample in asked]
        for task, asked in samples.items()
    }
    return found, metrics


def harness_samples(
    work: Path, tasks: Sequence[Compared], model: str = "hf", chat: bool = False, **arguments: Any
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """By task, what the harness records of each question, in their order; and its metrics."""
    os.environ["HF_DATASETS_CACHE"] = str(work / "cache")
    import lm_eval
    from lm_eval.tasks import TaskManager

    found, metrics = {}, {}
    for task in tasks:
        name = f"compared_{task.name}"
        result = lm_eval.simple_evaluate(
            model=model,
            model_args={"pretrained": str(work / "model"), "dtype": "float32", **arguments},
            tasks=[name],
            num_fewshot=task.shots,
            batch_size=8,
            device="cpu",
            task_manager=TaskManager(include_path=str(work / "tasks"), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            system_instruction=SYSTEM if chat else None,
        )
        found[task.name] = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        metrics[task.name] = result["results"][name]
    return found, metrics


def compared(
    mine: Mapping[str, list[list[float]]],
    theirs: Mapping[str, list[list[float]]],
    results: Mapping[str, Any],
    metrics: Mapping[str, Any],
    relative: bool = False,
) -> dict[str, dict[str, Any]]:
    """By task: rows, options, the largest difference, and both sides' accuracies.

    relative: compare what an option has more than the first one of its question; the mean, and accuracies per
    character, which that does not decide, are left out.
    """
    table = {}
    for task, values in theirs.items():
        pairs = [
            (one, other)
            for mine_row, theirs_row in zip(mine[task], values, strict=True)
            for one, other in zip(
                *(_from_first(row) if relative else row for row in (mine_row, theirs_row)), strict=True
            )
        ]
        accuracy, norm = results[task]["accuracy"], results[task]["accuracy_norm"]
        table[task] = {
            "rows": len(values),
            "options": len(pairs),
            "largest_difference": max(abs(one - other) for one, other in pairs),
            "mean_loglikelihood": None if relative else sum(other for _, other in pairs) / len(pairs),
            "accuracy": accuracy,
            "harness_accuracy": metrics[task]["acc,none"],
            "accuracy_norm": None if relative else norm,
            "harness_accuracy_norm": None if relative else metrics[task].get("acc_norm,none"),
        }
    return table


def _from_first(values: Sequence[float]) -> list[float]:
    return [value - values[0] for value in values]


def agrees(entry: Mapping[str, Any]) -> bool:
    """Whether one task's numbers are the same on both sides."""
    norm, other = entry["accuracy_norm"], entry["harness_accuracy_norm"]
    same_norm = norm == other or (None not in (norm, other) and abs(norm - other) < 1e-9)
    same = abs(entry["accuracy"] - entry["harness_accuracy"]) < 1e-9
    return bool(entry["largest_difference"] <= TOLERANCE and same and same_norm)


def main() -> int:
    """Compare and write `harness_agreement.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the benchmark files")
    parser.add_argument("--rows", type=int, default=200, help="rows of each task")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--chat", choices=CHATS, help="a chat template, by what its prompts end in")
    parser.add_argument("--work", type=Path, default=Path("harness_agreement_work"), help="an empty folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True)
    tasks = [task for task in TASKS if not options.tasks or task.name in options.tasks]
    chat, relative = options.chat is not None, options.chat == "newline"
    if relative:
        # Its options follow prompts of their own, which the white space is counted after.
        tasks = [task for task in tasks if task.name != "winogrande"]
    prepare(options.data.resolve(), work, options.rows, tasks, CHATS[options.chat] if chat else "")
    mine, results = ours(work, tasks, chat)
    theirs, metrics = harness(work, tasks, chat=chat)
    table = compared(mine, theirs, results, metrics, relative)
    name = f"harness_agreement_chat_{options.chat}" if chat else "harness_agreement"
    write_result(options.out, name, {"tolerance": TOLERANCE, "chat": options.chat, "tasks": table})
    for task, entry in table.items():
        print(f"{task:<14} {'agrees' if agrees(entry) else 'DIFFERS'} {entry}")
    return 0 if all(map(agrees, table.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
