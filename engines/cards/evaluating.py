"""A model folder in, how well it knows the cards out: on seeds, cards and backgrounds that training never saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..base import Engine
from ..card import ModelCard
from ..figures import interval
from ..pictures import pictures_in
from ..preparing import Image, Vectors
from ..registry import open_engine, open_text
from ..text import prompt
from .scenes import EXAMINING, SIZE, Kinds, held_out, picture, trained
from .words import Card, all_cards

CALIBRATION, TEST = EXAMINING + 100, EXAMINING + 200  # seeds
RECALL = 0.95  # of the right names that threshold and margin keep
_KEPT = 0.955  # what they are set to, so that RECALL is not missed on other pictures by chance
_REACHED = 0.998  # of the right names that the threshold alone keeps
_BATCH = 16
_SHORT = ("red", "star"), ("blue", "circle"), ("green", "house"), ("black", "arrow"), ("pink", "heart")


@dataclass(frozen=True)
class Share:
    """So many of so many, and what was counted."""

    what: str
    hits: int
    of: int
    goal: float
    least: bool = True  # the goal is a lower bound

    @property
    def value(self) -> float:
        """The share, 0..1."""
        return self.hits / max(self.of, 1)

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.value >= self.goal if self.least else self.value <= self.goal

    def __str__(self) -> str:
        low, high = interval(self.hits, self.of)
        bound = "at least" if self.least else "at most"
        verdict = "met" if self.met else "MISSED"
        share = f"{self.value:6.1%} of {self.of:5}  (95 %: {low:.1%} to {high:.1%})"
        return f"{self.what:58} {share}  {bound} {self.goal:.0%}: {verdict}"


class Examined:
    """An open model and the vectors of all labels; a context manager."""

    def __init__(self, folder: Path, backend: str = "onnx") -> None:
        self.card = ModelCard.load(folder)
        self.engine: Engine = open_engine(folder, backend)
        text = open_text(folder)
        self.labels = text.encode([prompt(str(card)) for card in all_cards()])
        self.nothing = text.encode(self.card.background)  # no rows where the card has none
        pairs = sorted({(card.color, card.shape) for card in all_cards()})
        self.pairs = {pair: i for i, pair in enumerate(pairs)}
        self.pair_vectors = text.encode([prompt(" ".join(pair)) for pair in pairs])

    def __enter__(self) -> Examined:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.engine.close()

    def encode(self, images: Iterable[Image]) -> Vectors:
        """Pictures -> unit rows."""
        rows, part = [np.empty((0, self.card.dim), np.float32)], []
        for image in images:
            part.append(image)
            if len(part) == _BATCH:
                rows.append(self.engine.encode(part))
                part = []
        if part:
            rows.append(self.engine.encode(part))
        return np.concatenate(rows)

    def series(self, n: int, seed: int, cards: Kinds, backgrounds: Sequence[Image] | None = None) -> tuple[Vectors, list[Card]]:
        """Vectors of n pictures with a card each, and the cards."""
        truth: list[Card] = []

        def images() -> Iterable[Image]:
            for i in range(n):
                ground = backgrounds[i % len(backgrounds)] if backgrounds else None
                made = picture(seed, i, cards, empty=0, background=ground)
                assert made.card is not None
                truth.append(made.card)
                yield made.image

        return self.encode(images()), truth


def right(vectors: Vectors, labels: Vectors, truth: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the pictures are nearest to their own label."""
    hits: NDArray[np.bool_] = (vectors @ labels.T).argmax(1) == np.asarray(truth)
    return hits


def named(vectors: Vectors, labels: Vectors, nothing: Vectors, threshold: float | None, margin: float) -> NDArray[np.bool_]:
    """Which of the pictures get a name: the rule of `labels.Scores.label`."""
    best = (vectors @ labels.T).max(1)
    names: NDArray[np.bool_] = best - (vectors @ nothing.T).max(1, initial=-2.0) > margin
    return names if threshold is None else names & (best >= threshold)


