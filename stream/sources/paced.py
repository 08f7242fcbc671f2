"""A file played as a camera would play it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from ..frame import Frame
from .base import Source


class Paced(Source):
    """Hands out each frame of `source` when its time has come, and never early; a late frame comes at once.

    Frames are stamped anew with their arrival. Whether a late frame is shown or dropped is for whoever takes them.
    """

    live = True

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self.name, self.rate, self.about = source.name, source.rate, source.about

    def _frames(self) -> Iterator[Frame]:
        started: float | None = None
        for frame in self._source:
            if started is None:
                started = time.perf_counter() - frame.time
            if not self._wait_until(started + frame.time):
                return
            yield dataclasses.replace(frame, arrived=time.perf_counter())

    def _release(self) -> None:
        self._source.close()
