"""The two ways one thread hands things to another here: `Latest` (newest wins) and `ahead` (all, in order)."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
log = logging.getLogger("clipsight")

_POLL = 0.1  # seconds; every wait ends by then to look around, so Ctrl-C and close() are never held up
_JOIN = 2.0  # seconds a worker is given to end


class Ended(Exception):
    """The other side has put its last item."""


class Latest(Generic[T]):
    """One slot between two threads: the newest item wins, `put` never waits.

    `end(error)` says that nothing more comes; with an error, that error is raised where the taker stands.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._fresh = False
        self._ended = False
        self._error: BaseException | None = None
        self._raised_at: TracebackType | None = None

    def put(self, item: T) -> bool:
        """Offer `item`; True when it replaced one that nobody had taken."""
        with self._changed:
            replaced, self._item, self._fresh = self._fresh, item, True
            self._changed.notify_all()
        return replaced

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes; the first error given is kept."""
        with self._changed:
            self._ended = True
            if self._error is None and error is not None:
                self._error, self._raised_at = error, error.__traceback__
            self._changed.notify_all()

    def get(self, timeout: float) -> T:
        """Take the newest item not yet taken, waiting up to `timeout` seconds.

        Raises `TimeoutError` when none came, the other side's error when it failed, `Ended` after its last item.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._fresh or self._ended, timeout)
            self.check()
            if self._fresh:
                self._fresh = False
                assert self._item is not None
                return self._item
            if self._ended:
                raise Ended
            raise TimeoutError(f"nothing came within {timeout} s")

    def take(self) -> bool:
        """Count the newest item as taken, without waiting; False when it was already."""
        with self._changed:
            fresh, self._fresh = self._fresh, False
        return fresh

    def check(self) -> None:
        """Raise the other side's error, where there is one."""
        if self._error is not None:
            # raised again and again, it would carry every place where it ever was
            raise self._error.with_traceback(self._raised_at)

    def peek(self) -> T | None:
        """The newest item, taken or not, without waiting; None before the first."""
        return self._item


def ahead(iterable: Iterable[T], n: int) -> Generator[T, None, None]:
    """Iterate in a thread of its own, up to `n` items ahead; every item comes out, in order.

    An error of the iterable is raised here, after the items before it. When the generator is closed the thread ends; one
    that does not within 2 s is named in the log and left (it is a daemon).
    """
    items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(n)
    stop = threading.Event()

    def offer(item: T | None, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                items.put((item, error), timeout=_POLL)
            except queue.Full:
                continue
            return

    def work() -> None:
        iterator: Iterator[T] | None = None
        try:
            iterator = iter(iterable)
            for item in iterator:
                offer(item)
                if stop.is_set():
                    return
            offer(None, Ended())
        except BaseException as error:
            offer(None, error)
        finally:
            close = getattr(iterator, "close", None)
            if close:
                close()  # a generator's own finally runs here, in the thread that ran the generator

    thread = threading.Thread(target=work, name="clipsight-ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error = items.get(timeout=_POLL)
            except queue.Empty:
                continue
            if isinstance(error, Ended):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None only beside an error
    finally:
        stop.set()
        join(thread)


def join(thread: threading.Thread) -> bool:
    """Wait up to 2 s for a worker; name it in the log where it does not end."""
    thread.join(_JOIN)
    if thread.is_alive():
        log.warning("%s: does not answer and is left behind", thread.name)
    return not thread.is_alive()
