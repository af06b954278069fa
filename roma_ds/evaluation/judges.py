"""What says that a generated answer to a training sample is right: its final answer, or a user's function.

`data.train[].judge` names it. The right final answer is the one that the row gives apart, or the one that its
worked solution ends in.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roma_ds.config import RunConfig
from roma_ds.config.sources import JUDGES
from roma_ds.data.learned import generated_datasets
from roma_ds.data.sample import Sample
from roma_ds.data.templates import letters
from roma_ds.errors import RomaError, UserError
from roma_ds.evaluation.answers import NONE, Answer, read_answer, stated_answer
from roma_ds.evaluation.reading.option_letters import option_letter
from roma_ds.evaluation.reading.prose import marked, readable
from roma_ds.evaluation.reading.quantities import quantity
from roma_ds.evaluation.reading.stated_numbers import final_number

UNNAMED = 26
"""Letters that an answer may give where the row names no options."""
SHOWN = 3
_LETTER = re.compile(r"[(\[]?([A-Z])[)\].]*")


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


def referenced(sample: Sample, judge: str) -> Sample | None:
    """The sample as `read_answer` needs it, its target the right final answer alone; None without one.

    judge: a name of `JUDGES`.
    """
    if sample.options:
        return sample if judge in ("final", "letter" if _are_letters(sample) else "text") else None
    given = sample.final
    if judge == "final":
        judge = _kind(sample)
    if judge == "letter":
        return _by_letter(sample, given)
    if judge == "number":
        found = final_number(given or sample.target)
        return _alone(sample, str(found)) if found is not None else None
    if judge == "text":
        if given in sample.choices:
            return _by_place(sample, sample.choices.index(given), [f" {choice}" for choice in sample.choices])
        text = given or stated_answer(sample.target)
        return _alone(sample, text) if text else None
    return None


def _kind(sample: Sample) -> str:
    """What the final answer of a sample without options is; empty where none is stated."""
    if sample.choices and sample.final:
        return "letter" if sample.final not in sample.choices else "text"
    text = sample.final or stated_answer(sample.target)
    if not text:
        return ""
    if quantity(marked(readable(text))) is not None:
        return "number"
    return "letter" if _LETTER.fullmatch(text.strip().rstrip(".")) else "text"


def _by_letter(sample: Sample, given: str) -> Sample | None:
    count = len(sample.choices) or UNNAMED
    named = _LETTER.fullmatch(given.strip())
    if named:
        place = ord(named[1]) - ord("A")
    elif given in sample.choices:
        place = sample.choices.index(given)
    else:
        place = option_letter(given or sample.target, count, sample.choices)
    if not 0 <= place < count:
        return None
    return _by_place(sample, place, letters(count))


def _by_place(sample: Sample, place: int, options: Sequence[str]) -> Sample:
    return replace(sample, options=tuple(options), answer=place, target=options[place])


def _alone(sample: Sample, answer: str) -> Sample:
    return replace(sample, target=answer)


def _are_letters(sample: Sample) -> bool:
    return [one.strip() for one in sample.options] == [one.strip() for one in letters(len(sample.options))]


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
