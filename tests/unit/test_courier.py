"""Errands of the index: in order, beside the caller, and with their mistakes brought back."""

from __future__ import annotations

import threading
import time

import pytest

from roma_ds.index.courier import Courier


def test_errands_run_one_after_the_other_while_the_caller_goes_on() -> None:
    courier, seen, gate = Courier(beside=True), [], threading.Event()

    def first() -> str:
        gate.wait(10)
        seen.append("first")
        return threading.current_thread().name

    waits = [courier.send(first), courier.send(lambda: seen.append("second") or "second")]
    assert seen == []
    gate.set()
    assert [wait() for wait in reversed(waits)] == ["second", "index"]
    assert seen == ["first", "second"]
    courier.close()


@pytest.mark.parametrize("beside", [True, False])
def test_a_mistake_is_raised_where_it_is_known(beside: bool) -> None:
    courier = Courier(beside)

    def wrong() -> None:
        raise ValueError("no such id")

    with pytest.raises(ValueError, match="no such id"):
        courier.send(wrong)()
    assert courier.send(lambda: 3)() == 3
    courier.close()


def test_without_a_thread_an_errand_is_done_before_send_returns() -> None:
    courier, seen = Courier(beside=False), []
    wait = courier.send(lambda: seen.append(threading.current_thread()))
    assert seen == [threading.main_thread()]
    wait()
    courier.close()


def test_close_waits_for_what_was_sent() -> None:
    courier, seen = Courier(beside=True), []

    def slow() -> None:
        time.sleep(0.05)
        seen.append(1)

    courier.send(slow)
    courier.close()
    assert seen == [1]
    assert not [thread for thread in threading.enumerate() if thread.name == "index"]
