"""Every key of a study's YAML file: which variants are compared, on what, and how settings are chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

from roma_ds.config.constraints import Count, Distinct, NotEmpty, Range, Text
from roma_ds.config.loader import parse_section, read_text

_FIX = "correct what is named above; `roma-ds init study_demo` prints a study with every key explained"
Seeds = Annotated[tuple[Annotated[int, Range(at_least=0, below=2**32)], ...], Distinct()]


@dataclass(frozen=True)
class VariantConfig:
    """One line of the table, or several. In YAML a plain name stands for {variant: NAME}."""

    shorthand: ClassVar[str] = "variant"

    variant: Text
    """What is run: one of those that `roma-ds ls variants` lists."""
    label: Text | None = None
    """Its name in tables and folders; null takes the variant's."""
    set: tuple[Text, ...] = ()
    """Overrides of the run config for this variant, as `a.b=c`."""
    grid: tuple[Text, ...] = ()
    """Keys with the values to choose from, as `a.b=[c, d]`: every combination is trained with select.seeds,
    and the best on select.tasks is the one that is reported."""
    sweep: Text | None = None
    """One key with values, as `a.b=[c, d]`: each is reported, as a point of a curve."""

    @property
    def name(self) -> str:
        """In tables and folders."""
        return self.label or self.variant


@dataclass(frozen=True)
class SelectConfig:
    """How settings are chosen from a grid."""

    tasks: Annotated[tuple[Text, ...], Distinct()] = ()
    """Evaluation tasks to choose on. None of them may be reported, be a test split, or share a question with
    a reported task."""
    seeds: Seeds = ()
    """Seeds of the trainings that are compared for the choice."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A whole study, as one YAML file describes it."""

    run: Text
    """Run config that all variants share; `demo` is the packaged model on its suite."""
    set: tuple[Text, ...] = ()
    """Overrides of the run config for all variants, as `a.b=c`."""
    variants: Annotated[tuple[VariantConfig, ...], NotEmpty()]
    """What is compared. `base` and `router_tuning` are the references: name both."""
    seeds: Annotated[Seeds, NotEmpty()] = (0, 1, 2, 3, 4)
    """Seeds of the reported trainings: order of batches, choice of train.samples, random neighbours."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """The choice of settings."""
    report: Annotated[tuple[Text, ...], Distinct()] = ()
    """Evaluation tasks in the table; without any, all that are not selected on."""
    text: Text | None = None
    """File of plain text whose perplexity is measured under every variant that leaves a model; `demo` is text
    of the packaged suite, null measures none."""
    text_words: Annotated[int, Range(at_least=3)] = 64
    """Words of a piece of that text; the first of each is given, the others are predicted."""
    alignment_limit: Count = 1000
    """Most samples of a task on which alignment is measured."""
    output_dir: Text
    """Folder of everything the study writes."""
    source: Path = field(default=Path("study.yaml"), compare=False, metadata={"key": False})
    """The file that the study was read from; no key of it."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        names = tuple(entry.name for entry in self.variants if entry.sweep is None)
        if twice := Distinct().problem(names):
            yield "variants", f"{twice}; give each a label of its own"
        for place, entry in enumerate(self.variants):
            if entry.grid and not (self.select.tasks and self.select.seeds):
                yield f"variants.{place}.grid", "needs select.tasks and select.seeds to choose by"
            if entry.grid and entry.sweep:
                yield f"variants.{place}", "give grid (choose one) or sweep (report all), not both"
        both = sorted(set(self.report) & set(self.select.tasks))
        if both:
            yield "select.tasks", f"{', '.join(both)} is reported: settings must not be chosen on it"


def load_study_config(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study that `path` describes, with overrides laid over it and paths made absolute.

    Raises UserError that lists every problem at once.
    """
    text = read_text(path, "give the path of a study; `roma-ds init study_demo > study.yaml` makes one")
    study: StudyConfig = parse_section(text, path, overrides, StudyConfig, _FIX)
    folder = Path(os.path.abspath(os.path.expanduser(path))).parent

    def file(value: str) -> str:
        return os.path.abspath(folder / os.path.expanduser(value))

    output_dir = file(study.output_dir)
    texts = {"demo": os.path.join(output_dir, "project", "plain.txt")}
    return replace(
        study,
        run=study.run if study.run == "demo" else file(study.run),
        text=texts.get(study.text or "") or (file(study.text) if study.text else None),
        output_dir=output_dir,
        source=folder / path.name,
    )
