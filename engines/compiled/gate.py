"""Is a plan still the model? Its vectors beside ONNX Runtime's in float32, on pictures, before the plan is kept.

TensorRT has given wrong answers for graphs it accepted without a word (TensorRT issues 4328, 4333, 4837), so no plan is used
on its word. Two figures decide. The centered cosine: the mean vector is taken away first, because CLIP's vectors all lie in
one corner, where plain cosines of even wrong answers are high. And label agreement: how often the best of 128 labels is the
same, which is what a user sees; a label that the reference finds as good as its best, within a thousandth, counts as the same.
Each picture is encoded by itself and in a batch, because a plan has kernels of its own for either, and the worse one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..card import ModelCard
from ..errors import BackendError
from ..preparing import Image, Vectors

LABELS = 128  # directions in the space of the pictures, which stand for labels
TIE = 1e-3  # cosines nearer than this are as good as each other: which comes first is chance, in any precision
BANKS = 8  # sets of them: 64 pictures are named 512 times
# Least centered cosine of any picture, and least share of equal names. bf16 has 3 bits fewer than fp16.
LIMITS = {"fp32": (0.9999, 0.995), "fp16": (0.99, 0.99), "bf16": (0.95, 0.95)}


class Refused(BackendError):
    """A plan that is not the model."""


class Figures(NamedTuple):
    """cosine: least centered cosine of any picture. agreement: share of equal best labels. pictures: how many."""

    cosine: float
    agreement: float
    pictures: int


def check(
    encode: Callable[[Sequence[Image]], Vectors],
    folder: Path,
    card: ModelCard,
    precision: str,
    own: Sequence[Image] = (),
    *,
    at_once: int = 32,
) -> Figures:
    """Compare `encode` with ONNX Runtime on the pictures rendered here and on the user's `own`; return the figures.

    Raises `BackendError` naming the figure that is below its limit for `precision`, `ModelError` where the folder has no
    image.onnx to compare with.
    """
    pictures = [*render(), *own]
    wanted = _reference(folder, card, pictures)
    ways = []
    for n in sorted({1, at_once}):
        given = np.concatenate([encode(pictures[i : i + n]) for i in range(0, len(pictures), n)])
        ways.append(compare(wanted, given))
    # min() would let a NaN pass that comes second
    figures = Figures(
        float(np.min([way.cosine for way in ways])), float(np.min([way.agreement for way in ways])), len(pictures)
    )
    least_cosine, least_agreement = LIMITS[precision]
    for name, figure, least in (
        ("centered cosine", figures.cosine, least_cosine),
        ("label agreement", figures.agreement, least_agreement),
    ):
        if not figure >= least:  # NaN fails too
            instead = "--engine onnx" if precision == "fp32" else "--precision fp32 or --engine onnx"
            raise Refused(
                f"the plan of {card.id} in {precision} is not the model: {name} to ONNX Runtime fp32 is {figure:.4f}, at least "
                f"{least} is needed; it was not kept; use {instead}"
            )
    return figures


def compare(wanted: Vectors, given: Vectors) -> Figures:
    """n x dim unit rows of the reference and of what is checked -> the figures."""
    mean = wanted.mean(0)
    a, b = wanted - mean, given - mean  # one mean for both, so that a shift of all counts as the error it is
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = float(((a * b).sum(1) / np.maximum(norms, 1e-12)).min()) if np.isfinite(given).all() else float("nan")
    rng = np.random.default_rng(0)
    same = 0.0
    for _ in range(BANKS):
        labels = rng.standard_normal((LABELS, len(a)), np.float32) @ a  # directions that the pictures differ in
        labels /= np.linalg.norm(labels, axis=1, keepdims=True)
        scores = a @ labels.T / np.linalg.norm(a, axis=1, keepdims=True)
        chosen = scores[np.arange(len(a)), (b @ labels.T).argmax(1)]
        same += float((chosen >= scores.max(1) - TIE).mean())
    return Figures(cosine, same / BANKS, len(wanted))


def render(n: int = 64, height: int = 270, width: int = 360) -> list[Image]:
    """`n` pictures that differ as photographs do, the same each time: light, waves, edges, and grain, BGR uint8."""
    rng = np.random.default_rng(20)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pictures = []
    for i in range(n):
        image = rng.uniform(30, 225, 3) + rng.uniform(-60, 60, 3) * (x[..., None] / width) + np.zeros((height, width, 3))
        for _ in range(3):
            angle, length = rng.uniform(0, np.pi), rng.uniform(6, 90)
            wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / length))
            image += (wave if i % 2 else np.sign(wave))[..., None] * rng.uniform(-45, 45, 3)
        for _ in range(int(rng.integers(1, 6))):
            cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(15, 110)
            image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, 3)
        image += rng.normal(0, rng.uniform(1, 15), image.shape)
        pictures.append(image.clip(0, 255).astype(np.uint8))
    return pictures


def _reference(folder: Path, card: ModelCard, pictures: Iterable[Image]) -> NDArray[np.float32]:
    from ..onnx_engine import OnnxEngine

    with OnnxEngine(folder, card, precision="fp32") as engine:
        # One by one: the processor gains nothing by batches, and a great one would not fit a small machine.
        return np.concatenate([engine.encode([picture]) for picture in pictures])
