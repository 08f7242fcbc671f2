"""Cameras of this machine, through OpenCV."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from fractions import Fraction

from ...engines import SourceError
from ..frame import Frame
from .base import About, Source


class Camera(Source):
    """A camera by number, or by device path on Linux.

    size (width, height) and fps are wishes; `about.size` and `rate` say what the driver gives.
    Raises `SourceError` where there is no camera, and while iterating when it stops giving frames.
    """

    live = True

    def __init__(self, device: int | str, *, size: tuple[int, int] | None = None, fps: float | None = None) -> None:
        super().__init__()
        import cv2

        self.name = f"camera {device}" if isinstance(device, int) else device
        if isinstance(device, str) and not os.path.exists(device):
            raise SourceError(f"{device}: no such device; list what there is: ls /dev/video*")
        before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:  # OpenCV tries every driver it has and prints what each one says; the error below says it in one line
            self._capture = cv2.VideoCapture(device)
        finally:
            cv2.utils.logging.setLogLevel(before)
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(
                f"{self.name} cannot be opened: none is connected, another program uses it, or access is not allowed; "
                "give another number, a file, or demo"
            )
        if size is not None:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        if fps is not None:
            self._capture.set(cv2.CAP_PROP_FPS, fps)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a driver's queue is old frames
        got = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(got).limit_denominator(1001) if got > 0 else None
        width, height = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self.about = About(size=(width, height))

    def _frames(self) -> Iterator[Frame]:
        started = time.perf_counter()
        while True:
            ok, image = self._capture.read()
            if not ok:
                raise SourceError(f"{self.name} stopped giving frames; connect it again and start anew")
            yield self._frame(image, time.perf_counter() - started)

    def _release(self) -> None:
        self._capture.release()
