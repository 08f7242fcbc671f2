"""The source `demo`: printed cards pass before a camera that is not there, and what they show is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...engines import Image
from ...engines.cards.drawing import corners, face, lay, printed, shade
from ...engines.cards.words import Card, all_cards, indices, is_true
from ..frame import Frame
from .base import About, Source

_SIZE = (1280, 720)
_RATE = 30
_EACH = 2.0  # seconds from one card to the next
_MOVING = 0.3  # share of them in which the row moves on; else it creeps
_CREEP = 0.28  # share of the way that it creeps
_HALF = (164.0, 196.0)  # half width and half height of a card
_APART = 590.0  # from one card to the next: halfway each still has 60 % of itself in the square that a model sees


class Demo(Source):
    """1280 x 720 at 30 fps: a row of cards goes by, each tilting as if it were held; `truth` tells the one in the middle.

    At every moment one card has at least 60 % of itself inside the square that CLIP's preparation keeps of a frame.
    seconds: how long it lasts. seed: which cards, of all there are, those that training never saw among them.
    """

    def __init__(self, seconds: float = 22.0, seed: int = 0) -> None:
        super().__init__()
        self.name = "demo"
        self.rate = Fraction(_RATE)
        self._total = int(seconds * _RATE)
        self.about = About(size=_SIZE, frames=self._total, time_base=Fraction(1, _RATE))
        self._cards = _deal(seed)

    def truth(self, frame: Frame) -> str:
        """The label of the card that `frame` shows in its middle."""
        return str(self.card(round(_passed(frame.time))))

    def is_right(self, frame: Frame, label: str | None, names: Sequence[str]) -> bool:
        """Whether `label`, chosen from `names`, is true of the card in the middle; None is where none of them is."""
        card = self.card(round(_passed(frame.time)))
        return is_true(label, card) if label is not None else not any(is_true(name, card) for name in names)

    def card(self, number: int) -> Card:
        """The card that is `number`-th to pass."""
        return self._cards[number % len(self._cards)]

    def _frames(self) -> Iterator[Frame]:
        import cv2

        room = _room()
        for k in range(self._total):
            t = k / _RATE
            image = room.copy()
            nearest = round(_passed(t))
            for number in (nearest - 1, nearest + 1, nearest):
                self._lay(image, number, t)
            # The light is not steady.
            yield self._frame(cv2.convertScaleAbs(image, alpha=0.97 + 0.03 * np.sin(1.7 * t)), t, k, Fraction(1, _RATE))

    def where(self, number: int, t: float) -> NDArray[np.float32]:
        """The corners of the `number`-th card at second `t`, in pixels, float32 4 x 2, from its upper left, clockwise."""
        sway = t * 1.3 + 2.1 * number
        center = (_SIZE[0] / 2 + _APART * (number - _passed(t)), _SIZE[1] * 0.5 + 14 * np.sin(1.9 * sway))
        yaw, pitch, roll = 0.42 * np.sin(sway), 0.28 * np.sin(0.8 * sway + 1), 0.16 * np.sin(1.1 * sway + 2)
        return corners(center, _HALF, yaw, pitch, roll)

    def _lay(self, image: Image, number: int, t: float) -> None:
        where = self.where(number, t)
        if where[:, 0].max() > 0 and where[:, 0].min() < _SIZE[0]:
            _drop_shadow(image, where)
            lay(image, *_face(self.card(number)), where)


def _passed(t: float) -> float:
    """How many cards have passed the middle at second `t`: creeping around whole numbers, hurrying from one to the next."""
    whole, share = divmod(t / _EACH + 0.5 * (1 - _MOVING), 1.0)
    if share < 1 - _MOVING:
        return float(whole + _CREEP * (share / (1 - _MOVING) - 0.5))
    x = (share - 1 + _MOVING) / _MOVING
    return float(whole + _CREEP / 2 + (1 - _CREEP) * x * x * (3 - 2 * x))


@lru_cache(maxsize=4)
def _deal(seed: int) -> tuple[Card, ...]:
    """All cards in an order in which neighbors differ in all three words, as far as they can."""
    cards = all_cards()
    words = np.array([indices(card) for card in cards])  # 616 x 3
    rest = np.random.default_rng(seed).permutation(len(cards))
    dealt: list[int] = []
    while len(rest):
        alike = (words[rest] == (words[dealt[-1]] if dealt else -1)).sum(1)
        best = int(alike.argmin())
        dealt.append(int(rest[best]))
        rest = np.delete(rest, best)
    return tuple(cards[i] for i in dealt)


@lru_cache(maxsize=8)
def _face(card: Card) -> tuple[Image, NDArray[np.uint8]]:
    return face(card, printed(card)._replace(aspect=_HALF[1] / _HALF[0]), int(2 * _HALF[0]))


def _drop_shadow(image: Image, where: NDArray[np.float32]) -> None:
    import cv2

    cast = where + np.array([16, 26], np.float32)
    left, top = np.maximum(cast.min(0).astype(int) - 24, 0)
    right, bottom = np.maximum(cast.max(0).astype(int) + 24, 0)
    part = image[top:bottom, left:right]
    if not part.size:
        return
    small = np.zeros(
        ((part.shape[0] + 3) // 4, (part.shape[1] + 3) // 4), np.uint8
    )  # it is soft: a quarter of the size will do
    cv2.fillConvexPoly(small, ((cast - [left, top]) / 4).astype(np.int32), 105, cv2.LINE_AA)
    shadow = cv2.resize(cv2.blur(small, (9, 9)), (part.shape[1], part.shape[0]), interpolation=cv2.INTER_LINEAR)
    darkened = part.copy()
    shade(darkened, shadow)
    part[:] = darkened


@lru_cache(maxsize=1)
def _room() -> Image:
    """A wall, a shelf with books out of focus, and a table: BGR uint8 720 x 1280 x 3."""
    import cv2

    width, height = _SIZE
    rng = np.random.default_rng(7)
    table = int(0.74 * height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 1.12 - 0.5 * np.hypot((x - 380) / width, (y - 120) / height)
    wall = light[..., None] * np.array([168, 178, 184], np.float32)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 24, sigmaY=1.2)
    wood = light[..., None] * np.array([78, 112, 150], np.float32) * (1 + 1.6 * grain[..., None])
    room = np.where(y[..., None] < table, wall, wood)
    left = 40
    while left < width - 40:  # books
        wide, tall = int(rng.uniform(18, 44)), int(rng.uniform(110, 190))
        color = rng.uniform(45, 120) + rng.normal(0, 18, 3)
        if rng.random() < 0.85:
            room[table - 300 - tall : table - 300, left : left + wide] = color * 0.9
        left += wide + 3
    room[table - 300 : table - 286] = (70, 92, 112)
    room = cv2.GaussianBlur(room.astype(np.float32), (0, 0), 5)
    room[table - 2 : table + 3] *= 0.8
    room += rng.normal(0, 2.2, (height, width, 1)).astype(np.float32)
    return np.asarray(room.clip(0, 255).astype(np.uint8))
