"""Where frames come from, and the door to it: `open_source`."""

from __future__ import annotations

from pathlib import Path

from ...engines import SourceError
from .base import PICTURES, About, Source

__all__ = ["About", "Source", "open_source"]


def open_source(source: str | Path, *, size: tuple[int, int] | None = None, fps: float | None = None) -> Source:
    """Open what the command line names: "0" (a camera's number), /dev/videoN, a video file, a picture, a folder of
    pictures, or "demo".

    size (width, height) and fps are wishes for a camera. Raises `SourceError` where there is no such thing.
    """
    text = str(source)
    path = Path(text)
    if text == "demo":
        from .demo import Demo

        return Demo()
    if text.isdecimal() or text.startswith("/dev/video"):
        from .camera import Camera

        return Camera(int(text) if text.isdecimal() else text, size=size, fps=fps)
    if "://" in text:
        raise SourceError("network sources are not built yet; record to a file, or give a camera's number")
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    if path.is_dir() or path.suffix.lower() in PICTURES:
        from .pictures import Pictures

        return Pictures(path)
    from .video import Video

    return Video(path)
