"""`Latest` and `ahead`: nothing waits for ever, nothing is lost that must not be, errors cross over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from clipsight.stream.handoff import Ended, Latest, ahead


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("clipsight")]


def test_the_newest_wins_and_says_that_it_did() -> None:
    slot: Latest[int] = Latest()
    assert slot.peek() is None
    assert [slot.put(1), slot.put(2), slot.put(3)] == [False, True, True]
    assert slot.peek() == 3
    assert slot.get(0) == 3
    assert slot.peek() == 3  # looking does not take, taking does not hide
    with pytest.raises(TimeoutError):
        slot.get(0.01)
    assert slot.put(4) is False


def test_none_like_values_pass() -> None:
    slot: Latest[int] = Latest()
    slot.put(0)
    assert slot.get(0) == 0


def test_the_last_item_comes_before_the_end() -> None:
    slot: Latest[int] = Latest()
    slot.put(1)
    slot.end()
    assert slot.get(0) == 1
    with pytest.raises(Ended):
        slot.get(0)


def test_an_error_is_raised_where_the_taker_stands_and_the_first_is_kept() -> None:
    slot: Latest[int] = Latest()
    slot.end(OSError("first"))
    slot.end(OSError("second"))
    for act in (lambda: slot.get(0), slot.check):
        with pytest.raises(OSError, match="first"):
            act()


def test_a_waiting_taker_is_woken() -> None:
    slot: Latest[int] = Latest()
    thread = threading.Timer(0.05, lambda: slot.put(7))
    thread.start()
    assert slot.get(5) == 7
    thread.join()


def test_everything_in_order() -> None:
    assert list(ahead(range(1000), 3)) == list(range(1000))
    assert workers() == []


def test_it_runs_ahead_but_no_further_than_asked() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    items = ahead(count(), 4)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(made) == 6  # one taken, four in the queue, one in the hand
    items.close()
    assert workers() == []


def test_the_error_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("gone")

    got = []
    with pytest.raises(OSError, match="gone"):
        for item in ahead(broken(), 2):
            got.append(item)
    assert got == [1, 2, 3]
    assert workers() == []


def test_closing_early_runs_the_finally_of_the_iterable() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    items = ahead(endless(), 2)
    next(items)
    items.close()
    assert closed.is_set()
    assert workers() == []


def test_a_worker_that_hangs_is_named_and_left(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def stuck() -> Iterator[int]:
        yield 1
        release.wait(30)

    items = ahead(stuck(), 1)
    next(items)
    started = time.monotonic()
    items.close()
    assert time.monotonic() - started < 5
    assert "left behind" in caplog.text
    release.set()


def test_an_iterable_that_cannot_even_begin_is_an_error_here() -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise OSError("no camera")

    with pytest.raises(OSError, match="no camera"):
        list(ahead(Broken(), 1))
