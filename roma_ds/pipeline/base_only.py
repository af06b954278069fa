"""Evaluation of a model without routers, such as a dense one: the base model alone, nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roma_ds.checkpoint.loading import checkpoint_hash, load_config, load_tokenizer
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.data.chat import described
from roma_ds.data.store import load_samples
from roma_ds.data.tasks import new_tokens_of
from roma_ds.evaluation.stage import evaluate, outputs
from roma_ds.families import has_routers, why_untrained
from roma_ds.families.batching import mixing_reason
from roma_ds.pipeline.data import chat_of, make_data
from roma_ds.pipeline.folders import Folders, describe_run
from roma_ds.pipeline.measuring import evaluated_rows, say_accuracies, scoring_inputs, written_answers
from roma_ds.pipeline.staging import run_stage
from roma_ds.sequences.encoding import Prompt, encode
from roma_ds.sequences.scores import Scores
from roma_ds.writing.generation import Written
from roma_ds.writing.plain import PlainModel

BASE = "base"


def is_base_only(world: World, run: RunConfig, goal: str, variant: str | None) -> bool:
    """Whether a run up to `goal` can only measure a model that has no routers to train. A collective.

    Where something would be trained it says no, and the family of the model is refused with its reason.
    """
    with agreement(world):
        return goal == "eval" and variant in (None, BASE) and not has_routers(load_config(run.model))


def evaluate_base(world: World, run: RunConfig, ds: Mapping[str, Any]) -> None:
    """The data stage and the evaluation of the base model, its files as any variant's. A collective."""
    folders = Folders(Path(run.output_dir))

    def say(text: str) -> None:
        if world.is_first:
            print(text, flush=True)

    def describe() -> None:
        if world.is_first:
            describe_run(folders, run, dict(ds), world.size, str(world.device))

    with agreement(world):
        if world.is_first:
            make_data(run, folders, say)
            # As a run with routers does: of one that is there already only once something of it changes.
            if not folders.is_described:
                describe()
    with agreement(world):
        config = load_config(run.model)
        tokenizer = load_tokenizer(run.model)
        chat = chat_of(run, folders, tokenizer)
        inputs = {
            "model": checkpoint_hash(run.model, config) if world.is_first else "",
            "dtype": run.model.dtype,
            "data": folders.record("data").read()["fingerprint"] if world.is_first else "",
            "router": BASE,
            **scoring_inputs(run),
        }
    inputs = world.from_first(inputs)
    say(f"prompts: {described(tokenizer, run.data, chat)}")
    say(f"model: {why_untrained(config)}; the base model alone is evaluated")

    def work() -> Mapping[str, Any]:
        with agreement(world):
            samples = load_samples(folders.stage("data") / "eval.parquet")
            prompts = encode(
                samples,
                tokenizer,
                run.data.max_tokens,
                getattr(config, "max_position_embeddings", None),
                new_tokens_of(run),
                run.data.long_prompts == "refuse",
            )
            rows = evaluated_rows(folders)
        model = PlainModel(world, run.model, ds)
        if mixing := mixing_reason(config):
            say(f"model: {mixing}, so that every sequence is run alone")

        def score(prompts: Sequence[Prompt]) -> Scores | None:
            return model.score(prompts, run.eval.batch_size, "eval base")

        def write(prompts: Sequence[Prompt]) -> list[Written | None] | None:
            say("write: by the library's own forward pass, as this model has no routers that are found")
            return written_answers(model, run, tokenizer, samples, prompts, "write base", chat)

        facts = evaluate(
            world,
            run,
            BASE,
            samples,
            prompts,
            folders.evaluation(BASE),
            score,
            write if new_tokens_of(run) else None,
            rows,
        )
        model.close()
        say_accuracies(say, BASE, facts)
        return facts

    run_stage(world, say, f"eval {BASE}", folders.evaluation_record(BASE), inputs, outputs(BASE), work)
    with agreement(world):
        describe()
