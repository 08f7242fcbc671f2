"""A camera that is simulated as one behaves, with the time of each picture painted into it.

What a loop shows can then be dated from the picture alone: `read_clock` of what is on the screen, against the clock on
the wall. Nothing on the way has to be trusted with a time stamp.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from ...engines import Image
from ..frame import Frame
from .base import About, Source

_BITS, _ROWS, _CELL = 48, 2, 8  # microseconds for nine years, in two rows of squares 8 pixels wide
_WIDTH, _HEIGHT = _BITS // _ROWS * _CELL, _ROWS * _CELL


def paint_clock(image: Image, at: float) -> None:
    """Write `at` (seconds) into the lower right corner: 48 black and white squares, 192 x 16 pixels."""
    bits = ((int(at * 1e6) >> np.arange(_BITS)) & 1).reshape(_ROWS, -1).astype(np.uint8)
    image[-_HEIGHT:, -_WIDTH:] = (255 * np.kron(bits, np.ones((_CELL, _CELL), np.uint8)))[:, :, None]


def read_clock(image: Image) -> float:
    """The seconds that `paint_clock` wrote into `image`, exact to a microsecond."""
    squares = image[-_HEIGHT:, -_WIDTH:, 1][_CELL // 2 :: _CELL, _CELL // 2 :: _CELL] > 127
    return int(np.sum(squares.ravel().astype(np.int64) << np.arange(_BITS))) / 1e6


class SimulatedCamera(Source):
    """Takes a picture every 1/rate s, whoever looks; its driver queues four and then drops the oldest.

    A loop that is too slow therefore sees old pictures, as with a real camera. size: width, height. seconds: when it ends.
    """

    live = True

    def __init__(
        self, size: tuple[int, int] = (1280, 720), rate: Fraction | int = 30, *, seconds: float, queue: int = 4
    ) -> None:
        super().__init__()
        self.name = "simulated camera"
        self.rate = Fraction(rate)
        self.about = About(size=size)
        self._queue = queue
        self._period = float(1 / self.rate)
        self._last = int(seconds * self.rate)
        width, height = size
        self._pan = 256
        # A wide scene that the camera pans over: smooth shapes and sensor noise, so that an encoder has work to do.
        y, x = np.mgrid[0:height, 0 : width + self._pan].astype(np.float32)
        scene = np.stack([np.sin(x / (40 + 30 * c)) * np.cos(y / (60 - 15 * c)) for c in range(3)], axis=2)
        noise = np.random.default_rng(0).normal(0, 6, scene.shape)
        self._scene = np.clip(128 + 90 * scene + noise, 0, 255).astype(np.uint8)

    def _frames(self) -> Iterator[Frame]:
        width = self._scene.shape[1] - self._pan
        period = self._period
        started = time.perf_counter()
        k = 0
        while k < self._last:
            newest = int((time.perf_counter() - started) / period)
            k = max(k, newest - self._queue + 1)  # older ones were overwritten in the driver
            taken = started + k * period
            if not self._wait_until(taken):
                return
            left = k % self._pan
            image = self._scene[:, left : left + width].copy()
            paint_clock(image, taken)
            yield self._frame(image, k * period)
            k += 1
