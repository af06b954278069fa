"""`roma-ds check`: everything about a run that can be known without weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from roma_ds.cli.memory_estimate import memory_lines
from roma_ds.cli.parser import CHECKS
from roma_ds.cli.subject import Subject
from roma_ds.errors import EnvironmentFault, RomaError, UserError

if TYPE_CHECKING:
    from roma_ds.data import Sample
    from roma_ds.sequences.encoding import Prompt

SHOWN = 2
"""Prompts that are printed."""
ENDS = 3
"""Token ids that are shown of either end of a prompt."""


def _deepspeed(subject: Subject) -> Iterator[str]:
    from roma_ds.training.batch_order import batch_line

    train, ranks = subject.run.train, subject.world_size
    zero = subject.ds["zero_optimization"]
    yield f"ZeRO stage {zero['stage']}, {ranks} ranks, global batch {train.split(ranks).samples}"
    yield f"  {batch_line(train, ranks)}"
    device = (zero.get("offload_param") or {}).get("device", "none")
    if device != "none":
        yield f"weights wait in {device}"


def _machine(subject: Subject) -> Iterator[str]:
    from roma_ds.pipeline.machine_support import check_machine

    check_machine(subject.ds)
    yield "has what the DeepSpeed config asks for"


def _model(subject: Subject) -> Iterator[str]:
    from roma_ds.data.learned import refuse_useless
    from roma_ds.pipeline.acceptance import accept_family

    if subject.evaluation_only:
        subject.require_evaluable()
        yield f"{subject.evaluation_only}: `roma-ds eval` measures it, and nothing can be trained"
        if subject.mixing:
            yield f"  {subject.mixing}: every sequence is run alone"
        return
    layout, layers = subject.layout, subject.layers
    family = layout.family
    refuse_useless(subject.run)
    accept_family(subject.run, family)
    depth = family.depth(subject.network.config)
    yield f"{family.name} ({family.support}), {depth} layers, {layout.experts} experts, top-{layout.top_k}"
    if family.reason:
        yield f"  {family.reason}"
    trained = sum(site.experts * site.hidden for site in layout.sites if site.layer in layers)
    total = sum(parameter.numel() for parameter in subject.network.parameters())
    yield (
        f"  trained: the routers of layers {', '.join(map(str, layers))}, {trained:,} of {total:,} parameters"
    )


def _weights(subject: Subject) -> Iterator[str]:
    from pathlib import Path

    from roma_ds.checkpoint.blueprint import check_checkpoint
    from roma_ds.checkpoint.loading import checkpoint, is_local, not_found

    place = Path(checkpoint(subject.run.model))
    if place.is_file():
        raise UserError(
            f"model.path: {place} is a file, and the weights of a run lie in a folder",
            "give the folder of the checkpoint; `roma-ds plan` reads a config.json alone",
        )
    if not place.is_dir():
        if is_local(subject.run.model.path):
            raise not_found(subject.run.model, "")
        yield "not looked at: they are on the hub"
        return
    files = check_checkpoint(subject.run.model)
    yield f"{len(files.keys)} tensors in {len(set(files.keys.values()))} files fit the config"
    coded = files.decoding.kinds()
    if coded:
        found = ", ".join(f"{count} as {kind}" for kind, count in sorted(coded.items()))
        yield (
            f"  {coded.total()} are stored in codes ({found}) and decoded to {subject.run.model.dtype}; "
            f"{files.stored_bytes:,} bytes on disk"
        )


def _training_data(subject: Subject) -> Iterator[str]:
    from roma_ds.data import preview
    from roma_ds.data.sources import training_sources

    try:
        samples, count, notes = subject.trained
    except RomaError:
        # Training data are held against evaluation data, whose faults shall not hide those of their own.
        for source in training_sources(subject.run):
            for _ in source.open().batches():
                pass
        raise
    yield f"{count} training samples"
    yield from (f"  {line}" for line in notes)
    yield from (f"  {line}" for line in _judged(subject, samples))
    yield f"\n{preview(samples, SHOWN)}\n"


def _judged(subject: Subject, samples: Sequence[Sample]) -> Iterator[str]:
    """What says that samples are answered right, where that is generated answers."""
    from roma_ds.data.learned import generated_datasets
    from roma_ds.evaluation.judges import Judges, told

    if generated_datasets(subject.run):
        judges = Judges(subject.run)
        trial = judges.try_on(samples)
        yield from told(subject.run, judges, trial)
        yield f"each of {trial.samples} samples has an answer to judge by"


def _evaluation_data(subject: Subject) -> Iterator[str]:
    from roma_ds.data import preview

    if not subject.run.eval.tasks:
        if subject.evaluation_only:
            raise UserError(
                f"eval.tasks is empty, and nothing can be trained: {subject.evaluation_only}",
                "name tasks to evaluate the model as it is, or take a model that can be trained",
            )
        yield "eval.tasks is empty: nothing is evaluated"
        return
    yield f"{len(subject.evaluation)} evaluation samples"
    yield from (f"  {line}" for line in subject.evaluated[1])
    if subject.evaluation_only:
        yield f"\n{preview(subject.evaluation, SHOWN)}\n"


def _encoder(subject: Subject) -> Iterator[str]:
    from roma_ds.embed.encoder_files import check_encoder

    check_encoder(subject.run.embed)
    yield f"{subject.run.embed.model} can be loaded, as far as its small files say"


def _index(subject: Subject) -> Iterator[str]:
    from roma_ds.embed.encoder_files import embedding_width
    from roma_ds.index.stage import check_index

    run = subject.run
    try:
        samples = subject.trained[1]
    except RomaError:
        samples = None
    check_index(run, subject.world_size, embedding_width(run.embed), samples)
    yield f"{run.index.backend} can search as the run asks, with {run.index.factory}"


def _prompts(subject: Subject) -> Iterator[str]:
    from roma_ds.data.chat import described
    from roma_ds.data.message import Message
    from roma_ds.writing.thinking import is_thinking

    yield described(subject.tokenizer, subject.run.data, subject.chat)
    if subject.chat is None:
        return
    if is_thinking(subject.chat.render((Message("user", "a"),))):
        yield (
            "  its generation prompt begins a thought, and an answer that is scored would be part of it: "
            "look for a switch of the template (data.chat.kwargs), or give a file by data.chat.template"
        )
    between = subject.chat.answer_place.opening
    if between:
        yield (
            f"  of its own it writes {between!r} between its generation prompt and an answer; here neither "
            "has that, unless data.chat.kwargs or a file of data.chat.template puts it into the prompt"
        )


def _tokens(subject: Subject) -> Iterator[str]:
    yield from _counted(subject, subject.prompts, "training")


def _evaluation_tokens(subject: Subject) -> Iterator[str]:
    if subject.questions:
        yield from _counted(subject, subject.questions, "evaluation")
    else:
        yield "none, since nothing is evaluated"


def _counted(subject: Subject, prompts: list[Prompt], kind: str) -> Iterator[str]:
    lengths = [len(prompt.prompt) for prompt in prompts]
    text = f"{min(lengths)} to {max(lengths)} in the prompts of the first {len(lengths)} {kind} samples"
    cut = sum(prompt.truncated for prompt in prompts)
    context = f" and the model's context of {subject.context}" if subject.context else ""
    to = f"data.max_tokens={subject.run.data.max_tokens}{context}"
    yield text + (f"; {cut} of them are cut in the middle to fit {to}" if cut else "")
    single = sum(prompt.single_token_options for prompt in prompts)
    yield f"  options of one token each, read in one pass: {single} of {len(lengths)} samples"
    yield f"  the first begins with {_ids(subject, prompts[0].prompt[:ENDS])}"
    ends = _ids(subject, prompts[0].prompt[-ENDS:])
    yield f"  and ends with {ends}, before {_ids(subject, prompts[0].target[:ENDS])}"
    if not subject.evaluation_only:
        yield f"  r is read at {_read(subject, prompts[0])}"


def _read(subject: Subject, prompt: Prompt) -> str:
    """Where the routing of a prompt is read."""
    from roma_ds.sequences.batches import routing_positions

    places = routing_positions(len(prompt.prompt), subject.run.roma.tokens, prompt.users[0])
    numbers = ", ".join(str(place + 1) for place in places)
    which = f"{'token' if len(places) == 1 else 'tokens'} {numbers} of its {len(prompt.prompt)}"
    return f"{which}: {_ids(subject, [prompt.prompt[place] for place in places])}"


def _ids(subject: Subject, tokens: Sequence[int]) -> str:
    """Token ids with their texts."""
    texts = subject.tokenizer.convert_ids_to_tokens(list(tokens))
    return ", ".join(f"{token} {text!r}" for token, text in zip(tokens, texts, strict=True))


LOOKS: dict[str, Callable[[Subject], Iterator[str]]] = {
    "DeepSpeed": _deepspeed,
    "machine": _machine,
    "model": _model,
    "weights": _weights,
    "prompts": _prompts,
    "training data": _training_data,
    "evaluation data": _evaluation_data,
    "encoder": _encoder,
    "index": _index,
    "tokens": _tokens,
    "evaluation tokens": _evaluation_tokens,
    "memory": memory_lines,
}


FOR_TRAINING = ("weights", "training data", "encoder", "index", "tokens", "memory")
"""Left out where nothing can be trained; weights are then read as the library has it."""


def check_run(options: argparse.Namespace) -> int:
    """Run all checks, print what each found. Raises a RomaError with every problem at once.

    A UserError where one of them is the user's, else an EnvironmentFault.
    """
    from roma_ds.config.loader import usable_part
    from roma_ds.pipeline.worker import load_for, overrides_for

    world_size = next((n for n in (options.world_size, options.ranks) if n is not None), 1)
    if world_size < 1:
        raise UserError(f"--world-size must be 1 or more, not {world_size}", "leave it out for 1")
    problems: dict[str, RomaError] = {}
    try:
        run = load_for(options.config, options.overrides, options.ds)
        print(f"config: {options.config} is valid")
    except UserError as error:
        rest = usable_part(options.config, overrides_for(options.overrides, options.ds))
        if rest is None:
            raise
        run = rest
        problems[str(error)] = error
        print("config: not valid, see below; looking at the rest of it")
    subject = Subject(run, world_size)
    for name in CHECKS:
        if name in FOR_TRAINING and subject.evaluation_only:
            print(f"{name}: not looked at, since nothing can be trained")
            continue
        try:
            # Whole or not at all: a check may fail after its first line.
            lines = list(LOOKS[name](subject))
            print(f"{name}: " + "\n".join(lines))
        except RomaError as error:
            # Checks that build on one another fail for one reason, which is said once.
            problems.setdefault(str(error), error)
            print(f"{name}: not usable, see below")
    if not problems:
        return 0
    kinds = {error.exit_code for error in problems.values()}
    kind = EnvironmentFault if kinds == {EnvironmentFault.exit_code} else UserError
    raise kind("\n".join(problems))
