"""The contract of everything frames come from."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ...engines import Image
from ..frame import Frame

log = logging.getLogger("clipsight")
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
S = TypeVar("S", bound="Source")


@dataclass(frozen=True)
class About:
    """What a source says of its pictures, for a sink that must match it.

    size: width, height of a frame as handed out, None where it is not known before the first. time_base: unit of
    `Frame.pts`. aspect: width of a pixel over its height. rotation: degrees clockwise already applied to the frames.
    color: the container's color space ("bt709", "bt601"), None where it does not say. frames: how many there will be,
    where that is known. path: the file, where it is one.
    """

    size: tuple[int, int] | None = None
    time_base: Fraction | None = None
    aspect: Fraction = Fraction(1)
    rotation: int = 0
    color: str | None = None
    frames: int | None = None
    path: Path | None = None


class Source(ABC):
    """An iterable of `Frame`s, to be gone through once; a context manager.

    name: what to call it in messages. rate: frames a second where it is known; it never steers what is dropped.
    live: True where frames come in their own time and cannot wait (a camera). about: see `About`.
    ended: True once it has nothing more to give by itself, not because it was closed.
    Iterating raises `SourceError` when the source fails; the end of a file is the end of the iteration.
    `close()` may be called from any thread, also while another one iterates: the iteration then ends.
    """

    name: str = ""
    rate: Fraction | None = None
    live: bool = False
    about: About = About()
    ended: bool = False

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._reading = threading.Lock()  # held while a frame is read, so that close() never frees what is in use
        self._released = False
        self._left = False  # in a driver that does not answer
        self._count = 0

    def __iter__(self) -> Iterator[Frame]:
        frames = self._frames()
        while True:
            frame = None
            with self._reading:
                if self._closing.is_set():
                    return
                try:
                    frame = next(frames, None)
                finally:
                    self.ended = frame is None and not self._closing.is_set()
            if frame is None:
                return
            yield frame

    @abstractmethod
    def _frames(self) -> Iterator[Frame]:
        """The one hook: the frames, made by `_frame`. Long waits must be on `self._closing`."""

    def _frame(
        self, image: Image, time_s: float, pts: int | None = None, time_base: Fraction | None = None, name: str = ""
    ) -> Frame:
        """The next frame: numbered, stamped with its arrival, its image made read-only."""
        image.flags.writeable = False
        frame = Frame(image, self._count, time_s, time.perf_counter(), pts, time_base, name or self.name)
        self._count += 1
        return frame

    def _wait_until(self, due: float) -> bool:
        """Sleep until `time.perf_counter()` is `due`; False when the source is closed meanwhile.

        `time.sleep`, not a wait with a time limit: beside an encoder that fills every core, Linux 6.18 ends the latter
        3 ms late in one of ten cases, and the former never.
        """
        while (left := due - time.perf_counter()) > 0:
            if self._closing.is_set():
                return False
            time.sleep(min(left, 0.1))
        return not self._closing.is_set()

    def close(self) -> None:
        """End the iteration and free what the source holds; harmless when repeated.

        A driver that does not answer within 2 s is named in the log and left behind.
        """
        self._closing.set()
        if self._left:
            return
        if not self._reading.acquire(timeout=2):
            self._left = True
            log.warning("%s: does not answer and is left behind", self.name)
            return
        try:
            if not self._released:
                self._released = True
                self._release()
        finally:
            self._reading.release()

    def _release(self) -> None:  # noqa: B027  a source may have nothing to free
        """Free what the source holds; called once."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