def calibrate(model: Examined, n: int = 2000) -> tuple[float | None, float]:
    """The threshold and the margin that together keep `RECALL` of the right names, of "red star" as of "striped red star".

    The threshold is for what is like another label than those on the list; nearly every right name reaches it. The margin is
    for things in general, which are a little like some label and a little like nothing: at the same recall a threshold names
    far more photographs. None and 0 where no name is right.
    """
    vectors, truth = model.series(n, CALIBRATION, trained())
    order = {card: i for i, card in enumerate(all_cards())}
    ways = (
        (model.labels, [order[c] for c in truth]),
        (model.pair_vectors, [model.pairs[c.color, c.shape] for c in truth]),
    )
    found = []
    for labels, index in ways:
        hits = vectors[right(vectors, labels, index)]
        if not len(hits):
            return None, 0.0
        best = (hits @ labels.T).max(1)
        found.append((best, best - (hits @ model.nothing.T).max(1, initial=-2.0)))
    threshold = min(float(np.quantile(best, 1 - _REACHED)) for best, _ in found)
    least = []
    for best, above in found:
        reached = best >= threshold
        least.append(float(np.quantile(above[reached], max(1 - _KEPT / reached.mean(), 0))))
    return round(threshold, 4), round(max(min(least), 0.0), 4)


def photographs(folder: Path) -> list[Image]:
    """Every photograph below `folder`, its middle scaled to the model's input; raises `ModelError` where there is none."""
    import cv2

    def middle(image: Image) -> Image:
        edge = min(image.shape[:2])
        top, left = (image.shape[0] - edge) // 2, (image.shape[1] - edge) // 2
        return np.asarray(cv2.resize(image[top : top + edge, left : left + edge], (SIZE, SIZE), interpolation=cv2.INTER_AREA))

    return [middle(image) for image in pictures_in(folder)]


def evaluate(folder: Path, *, n: int = 2000, photos: Path | None = None, backend: str = "onnx") -> list[Share]:
    """How often the model in `folder` is right, with threshold and margin of its card; every line of it a goal met or missed.

    n: pictures per line. photos: a folder of photographs to lay cards on, and to look at without any.
    """
    with Examined(folder, backend) as model:
        return _evaluate(model, n, photographs(photos) if photos is not None else [])


def _evaluate(model: Examined, n: int, grounds: Sequence[Image]) -> list[Share]:
    rule = model.card.threshold, model.card.margin
    order = {card: i for i, card in enumerate(all_cards())}
    labels, shares = model.labels, []

    def share(what: str, hits: NDArray[np.bool_], goal: float, least: bool = True) -> NDArray[np.bool_]:
        shares.append(Share(what, int(hits.sum()), len(hits), goal, least))
        return hits

    def top1(what: str, vectors: Vectors, truth: Sequence[Card], goal: float) -> NDArray[np.bool_]:
        return share(f"{what}, top-1 of {len(order)} labels", right(vectors, labels, [order[c] for c in truth]), goal)

    def nothing(what: str, images: Iterable[Image]) -> None:
        share(f"no card, {what}: named nevertheless", named(model.encode(images), labels, model.nothing, *rule), 0.05, False)

    vectors, truth = model.series(n, TEST, trained())
    hits = top1("new seeds", vectors, truth, 0.95)
    unseen, unseen_truth = model.series(n, TEST + 1, held_out())
    top1(f"{len(held_out())} cards never trained", unseen, unseen_truth, 0.85)
    if grounds:
        top1("on photographs", *model.series(n, TEST + 3, trained() + held_out(), grounds), 0.85)
    share("right names that are kept", named(vectors[hits], labels, model.nothing, *rule), RECALL)
    nothing("made-up scenes", (picture(TEST + 2, i, trained(), empty=1).image for i in range(n)))
    if grounds:
        nothing("photographs", grounds)

    # Words as they are typed: of two things that are said, and a short list.
    pairs = np.array([model.pairs[c.color, c.shape] for c in truth])
    hits = share(f'"red star" alone, top-1 of {len(model.pairs)}', right(vectors, model.pair_vectors, pairs), 0.95)
    share('"red star" alone, right names kept', named(vectors[hits], model.pair_vectors, model.nothing, *rule), RECALL)
    short = [model.pairs[pair] for pair in _SHORT if pair in model.pairs]
    off = vectors[~np.isin(pairs, short)]
    share(
        f"a list of {len(short)}, card not on it: named",
        named(off, model.pair_vectors[short], model.nothing, *rule),
        0.05,
        False,
    )
    return shares
