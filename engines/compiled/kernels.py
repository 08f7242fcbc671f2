"""`prepare` on the GPU: the tables and the launches of prepare.cu."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..card import Filter, ModelCard, Resize
from ..preparing import Taps, geometry

PTX = Path(__file__).with_name("prepare.ptx")
_BLOCK = (32, 8, 1)  # threads: a warp walks along a row


class Table(NamedTuple):
    """lo: int32 n, the first input of each output. weights: int32 n x taps, in fixed point of 22 bits."""

    lo: NDArray[np.int32]
    weights: NDArray[np.int32]


class Region(NamedTuple):
    """The part of a frame that has to go up, `frame[y0:y1, x0:x1]`, and how it becomes the S x S picture."""

    y0: int
    y1: int
    x0: int
    x1: int
    rows: Table
    columns: Table
    top: int
    left: int

    @property
    def height(self) -> int:
        """Rows that go up."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns that go up."""
        return self.x1 - self.x0


@lru_cache(maxsize=16)
def region(height: int, width: int, size: int, resize: Resize, filter: Filter) -> Region:
    """What of a `height` x `width` frame goes up, and the tables for it; nothing that the model does not see does."""
    taps = geometry(height, width, size, resize, filter)
    y0, y1, rows = _table(taps.rows)
    x0, x1, columns = _table(taps.columns)
    return Region(y0, y1, x0, x1, rows, columns, taps.top, taps.left)


def _table(taps: tuple[Taps, ...]) -> tuple[int, int, Table]:
    """First and last + 1 input that is read, and the table counted from the first."""
    first, last = min(t.lo for t in taps), max(t.lo + len(t.weights) for t in taps)
    most = max(len(t.weights) for t in taps)
    table = Table(np.zeros(len(taps), np.int32), np.zeros((len(taps), most), np.int32))
    for o, (lo, weights) in enumerate(taps):
        start = min(lo, last - most)  # weights that are not used must not reach past the last input
        table.lo[o] = start - first
        table.weights[o, lo - start : lo - start + len(weights)] = weights
    return first, last, table


def gain_shift(card: ModelCard) -> NDArray[np.float32]:
    """float32 6: what a level 0..255 of R, G and B is multiplied with, and what is added, as `prepare` does it."""
    mean, std = np.asarray(card.mean, np.float32), np.asarray(card.std, np.float32)
    return np.concatenate([1 / (255 * std), -mean / std]).astype(np.float32)


class Kernels:
    """prepare.cu in the context that is current; the driver compiles it for its GPU when it is loaded."""

    def __init__(self, cuda: Any) -> None:
        # "P" is a pointer, "i" a 32-bit whole number, in the order of prepare.cu
        self._module = cuda.module_from_buffer(PTX.read_bytes())
        self._columns = self._module.get_function("columns").prepare("PiiPPiiP")
        self._rows = self._module.get_function("rows").prepare("PiiPPiiiiiPP")

    def columns(self, stream: Any, frames: int, part: Region, lo: int, weights: int, mid: int, n: int) -> None:
        """Enqueue: n x height x width x 3 BGR at `frames` -> n x height x out_width x 3 RGB at `mid`, all uint8."""
        count, taps = part.columns.weights.shape
        grid = _grid(count, part.height, n)
        self._columns.prepared_async_call(grid, _BLOCK, stream, frames, part.height, part.width, lo, weights, taps, count, mid)

    def rows(
        self, stream: Any, mid: int, part: Region, lo: int, weights: int, size: int, scale: int, pixels: int, n: int
    ) -> None:
        """Enqueue: what `columns` left at `mid` -> float32 n x 3 x size x size RGB at `pixels`; `scale`: `gain_shift`."""
        count, taps = part.rows.weights.shape
        grid = _grid(size, size, n)
        wide = len(part.columns.lo)
        self._rows.prepared_async_call(
            grid, _BLOCK, stream, mid, part.height, wide, lo, weights, taps, count, size, part.top, part.left, scale, pixels
        )


def _grid(width: int, height: int, n: int) -> tuple[int, int, int]:
    return -(-width // _BLOCK[0]), -(-height // _BLOCK[1]), n
