"""A window on the screen, through OpenCV."""

from __future__ import annotations

import contextlib
import os
import sys

from ...engines import Image, SinkError
from ..frame import Result
from .base import Sink

_QUIT = {ord("q"), 27}  # 27: Esc


class Window(Sink):
    """Shows each picture; `finished` once the user pressed q or Esc or closed it.

    Must be used in the main thread (macOS demands it). Raises `SinkError` where there is no display or OpenCV was built
    without windows.
    """

    def __init__(self, title: str = "clipsight") -> None:
        # Qt ends the whole process where there is no display, so look before it does.
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise SinkError("there is no display here; use --save OUT.mp4 or --results OUT.jsonl")
        import cv2

        self._cv2 = cv2
        self._title = title
        # The Qt inside opencv-python warns five times of fonts that it needs for toolbars only.
        loud = "QT_LOGGING_RULES" not in os.environ
        if loud:
            os.environ["QT_LOGGING_RULES"] = "default.warning=false"
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise SinkError("this OpenCV has no windows; run: pip install opencv-python, or use --no-window") from error
        finally:
            if loud:  # Qt has read it; the rest of the process is not ours
                del os.environ["QT_LOGGING_RULES"]
        self._sized = self._closed = False

    def write(self, image: Image, result: Result) -> None:  # noqa: ARG002
        """Show the picture and look at the keys; nothing once the user closed it. Raises `SinkError` after `close()`."""
        if self._closed:
            raise SinkError("the window is closed; open another")
        if self.finished:
            return  # imshow would open it again
        if not self._sized:
            self._cv2.resizeWindow(self._title, min(image.shape[1], 1280), min(image.shape[0], 720))
            self._sized = True
        self._cv2.imshow(self._title, image)
        key = self._cv2.pollKey() & 0xFF
        try:
            closed = self._cv2.getWindowProperty(self._title, self._cv2.WND_PROP_VISIBLE) < 1
        except self._cv2.error:  # Qt says so once its last window is gone
            closed = True
        self.finished = self.finished or closed or key in _QUIT

    def close(self) -> None:
        """Close the window; harmless when the user has."""
        self._closed = True
        with contextlib.suppress(self._cv2.error):
            self._cv2.destroyWindow(self._title)
            self._cv2.pollKey()  # lets the toolkit carry it out
