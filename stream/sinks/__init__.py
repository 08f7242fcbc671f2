"""Where results go, and the door to the files among them: `open_sink`."""

from __future__ import annotations

from pathlib import Path

from ...engines import SinkError
from ..sources import Source
from .base import Sink

__all__ = ["Sink", "open_sink"]


def open_sink(path: str | Path, like: Source | None = None) -> Sink:
    """Open an output file by its ending: .mp4 (video) or .jsonl (results).

    like: the source whose audio and other streams are copied and whose times, aspect and colors are kept.
    Raises `SinkError` where the folder is not there or the ending is not known.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise SinkError(f"{path}: the folder {path.parent} is not there; make it first")
    if like is not None and like.about.path is not None and path.exists() and path.samefile(like.about.path):
        raise SinkError(f"{path}: is the source itself; choose another name")
    if path.suffix == ".mp4":
        from .mp4 import Mp4

        return Mp4(path, like)
    if path.suffix == ".jsonl":
        from .jsonl import JsonLines

        return JsonLines(path)
    raise SinkError(f"{path}: cannot write {path.suffix or 'a file without an ending'}; use .mp4 or .jsonl")
