"""What the cells of a study share: data, embeddings, the frozen pass with its caches, the base's answers."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roma_ds.baselines import TRAINED
from roma_ds.comm import agreement
from roma_ds.config import RunConfig, TaskConfig
from roma_ds.config.loader import read_text
from roma_ds.config.study import StudyConfig
from roma_ds.data.sample import Sample
from roma_ds.embed.stage import embed_settings
from roma_ds.errors import UserError
from roma_ds.pipeline import stages
from roma_ds.pipeline.evaluating import eval_stage
from roma_ds.pipeline.folders import Folders
from roma_ds.pipeline.measuring import try_judges
from roma_ds.pipeline.session import Session
from roma_ds.prefix.feed import CachePart
from roma_ds.prefix.prefix_cache import PrefixCache
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.request_set import requests_of
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import write_text
from roma_ds.study.plan import Cell

TEXT_TASK = "plain_text"


def with_text(run: RunConfig, study: StudyConfig, folder: Path) -> RunConfig:
    """The run with the study's plain text as one more evaluation task, cut into pieces in `folder`."""
    if study.text is None:
        return run
    import json

    words = read_text(Path(study.text), "give a file of plain text").split()
    pieces = [words[start : start + study.text_words] for start in range(0, len(words), study.text_words)]
    # Cloze scoring wants options. The second, one word, costs nothing; only the first is read.
    rows = [
        {"id": str(number), "prompt": piece[0], "choices": [" ".join(piece[1:]), piece[1]], "answer": 0}
        for number, piece in enumerate(pieces)
        if len(piece) > 2
    ]
    if not rows:
        raise UserError(f"{study.text} holds less than three words", "give a file of plain text")
    path = folder / "plain_text.jsonl"
    content = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or path.read_text() != content:
        write_text(path, content)
    task = TaskConfig(TEXT_TASK, str(path), "held-out", scoring="cloze", shots=0, plain=True)
    return replace(run, eval=replace(run.eval, tasks=(*run.eval.tasks, task)))


@dataclass(frozen=True)
class Tasks:
    """Which rows of the evaluation data are what."""

    samples: list[Sample]
    report: tuple[str, ...]
    select: tuple[str, ...]

    def rows(self, tasks: Sequence[str]) -> list[int]:
        """Rows of these tasks, in their order."""
        return [row for row, sample in enumerate(self.samples) if sample.task in tasks]


def settle_tasks(study: StudyConfig, samples: list[Sample]) -> Tasks:
    """Tasks to report and to select on.

    Raises UserError where the study selects on a test split, on a reported task, or on its questions.
    """
    names = [name for name in dict.fromkeys(sample.task for sample in samples) if name != TEXT_TASK]
    unknown = sorted({*study.report, *study.select.tasks} - set(names))
    if unknown:
        raise UserError(
            f"{study.source.name}: the run evaluates no task {', '.join(unknown)}",
            f"choose from {', '.join(names)}, or add it to eval.tasks of the run config",
        )
    select = tuple(study.select.tasks)
    report = tuple(study.report) or tuple(name for name in names if name not in select)
    if not report:
        raise UserError(f"{study.source.name}: every task is selected on, none is reported", "set report")
    splits = {sample.task: sample.split for sample in samples}
    for name in select:
        if splits[name].lower().startswith("test") or name.lower().startswith("test"):
            raise UserError(
                f"{study.source.name}: select.tasks names {name}, whose split is {splits[name]!r}: settings "
                "must not be chosen on a test split",
                "select on a validation split: eval.tasks takes {name: ..., path: ..., split: validation}",
            )
    reported = {sample.prompt for sample in samples if sample.task in report}
    shared = [sample for sample in samples if sample.task in select and sample.prompt in reported]
    if shared:
        raise UserError(
            f"{study.source.name}: {len(shared)} questions of {', '.join(select)} are in a reported task, "
            f"the first is {shared[0].id}: settings would be chosen on the test",
            "take them out of one of the two",
        )
    return Tasks(samples, report, select)


