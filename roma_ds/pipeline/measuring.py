"""What every evaluation shares, of a run's variants and of a model without routers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from roma_ds.config import RunConfig
from roma_ds.data.chat import ChatTemplate
from roma_ds.data.learned import stop_texts
from roma_ds.data.sample import Sample
from roma_ds.data.tasks import new_tokens_of
from roma_ds.pipeline.folders import Folders
from roma_ds.sequences.encoding import Prompt
from roma_ds.storage.atomic import read_json
from roma_ds.writing.decoding import Decoder
from roma_ds.writing.generation import Asked, Writer, Written


def scoring_inputs(run: RunConfig) -> dict[str, Any]:
    """What of the config decides how answers count; prompts are in the data stage's fingerprint."""
    inputs: dict[str, Any] = {
        "max_tokens": run.data.max_tokens,
        "scoring": run.eval.scoring,
        "shots": run.eval.shots,
    }
    if generated := new_tokens_of(run):
        inputs["generate"] = {
            "max_new_tokens": generated,
            "stop": list(run.eval.stop),
            "answers": run.eval.answers,
        }
    return inputs


def evaluated_rows(folders: Folders) -> dict[str, int]:
    """Rows in the split of each task, used or not, from the data stage's manifest."""
    manifest = read_json(folders.stage("data") / "manifest.json")
    return {entry["dataset"]: entry["rows"] for entry in manifest["evaluation"]["datasets"]}


def written_answers(
    model: Decoder,
    run: RunConfig,
    tokenizer: Any,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    title: str,
    chat: ChatTemplate | None = None,
) -> list[Written | None] | None:
    """The model's own answers to the prompts whose task asks for them, None for others; on rank 0.

    chat: what wrote the prompts, if anything; its end of a turn ends an answer. A collective.
    """
    rows = [row for row, sample in enumerate(samples) if sample.task in new_tokens_of(run)]
    anywhere = run.eval.answers != "roma"
    asked = [Asked(prompts[row].prompt, stop_texts(run, samples[row].task), anywhere) for row in rows]
    ends = chat.end_tokens if chat is not None else ()
    writer = Writer(model, tokenizer, run.eval.max_new_tokens, ends)
    written = writer.write(asked, run.eval.batch_size, title)
    if written is None:
        return None
    by_row = dict(zip(rows, written, strict=True))
    return [by_row.get(row) for row in range(len(samples))]


def say_accuracies(say: Callable[[str], None], name: str, facts: Mapping[str, Any]) -> None:
    """One line: the average, and where there are several tasks each of them."""
    tasks: Mapping[str, float] = facts["tasks"]
    each = ", ".join(f"{task} {100 * accuracy:.2f}%" for task, accuracy in tasks.items())
    say(
        f"eval {name}: average accuracy {100 * facts['average']:.2f}%"
        + (f" ({each})" if len(tasks) > 1 else "")
    )
    if unread := {task: share for task, share in facts.get("unread", {}).items() if share}:
        each = ", ".join(f"{task} {100 * share:.2f}%" for task, share in unread.items())
        say(f"eval {name}: no answer could be read in {each} of the generated texts, which count as wrong")
