"""The contract of everything results go to, and the door to the files among them: `open_sink`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ..engines import Image, SinkError
from .frame import Result
from .source import Source

K = TypeVar("K", bound="Sink")


class Sink(ABC):
    """Somewhere results go; a context manager.

    finished: True once it wants no more (its window was closed). `write` raises `SinkError` when it cannot go on; what
    was written before stays.
    """

    finished: bool = False

    @abstractmethod
    def write(self, image: Image, result: Result) -> None:
        """Take one picture (H x W x 3 uint8 BGR, drawn upon or not; not kept after the call) and its result."""

    @abstractmethod
    def close(self) -> None:
        """Finish and free; what was written is complete. Harmless when repeated."""

    def __enter__(self: K) -> K:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


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
