"""Sources that need no device: `Feed`, which a host program pushes into, and `Frames`, for tests."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from ...engines import Image
from ...engines.preparing import check_image
from ..frame import Frame
from ..handoff import Ended, Latest
from .base import Source


class Feed(Source):
    """A camera that the host program plays: it pushes the frames it has anyway, the newest wins.

    feed = Feed()
    with live(feed, recognizer) as results:
        ...
        feed.put(image)  # in the host's own loop; never waits
        result = results.latest()
    """

    live = True

    def __init__(self, name: str = "feed") -> None:
        super().__init__()
        self.name = name
        self._slot: Latest[tuple[Image, float]] = Latest()
        self._started = time.perf_counter()

    def put(self, image: Image, time_s: float | None = None) -> None:
        """Offer one H x W x 3 uint8 BGR picture; it is copied, so the host may go on using its buffer.

        time_s: the host's own time in seconds, by default since the feed was made. Raises `ImageError` for another form.
        """
        taken = check_image(image).copy()
        self._slot.put((taken, time.perf_counter() - self._started if time_s is None else float(time_s)))

    def end(self) -> None:
        """Say that no more frames come; who iterates comes to an end."""
        self._slot.end()

    def _frames(self) -> Iterator[Frame]:
        while not self._closing.is_set():
            try:
                image, time_s = self._slot.get(0.1)
            except TimeoutError:
                continue
            except Ended:
                return
            yield self._frame(image, time_s)


class Frames(Source):
    """The pictures of a list, one after the other, at a steady `rate`: for tests without a camera or a file.

    fail: an error to raise after the last picture, as a source that breaks would.
    """

    def __init__(
        self, images: Iterable[Image], rate: Fraction | int = 30, *, name: str = "frames", fail: Exception | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.rate = self._rate = Fraction(rate)
        self._images = images
        self._fail = fail

    def _frames(self) -> Iterator[Frame]:
        rate = self._rate
        for i, image in enumerate(self._images):
            copy = np.array(check_image(image))  # the caller's own array stays writable
            yield self._frame(copy, float(i / rate), i, 1 / rate)
        if self._fail is not None:
            raise self._fail
