"""What says that a generated answer to a training sample is right: its final answer, or a user's function.

`data.train[].judge` names it. The right final answer is the one that the row gives apart, or the one that its
worked solution ends in.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.collect.outcomes import Generated, shares
from roma_ds.config import RunConfig
from roma_ds.config.sources import JUDGES
from roma_ds.data.learned import generated_datasets
from roma_ds.data.sample import Sample
from roma_ds.errors import RomaError, UserError
from roma_ds.evaluation.answers import NONE, Answer, read_answer
from roma_ds.evaluation.references import referenced

SHOWN = 3


@dataclass(frozen=True)
class Trial:
    """What the judges say of the answers that the samples themselves have."""

    samples: int
    wrong: tuple[str, ...]
    """Samples whose own worked solution is not judged right."""


class Judges:
    """The judges of a run's training data."""

    def __init__(self, run: RunConfig) -> None:
        """Raises UserError where a function is not found."""
        self.by_dataset = generated_datasets(run)
        self._functions = {
            judge: _function(judge) for judge in self.by_dataset.values() if judge not in JUDGES
        }

    def identity(self) -> dict[str, Any]:
        """What their judgements depend on beside the samples: their names, and the files of functions."""
        return {
            "/".join(key): [judge, _digest(self._functions[judge]) if judge in self._functions else None]
            for key, judge in self.by_dataset.items()
        }

    def judge(self, sample: Sample, texts: Sequence[str]) -> list[Answer]:
        """What the generated texts say. Raises UserError that names the sample where a function fails, or
        where no right answer is known.
        """
        judge = self.by_dataset[sample.task, sample.split]
        if judge in self._functions:
            return [_by_function(judge, self._functions[judge], sample, text) for text in texts]
        reference = referenced(sample, judge)
        if reference is None:
            raise _unknown([sample.id], judge, 1)
        return [read_answer(reference, text) for text in texts]

    def try_on(self, samples: Sequence[Sample]) -> Trial:
        """Judge each sample's own answer, as if the model had written it: faults show before it writes any.

        Raises UserError as `judge`, for all samples without a known answer at once.
        """
        own = [one for one in samples if (one.task, one.split) in self.by_dataset]
        wrong, unknown = [], {}
        for sample in own:
            judge = self.by_dataset[sample.task, sample.split]
            if judge not in self._functions and referenced(sample, judge) is None:
                unknown[sample.id] = judge
            elif not self.judge(sample, [sample.target])[0].correct:
                wrong.append(sample.id)
        if unknown:
            names = list(unknown)
            raise _unknown(names[:SHOWN], unknown[names[0]], len(names))
        return Trial(len(own), tuple(wrong))


def told(run: RunConfig, judges: Judges, trial: Trial) -> Iterator[str]:
    """How answers are judged, in lines; `trial`: of the samples' own answers."""
    for key, judge in judges.by_dataset.items():
        yield f"{'/'.join(key)}: a sample is answered right by {how_judged(run, judge)}"
    if trial.wrong:
        shown = ", ".join(trial.wrong[:SHOWN])
        yield (
            f"{len(trial.wrong)} of {trial.samples} samples would be judged wrong if the model wrote their "
            f"own answers: {shown}"
        )


def how_judged(run: RunConfig, judge: str) -> str:
    """In words, what counts among how many answers."""
    collect = run.collect
    kind = {
        "final": "the final answer",
        "number": "the final number",
        "letter": "the final letter",
        "text": "the final text",
    }
    what = kind.get(judge, judge.rpartition("/")[2])
    if not collect.temperature:
        return f"{what} of what the model writes (most likely tokens)"
    drawn = f"at temperature {collect.temperature:g}, at least {100 * collect.right_share:g}% of them right"
    return f"{what} of {collect.samples} drawn answers ({drawn})"


def judged_facts(
    run: RunConfig, samples: Sequence[Sample], generated: Sequence[Generated | None]
) -> dict[str, dict[str, Any]]:
    """By dataset how its samples are judged, and the shares of right, unread and unfinished answers."""
    facts = {}
    for key, judge in generated_datasets(run).items():
        own = [
            one
            for sample, one in zip(samples, generated, strict=True)
            if one is not None and (sample.task, sample.split) == key
        ]
        if own:
            facts["/".join(key)] = {"judge": judge, "how": how_judged(run, judge), **shares(own)}
    return facts


def collected_line(name: str, facts: dict[str, Any]) -> str:
    """One line of a dataset's answers, from `judged_facts`."""
    told_shares = f"{100 * facts['right']:.1f}% of {facts['answers']} answers right"
    unread = f"{100 * facts['unread']:.1f}% could not be read and count as wrong"
    cut = f"{100 * facts['unfinished']:.1f}% were cut off by collect.max_new_tokens"
    return f"{name}: judged by {facts['how']}: {told_shares}, {unread}, {cut}"


def _unknown(names: Sequence[str], judge: str, count: int) -> UserError:
    kind = "letter, number or text" if judge == "final" else judge
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return UserError(
        f"no final {kind} is found in the answers of the training samples {', '.join(names)}{more}, by which "
        "generated answers would be judged",
        "give rows the answer apart from the worked solution (keys answer and solution), end solutions with "
        "`#### ANSWER` or `The answer is ANSWER.`, name another data.train[].judge, or leave these rows out",
    )


def _function(judge: str) -> Callable[..., Any]:
    place, _, name = judge.rpartition(":")
    try:
        found = getattr(_module(place), name)
    except RomaError:
        raise
    except AttributeError as error:
        raise UserError(f"judge {judge}: {place} has no {name}", "check the function's name") from error
    except Exception as error:
        raise UserError(
            f"judge {judge}: {place} cannot be imported: {type(error).__name__}: {error}",
            "mend it, or put it on Python's path or beside the config",
        ) from error
    if not callable(found):
        raise UserError(f"judge {judge}: {name} is no function", "name one that takes a text and a sample")
    function: Callable[..., Any] = found
    return function


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise UserError(f"data.train[].judge: {path} does not exist", "check the path in the run config")
    name = f"roma_judge_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"data.train[].judge: {path} is no Python file", "name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # What lies beside it may be imported by it.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _digest(function: Callable[..., Any]) -> str | None:
    from roma_ds.storage import fingerprint

    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    return fingerprint.of_file(Path(file)) if file and Path(file).is_file() else None


def _by_function(judge: str, function: Callable[..., Any], sample: Sample, text: str) -> Answer:
    try:
        said = function(text, _told(sample))
    except RomaError:
        raise
    except Exception as error:
        raise UserError(
            f"judge {judge}: sample {sample.id}: {type(error).__name__}: {error}",
            "mend the function; it takes a generated text and the sample, and says whether it is right",
        ) from error
    if said is not None and not isinstance(said, bool):
        raise UserError(
            f"judge {judge}: sample {sample.id}: it returns {said!r}",
            "return True or False, or None where the text gives no answer",
        )
    return Answer(NONE, "" if said is None else str(said).lower(), said is True)


def _told(sample: Sample) -> Mapping[str, Any]:
    """What a function is told of a sample."""
    return {
        "id": sample.id,
        "dataset": sample.task,
        "question": sample.question,
        "passage": sample.passage,
        "choices": list(sample.choices),
        "target": sample.target.strip(),
        "answer": sample.final or sample.target.strip(),
    }
