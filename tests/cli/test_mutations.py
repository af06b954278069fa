"""A part of benchmarks/bad_input.py: random faults are refused in words, harmless changes accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COUNT, SEED = 200, 17


@pytest.fixture(scope="module")
def bad_input() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import bad_input

        yield bad_input


@pytest.fixture(scope="module")
def base(bad_input: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = bad_input.make_base(tmp_path_factory.mktemp("bad_input") / "base")
    return folder


def test_mutations_end_as_their_labels_say(bad_input: Any, base: Path) -> None:
    outcomes = [bad_input.mutate(base, number, SEED) for number in range(COUNT)]
    assert [one for one in outcomes if one.fault] == []
    found = bad_input.table(outcomes)
    assert len(found) == 9 and found["all"]["mutations"] == COUNT
    assert all(counts["harmful"] >= 5 and counts["harmless"] >= 3 for counts in found.values())
    assert found["all"]["refused"] == found["all"]["harmful"]
    assert {one.command for one in outcomes} == {"check", "data", "plan", "merge"}


def test_every_harmful_mutation_changes_a_file(bad_input: Any, base: Path, tmp_path: Path) -> None:
    from mutations import MUTATORS, Case, copied

    before = bad_input.contents(base)
    for place, mutator in enumerate(one for some in MUTATORS.values() for one in some if one.harmful):
        case = Case(copied(base, tmp_path / str(place)), random.Random(place))
        mutator.apply(case)
        assert bad_input.contents(case.folder) != before, f"{mutator.kind}: {mutator.name}"


def test_what_a_label_does_not_say_is_counted(bad_input: Any) -> None:
    def fault(harmful: bool, code: int | None, said: str = "fix: ", **more: Any) -> str:
        given = {"changed": [], "new": [], "seconds": 1.0, **more}
        ended = bad_input.Ended(code, said, given.pop("seconds"))
        return str(bad_input._fault(harmful, ended, **given))

    assert fault(True, 2) == fault(True, 3) == fault(False, 0) == ""
    assert fault(True, 0) == "wrongly accepted"
    assert fault(False, 2) == "wrongly refused"
    assert fault(True, None) == fault(True, 2, "Traceback (most recent call last)") == "traceback"
    assert fault(True, 1) == "exit code 1"
    assert fault(True, 2, "no more") == "no fix is named"
    assert fault(True, 2, changed=["a"]) == fault(False, 0, changed=["a"]) == "changed a"
    assert fault(True, 2, new=["merged/x"]) == "left merged/x"
    assert fault(False, 0, seconds=61.0) == "too slow"
