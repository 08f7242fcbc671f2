"""A bank and pictures of nothing on its list in, the same bank out, which names few of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engines import LabelError, Vectors
from .bank import LabelBank


class Calibrated(NamedTuple):
    """bank: with its threshold (or margin) set. named: share of other pictures of nothing that get a name, `of` so many."""

    bank: LabelBank
    named: float
    of: int


def calibrate(bank: LabelBank, nothing: Vectors, *, rate: float = 0.05) -> Calibrated:
    """Set the bank's margin over its background prompts, or its threshold where it has none, so that `rate` of these are named.

    nothing: float32 n x dim unit rows of pictures that show nothing on the list. Every second one sets the number, the others
    say what it is worth. It holds for this list: more labels find more to be like. Raises `LabelError` for fewer than 20.
    """
    if len(nothing) < 20:
        raise LabelError(f"{len(nothing)} pictures of nothing on the list are too few to calibrate on; give 20 or more")
    values = _values(bank, nothing[::2])
    least = float(np.quantile(values, 1 - rate, method="higher"))
    if bank.background is None:
        made = dataclasses.replace(bank, threshold=float(np.nextafter(np.float32(least), np.float32(2))))
    else:
        made = dataclasses.replace(bank, threshold=None, margin=least)
    others = made.score(nothing[1::2])
    return Calibrated(made, float(np.mean([scores.label is not None for scores in others])), len(others))


def kept(bank: LabelBank, vectors: Vectors, truth: Sequence[str]) -> tuple[int, int]:
    """Pictures of labels on the list: of how many the best label is right, and how many of those keep their name."""
    right = [s for s, name in zip(bank.score(vectors), truth, strict=True) if bank.names[int(np.argmax(s.values))] == name]
    return len(right), sum(scores.label is not None for scores in right)


def _values(bank: LabelBank, vectors: Vectors) -> NDArray[np.float32]:
    """What is compared with the margin or threshold: of each picture its best label's cosine, above the background's."""
    return np.array([s.values.max() - (s.nothing or 0.0) for s in bank.score(vectors)], np.float32)
