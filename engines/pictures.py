"""A folder in, the pictures in it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import ModelError
from .preparing import Image


def pictures_in(folder: Path) -> list[Image]:
    """Every picture at and below `folder`, by name; raises `ModelError` where there are none."""
    import cv2

    found = [cv2.imread(str(path)) for path in sorted(folder.rglob("*")) if path.is_file()]
    pictures: list[Image] = [np.asarray(image, np.uint8) for image in found if image is not None]
    if not pictures:
        raise ModelError(f"{folder}: no picture in it can be read; give a folder of JPEG or PNG files")
    return pictures