class Shared:
    """The shared folders of a study and the sessions that fill them. Methods are collectives."""

    def __init__(self, session: Session, study: StudyConfig, run: RunConfig, cells: Sequence[Cell]) -> None:
        """session: of `run`, the run without variants; cells: all that there may be."""
        self.session = session
        self.study = study
        self.run = run
        self.root = Path(study.output_dir) / "shared"
        with agreement(session.world):
            firsts = [min(session.whole.layout.choose(cell.run.roma.layers)) for cell in cells]
        behind = [first for first in firsts if first > 0]
        self.entering = min(behind) if behind else None
        """The layer that the caches enter: that of the cells which begin earliest, but for layer 0."""
        self._tables: dict[str, BaseTables] = {}

    def _named(self, stage: str, what: Mapping[str, object], usual: Mapping[str, object]) -> Path:
        same = what == usual
        return self.root / (stage if same else f"{stage}-{fingerprint.of_json(dict(what))[:8]}")

    def places(self, run: RunConfig, variant: str) -> dict[str, Path]:
        """Where the shared stages of a cell lie."""
        pool = TRAINED[variant].pool if variant in TRAINED else "successful"
        embed = embed_settings(run.embed)
        tokens = {"tokens": run.roma.tokens}
        index = {
            **embed,
            **tokens,
            "neighbours": run.roma.neighbours,
            "epsilon": run.roma.epsilon,
            "sigma": run.roma.sigma,
            "refreshed": run.roma.refresh != "never",
            "samples": run.train.samples,
            "seed": run.train.seed if run.train.samples or run.roma.sigma == "median" else None,
            "pool": pool,
            "backend": [run.index.backend, run.index.factory, run.index.max_neighbours, run.index.candidates],
        }
        usual_embed = embed_settings(self.run.embed)
        usual_tokens = {"tokens": self.run.roma.tokens}
        evaluation = self._named("eval", tokens, usual_tokens)
        return {
            "data": self.root / "data",
            "embed": self._named("embed", embed, usual_embed),
            "collect": self._named("collect", tokens, usual_tokens),
            "index": self.root / "index" / fingerprint.of_json(index),
            "collect/prefix": self.root / "prefix" / "collect",
            "eval/prefix": self.root / "prefix" / "eval",
            "eval/base": evaluation,
        }

    def of(self, cell: Cell) -> Session:
        """A session for a cell, its shared stages up to date."""
        places = self.places(cell.run, cell.entry.method.name)
        run = replace(cell.run, eval=self.run.eval, data=self.run.data)
        self._prepare(run, places)
        return self.session.cell(run, Folders(cell.folder, places), self.entering)

    def _prepare(self, run: RunConfig, places: Mapping[str, Path]) -> None:
        key = str([places[name] for name in ("embed", "collect")])
        if key in self._tables:
            return
        ours = {**places, "eval": places["eval/base"]}
        layers = run.roma.layers if self.entering is None else self._from_entering()
        usual = replace(
            run,
            roma=replace(run.roma, layers=layers),
            # It chooses the rows that a data.train.limit leaves, which all seeds have in common.
            train=replace(run.train, seed=self.run.train.seed),
            output_dir=str(self.root),
        )
        session = self.session.cell(usual, Folders(self.root, ours), self.entering)
        stages.data_stage(session)
        try_judges(session)
        stages.embed_stage(session)
        stages.collect_stage(session)
        eval_stage(session, ("base",))
        session.release_frozen()
        self._tables[key] = BaseTables(session.folders)
        # What the libraries hold lives as long as the study: no cell needs to look through it for garbage.
        gc.collect()
        gc.freeze()

    def _from_entering(self) -> tuple[int, ...]:
        return tuple(layer for layer in self.session.whole.layout.layers if layer >= (self.entering or 0))

    def tables(self, session: Session) -> BaseTables:
        """What the base model and the embedding model gave for a cell's session."""
        return self._tables[str([session.folders.places[name] for name in ("embed", "collect")])]


@dataclass(frozen=True)
class BaseTables:
    """Arrays of the shared stages, read when they are first asked for; training rows n, evaluation rows e."""

    folders: Folders

    def _array(self, stage: str, name: str) -> NDArray[np.floating]:
        found: NDArray[np.floating] = np.load(self.folders.stage(stage) / name, mmap_mode="r")
        return found

    @cached_property
    def embeddings(self) -> NDArray[np.floating]:
        """float32 [n, dim]"""
        return self._array("embed", "embeddings.npy")

    @cached_property
    def eval_embeddings(self) -> NDArray[np.floating]:
        """float32 [e, dim]"""
        return self._array("embed", "eval_embeddings.npy")

    @cached_property
    def routing(self) -> NDArray[np.floating]:
        """float16 [n, MoE layers, experts]"""
        return self._array("collect", "routing.npy")

    @cached_property
    def eval_routing(self) -> NDArray[np.floating]:
        """float16 [e, MoE layers, experts], of the base model"""
        return self._array("eval", "base.routing.npy")


def chosen_prompts(prompts: Sequence[Prompt], rows: Sequence[int]) -> list[Prompt]:
    """Prompts of these rows, numbered anew."""
    return [replace(prompts[row], row=place) for place, row in enumerate(rows)]


def part_of(cache: PrefixCache | None, prompts: Sequence[Prompt], rows: Sequence[int]) -> CachePart | None:
    """The sequences of some of the prompts, as `requests_of` those alone numbers them."""
    if cache is None:
        return None
    wanted = set(rows)
    by_row: dict[int, list[int]] = {}
    for number, sequence in enumerate(requests_of(prompts).sequences):
        if sequence.row in wanted:
            by_row.setdefault(sequence.row, []).append(number)
    return CachePart(cache, [number for row in rows for number in by_row[row]])
