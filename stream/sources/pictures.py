"""Pictures as a source: a folder of them, in the order a person would number them, or a single one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from ...engines import Image, SourceError
from ..frame import Frame
from .base import PICTURES, About, Source, log


class Pictures(Source):
    """The pictures of a folder (not of the folders in it), or one picture file.

    They come sorted by name, numbers by their value ("2.jpg" before "10.jpg"), turned upright as their EXIF says. Each
    frame's source is its file's name; its time is its index, as if shown for a second. What cannot be read is skipped
    with a warning; where nothing can be read, the iteration raises `SourceError`.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises `SourceError` where there is no picture."""
        super().__init__()
        path = Path(path)
        self.name = path.name or str(path)
        try:
            if path.is_dir():
                self._paths = sorted((p for p in path.iterdir() if _is_picture(p)), key=lambda p: _natural(p.name))
            elif path.is_file():
                self._paths = [path]
            else:
                raise SourceError(f"{path}: no such file or folder")
        except PermissionError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        if not self._paths:
            raise SourceError(f"{path}: has no pictures ({', '.join(sorted(PICTURES))}); give another folder")
        self.about = About(time_base=Fraction(1), frames=len(self._paths))

    def _frames(self) -> Iterator[Frame]:
        for path in self._paths:
            image = _read(path)
            if image is not None:
                yield self._frame(image, float(self._count), self._count, Fraction(1), path.name)
        if not self._count:
            raise SourceError(f"{self.name}: not one picture of it can be read; give JPEG, PNG, BMP, WebP or TIFF")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts "2" before "10": the name cut into numbers and what is between; then the name itself."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.casefold())], name


def _read(path: Path) -> Image | None:
    """A picture as H x W x 3 BGR, upright; None, with a warning, where it cannot be read."""
    import cv2

    try:
        # From memory: OpenCV's own reader fails on names outside the system's code page.
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except OSError as error:
        log.warning("%s: skipped, cannot be opened (%s)", path, error.strerror)
        return None
    except cv2.error:  # empty, or more pixels than OpenCV takes
        image = None
    if image is None:
        log.warning("%s: skipped, it is no picture that can be read", path)
        return None
    return np.asarray(image, np.uint8)
