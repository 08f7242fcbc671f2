"""Frames in, the tensor a CLIP image tower takes out: the reference every backend is held to.

CLIP prepares pictures with PIL: antialiased bicubic resize of the shorter edge, center crop, scale to 0..1, subtract
the mean, divide by the deviation. PIL resizes columns first, rounds to 8 bits, then rows, and rounds again. This module
does the same arithmetic as two banded matrix products, and stays within one 8-bit level of PIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .card import Filter, ModelCard, Resize
from .errors import ImageError

Image = NDArray[np.uint8]  # H x W x 3, BGR
Vectors = NDArray[np.float32]  # n x dim, unit rows
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are one past the last

# OpenBLAS keeps a product of m*n*k up to 2**18 in the calling thread (interface/gemm.c, SMP_THRESHOLD_MIN x
# GEMM_MULTITHREAD_THRESHOLD). Beside an encoder that fills every core, a pool of BLAS threads waits for its slowest
# member and costs ten times the work itself; products of this size are also what stays in the cache.
_ONE_THREAD = 2**18
FIXED = 22  # bits after the point of PIL's weights (PRECISION_BITS in Resample.c)
_BLOCK = 5  # outputs per product: wider blocks multiply more zeros of the band


def check_image(image: object) -> Image:
    """Return `image` if it is H x W x 3 uint8 with H, W >= 1, else raise `ImageError`."""
    if not isinstance(image, np.ndarray):
        raise ImageError(f"an image must be a numpy array H x W x 3 uint8 (BGR), not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"an image must be H x W x 3 uint8 (BGR), not {' x '.join(map(str, image.shape))} {image.dtype}; "
            "convert it first (cv2.cvtColor)"
        )
    return image


def prepare(images: Sequence[Image], card: ModelCard) -> NDArray[np.float32]:
    """Turn BGR pictures of any sizes into RGB `pixel_values`, float32 N x 3 x S x S, as CLIP does.

    `card.resize` chooses what happens to a frame that is not square: "crop" scales the shorter edge to S and keeps the
    center (CLIP's own); "squash" scales both edges to S; "pad" scales the longer edge to S and fills with the mean.
    Raises `ImageError` for anything but H x W x 3 uint8.
    """
    size = card.size
    std = np.asarray(card.std, np.float32)
    gain = (1 / (255 * std))[:, None, None]  # RGB
    shift = (-np.asarray(card.mean, np.float32) / std)[:, None, None]
    out = np.zeros((len(images), 3, size, size), np.float32)  # the mean normalizes to 0, so "pad" is done already
    for i, image in enumerate(images):
        check_image(image)
        plan = _plan(image.shape[0], image.shape[1], size, card.resize, card.filter)
        pixels = _resize(image, plan)  # h x w x 3 RGB, 0..255
        h, w = pixels.shape[:2]
        target = out[i, :, plan.top : plan.top + h, plan.left : plan.left + w]
        np.multiply(pixels.transpose(2, 0, 1), gain, out=target)
        target += shift
    return out


def seen(height: int, width: int, card: ModelCard) -> Box:
    """The part of a `height` x `width` frame that the model sees, in pixels of the frame."""
    if card.resize != "crop":
        return 0, 0, width, height
    edge = min(height, width)
    left, top = (width - edge) // 2, (height - edge) // 2
    return left, top, left + edge, top + edge


class _Band(NamedTuple):
    """Outputs start..stop are `kernel` times inputs lo..hi."""

    start: int
    stop: int
    lo: int
    hi: int
    kernel: NDArray[np.float32]


class _Plan(NamedTuple):
    columns: tuple[_Band, ...]  # kernel: 3 * inputs (BGR) x 3 * outputs (RGB)
    rows: tuple[_Band, ...]  # kernel: outputs x inputs
    top: int  # where the result lies in the S x S picture
    left: int


class Taps(NamedTuple):
    """One output of a resize: inputs lo, lo + 1 ... times these weights, in PIL's fixed point of 22 bits (int64)."""

    lo: int
    weights: NDArray[np.int64]


class Geometry(NamedTuple):
    """How a frame becomes the S x S picture: its rows and columns in terms of the frame's, and where they lie in it."""

    rows: tuple[Taps, ...]
    columns: tuple[Taps, ...]
    top: int
    left: int


def geometry(height: int, width: int, size: int, resize: Resize, filter: Filter) -> Geometry:
    """What CLIP's preparation does to a `height` x `width` frame, as PIL's Resample.c computes it."""
    if resize == "squash":
        h = w = size
    else:
        # int(), not round(): torchvision's Resize, which CLIP uses, truncates the longer edge.
        short = (height <= width) == (resize == "crop")
        h, w = (size, int(size * width / height)) if short else (int(size * height / width), size)
        h, w = max(h, 1), max(w, 1)
    taken_h, taken_w = min(h, size), min(w, size)
    rows = _taps(height, h, round((h - taken_h) / 2), taken_h, filter)
    columns = _taps(width, w, round((w - taken_w) / 2), taken_w, filter)
    return Geometry(rows, columns, (size - taken_h) // 2, (size - taken_w) // 2)


def _taps(n_in: int, n_out: int, first: int, count: int, filter: Filter) -> tuple[Taps, ...]:
    """Outputs first..first+count of a resize from `n_in` to `n_out`."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)  # the filter widens when shrinking: that is the antialiasing
    support = (2.0 if filter == "bicubic" else 1.0) * stretch
    kernel = _cubic if filter == "bicubic" else _triangle
    taps = []
    for o in range(first, first + count):
        center = (o + 0.5) * scale
        lo = max(int(center - support + 0.5), 0)
        hi = min(int(center + support + 0.5), n_in)
        weights = kernel((np.arange(lo, hi) - center + 0.5) / stretch)
        taps.append(Taps(lo, np.rint(weights / weights.sum() * 2**FIXED).astype(np.int64)))
    return tuple(taps)


@lru_cache(maxsize=16)
def _plan(height: int, width: int, size: int, resize: Resize, filter: Filter) -> _Plan:
    rows, columns, top, left = geometry(height, width, size, resize, filter)
    swap = np.eye(3, dtype=np.float32)[::-1]  # BGR to RGB costs nothing inside the product
    wide = tuple(b._replace(kernel=np.ascontiguousarray(np.kron(b.kernel.T, swap))) for b in _bands(columns))
    return _Plan(wide, _bands(rows), top, left)


def _bands(taps: Sequence[Taps]) -> tuple[_Band, ...]:
    bands = []
    for start in range(0, len(taps), _BLOCK):
        block = taps[start : start + _BLOCK]
        lo, hi = min(t.lo for t in block), max(t.lo + len(t.weights) for t in block)
        dense = np.zeros((len(block), hi - lo), np.float32)
        for row, tap in zip(dense, block, strict=True):
            # PIL's fixed-point weights decide most exact halves the same way as PIL
            row[tap.lo - lo : tap.lo - lo + len(tap.weights)] = tap.weights / 2**FIXED
        bands.append(_Band(start, start + len(block), lo, hi, dense))
    return tuple(bands)


def _cubic(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Keys' cubic convolution with a = -0.5, PIL's BICUBIC."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _triangle(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return np.where(np.abs(x) < 1, 1 - np.abs(x), 0.0)


def _resize(image: Image, plan: _Plan) -> NDArray[np.float32]:
    """H x W x 3 uint8 BGR -> h x w x 3 float32 RGB with whole values 0..255."""
    x0, x1 = plan.columns[0].lo, max(b.hi for b in plan.columns)
    y0, y1 = plan.rows[0].lo, max(b.hi for b in plan.rows)
    w, h = plan.columns[-1].stop, plan.rows[-1].stop
    mid = np.empty((y1 - y0, 3 * w), np.float32)
    step = max(1, _ONE_THREAD // max(b.kernel.size for b in plan.columns))
    for y in range(y0, y1, step):
        strip = image[y : min(y + step, y1), x0:x1].astype(np.float32)
        strip = strip.reshape(len(strip), -1)  # rows x (column, BGR)
        out = mid[y - y0 : y - y0 + len(strip)]
        for start, stop, lo, hi, kernel in plan.columns:
            np.matmul(strip[:, 3 * (lo - x0) : 3 * (hi - x0)], kernel, out=out[:, 3 * start : 3 * stop])
    _to_levels(mid)
    result = np.empty((h, 3 * w), np.float32)
    for start, stop, lo, hi, kernel in plan.rows:
        np.matmul(kernel, mid[lo - y0 : hi - y0], out=result[start:stop])
    return _to_levels(result).reshape(h, w, 3)


def _to_levels(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round half up, as PIL's fixed point does, and clip to 0..255, in place."""
    values += 0.5
    np.floor(values, out=values)
    return np.clip(values, 0, 255, out=values)
