"""The source `demo`: colored cards pass before a camera that is not there, and what they are is known."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from ...engines.stand_in import COLORS
from ..frame import Frame
from .base import About, Source

_SIZE = (1280, 720)
_RATE = 30
_EACH = 2.0  # seconds a card takes to pass


class Demo(Source):
    """1280 x 720 at 30 fps: one card at a time, tilted, unevenly lit, over a gray room; `truth` tells its color."""

    def __init__(self, seconds: float = 22.0) -> None:
        super().__init__()
        self.name = "demo"
        self.rate = Fraction(_RATE)
        self._total = int(seconds * _RATE)
        self.about = About(size=_SIZE, frames=self._total, time_base=Fraction(1, _RATE))
        self._names = list(COLORS)
        width, height = _SIZE
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        light = 105 + 25 * np.sin(x / 260) - 30 * (y / height)
        light -= 18 * (np.abs(y - 0.78 * height) < 3) + 12 * (y > 0.78 * height)  # the edge of a table
        grain = np.random.default_rng(7).normal(0, 3, (height, width)).astype(np.float32)
        self._room = np.repeat((light + grain).clip(60, 190).astype(np.uint8)[:, :, None], 3, axis=2)

    def truth(self, frame: Frame) -> str:
        """The label of the card in `frame`."""
        return f"{self._names[int(frame.time / _EACH) % len(self._names)]} card"

    def _frames(self) -> Iterator[Frame]:
        import cv2

        width, height = _SIZE
        for k in range(self._total):
            t = k / _RATE
            which, phase = divmod(t / _EACH, 1.0)
            color = 255 * np.array(COLORS[self._names[int(which) % len(self._names)]][::-1])
            image = self._room.copy()
            center = (width * (0.38 + 0.24 * phase), height * (0.5 + 0.06 * np.sin(6.28 * phase)))
            angle = 25 * np.sin(3.1 * t)
            corners = cv2.boxPoints((center, (230 + 60 * np.sin(t), 330), angle))
            shadow = (corners + np.array([14, 18])).astype(np.int32)
            under = image.copy()
            cv2.fillConvexPoly(under, shadow, (40, 40, 40), cv2.LINE_AA)
            image = cv2.addWeighted(image, 0.55, under, 0.45, 0)
            dim = 0.93 + 0.07 * np.sin(2 * t)  # the light is not steady
            cv2.fillConvexPoly(image, corners.astype(np.int32), tuple(dim * color), cv2.LINE_AA)
            yield self._frame(image, t, k, Fraction(1, _RATE))
