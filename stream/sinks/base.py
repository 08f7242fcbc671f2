"""The contract of everything results go to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

from ...engines import Image
from ..frame import Result

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
