from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import pytest

from roma_ds.comm import World, agreement
from roma_ds.errors import EnvironmentFault, Interrupted, RomaError, UserError
from roma_ds.testing.local_ranks import RankFailed, on_ranks


def fails(size: int, body: Callable[..., object]) -> dict[int, int | None]:
    """Exit codes; a rank that had to be ended by the timeout would show -9."""
    with pytest.raises(RankFailed) as caught:
        on_ranks(size, body, timeout_s=200)
    return caught.value.codes


def fail_by_user(world: World) -> None:
    with agreement(world):
        if world.rank == 1:
            raise UserError("data.jsonl cannot be read", "give another file")
    world.barrier()


def test_a_user_error_on_one_rank_ends_all_with_its_code_and_message(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert fails(2, fail_by_user) == {0: 2, 1: 2}
    text = capfd.readouterr().err
    for rank in range(2):
        assert f"rank {rank}: data.jsonl cannot be read\n  fix: give another file" in text


def fail_by_bug(world: World) -> None:
    with agreement(world):
        if world.rank == 1:
            raise ZeroDivisionError("by design")
    world.barrier()


def test_an_unforeseen_exception_on_one_rank_ends_all_with_code_1(capfd: pytest.CaptureFixture[str]) -> None:
    assert fails(2, fail_by_bug) == {0: 1, 1: 1}
    text = capfd.readouterr().err
    assert text.count("Traceback") == 1, "its own rank shows where"
    assert "rank 0: rank 1 failed: ZeroDivisionError: by design" in text


def die(world: World) -> None:
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with agreement(world):
        time.sleep(0.1)
    world.barrier()


def test_a_killed_rank_ends_the_others() -> None:
    codes = fails(2, die)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0


def kinds(world: World) -> list[tuple[str, int, str, bool]]:
    """How each kind of error on rank 1 arrives on every rank, then one of ranks 1 and 2, then none."""
    found = []
    errors = (
        UserError("user", "mend"),
        EnvironmentFault("machine"),
        Interrupted(signal.SIGTERM),
        RomaError("other", "retry"),
    )
    for error in errors:
        try:
            with agreement(world):
                if world.rank == 1:
                    raise error
        except RomaError as caught:
            found.append((type(caught).__name__, caught.exit_code, str(caught), caught.agreed))
    try:
        with agreement(world):
            if world.rank:
                raise UserError(f"of rank {world.rank}")
    except UserError as caught:
        found.append((type(caught).__name__, caught.exit_code, str(caught), caught.agreed))
    with agreement(world):
        pass
    # Ranks are still together: nobody is one exchange ahead.
    found.append(("together", sum(world.gather_objects(1)), "", True))
    return found


def test_kinds_of_errors_arrive_as_what_they_are() -> None:
    first, second, third = on_ranks(3, kinds, timeout_s=200)
    assert first[:4] == third[:4]
    assert [rank[4][2] for rank in (first, second, third)] == ["of rank 1", "of rank 1", "of rank 2"]
    assert [item[:2] for item in second[:4]] == [
        ("UserError", 2), ("EnvironmentFault", 3), ("Interrupted", 143), ("RomaError", 1),
    ]  # fmt: skip
    assert [item[1] for item in first] == [item[1] for item in second] == [2, 3, 143, 1, 2, 3]
    assert [item[0] for item in first[:3]] == ["UserError", "EnvironmentFault", "Interrupted"]
    assert first[0][2] == "user\n  fix: mend"
    assert re.match("stopped by SIGTERM\n  fix: ", first[2][2])
    assert first[3][2] == "rank 1 failed: other\n  fix: retry"
    assert all(item[3] for item in (*first, *second)), "marked, so that one rank prints it"
