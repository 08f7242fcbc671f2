"""A seed and a number in, a picture of a card and its truth out: the same on every machine that has the same OpenCV.

What a camera does to a card is in here: perspective, tilt, uneven and colored light, shadows, things in front of it, soft
focus, motion, noise and JPEG. Backgrounds are made up: blobs, dead leaves (overlapping things of all sizes, whose statistics
are like those of photographs), textures, lines and blank cards.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..preparing import Image
from .drawing import Look, bgr, corners, face, lay, shade
from .words import Card, all_cards, is_held_out

SIZE = 224
EXAMINING = 9000  # seeds from here on are for examining models, never for training them
_EMPTY = 0.2  # share of the pictures that show no card
Kinds = tuple[Card, ...]


def trained() -> Kinds:
    """The cards that training may see."""
    return tuple(c for c in all_cards() if not is_held_out(c))


def held_out() -> Kinds:
    """The cards that it may not."""
    return tuple(c for c in all_cards() if is_held_out(c))


def fingerprint() -> str:
    """A hash of a few pictures: another world, or another OpenCV's drawing of it, has another."""
    sample = [picture(0, i, all_cards()).image.tobytes() for i in range(16)]
    return hashlib.sha256(b"".join(sample)).hexdigest()[:16]


class Pictured(NamedTuple):
    """A picture and its truth.

    image: BGR uint8 224 x 224 x 3. card: what it shows, None for nothing. cover: uint8 224 x 224, 255 where the card lies.
    """

    image: Image
    card: Card | None
    cover: NDArray[np.uint8]


def picture(
    seed: int, index: int, cards: Kinds, *, empty: float = _EMPTY, background: Image | None = None, strength: float = 1.0
) -> Pictured:
    """Picture `index` of the series `seed`.

    cards: what may be drawn; `empty` of the pictures show nothing. background: a picture 224 x 224 to put the card on, instead
    of one that is made up. strength: 0..1, how much is done to the card; a small model starts to learn on easy pictures.
    """
    rng = np.random.default_rng((seed, index))
    image = made_up(rng, strength) if background is None else background.copy()
    cover = np.zeros(image.shape[:2], np.uint8)
    if rng.random() < empty:
        card = None
        chance = rng.random() / max(strength, 0.01)
        if chance < 0.3:
            _blank(rng, image)
        if 0.2 < chance < 0.8:
            _stranger(rng, image)
    else:
        card = cards[int(rng.integers(len(cards)))]
        where = _place(rng, strength)
        cover = _put(rng, image, card, where, strength)
        if rng.random() < 0.25 * strength:
            _cover(rng, image, where)
    return Pictured(_photographed(rng, image, strength), card, cover)


def _place(rng: np.random.Generator, strength: float = 1.0) -> NDArray[np.float32]:
    """Corners of a card of which at least about 0.7 lies in the picture."""
    half = SIZE * rng.uniform(0.42 - 0.2 * strength, 0.5)
    aspect = float(np.exp(rng.uniform(-0.05, 0.4)))
    room = max(SIZE / 2 - half, 0) + 0.4 * strength * half * rng.random()
    center = SIZE / 2 + rng.uniform(-1, 1, 2) * room
    yaw, pitch = strength * rng.normal(0, 0.32, 2).clip(-0.8, 0.8)
    roll = strength * (rng.normal(0, 0.3) if rng.random() < 0.85 else rng.uniform(-np.pi, np.pi) / 2)
    width = half / np.sqrt(aspect)
    return corners((center[0], center[1]), (width, width * aspect), yaw, pitch, roll, rng.uniform(2.2, 6))


def _put(rng: np.random.Generator, image: Image, card: Card, where: NDArray[np.float32], strength: float) -> NDArray[np.uint8]:
    """Lay the card into `image`, in place, with its shadow; return where it covers it."""
    import cv2

    ink = np.array(bgr(card.color)) + rng.normal(0, 8, 3) + rng.normal(0, 5)
    paper = None if rng.random() < 0.1 * strength else _paper(rng, ink)
    sides = np.linalg.norm(where - np.roll(where, -1, 0), axis=1)
    width, height = (sides[0] + sides[2]) / 2, (sides[1] + sides[3]) / 2
    look = Look(
        (float(ink[0]), float(ink[1]), float(ink[2])),
        paper,
        size=rng.uniform(0.6, 0.86) if paper else rng.uniform(0.8, 0.98),
        angle=rng.uniform(0, np.pi),
        period=rng.uniform(0.26, 0.44),
        share=rng.uniform(0.5, 0.66),
        line=rng.uniform(0.1, 0.18),
        aspect=float(np.clip(height / width, 0.8, 1.6)) if paper else 1.0,
    )
    edge = int(np.clip(1.1 * width, 64, 240))
    picture, mask = face(card, look, edge)
    if paper and rng.random() < 0.6:
        shift = (rng.uniform(-0.09, 0.09, 2) * width).astype(np.float32)
        shadow = np.zeros(image.shape[:2], np.uint8)
        cv2.fillConvexPoly(shadow, (where + shift).astype(np.int32), int(rng.uniform(60, 170)), cv2.LINE_AA)
        shade(image, cv2.blur(shadow, (9, 9)))
    return lay(image, picture, mask, where)


def _paper(rng: np.random.Generator, ink: NDArray[np.float64]) -> tuple[float, float, float]:
    """A white, gray, black or faintly tinted paper that the ink stands out from."""
    while True:
        tone = rng.uniform(225, 255) if rng.random() < 0.6 else rng.uniform(15, 255)
        paper = tone + rng.normal(0, 9, 3)
        if np.abs(paper - ink).sum() > 170:
            return float(paper[0]), float(paper[1]), float(paper[2])


def _cover(rng: np.random.Generator, image: Image, where: NDArray[np.float32]) -> None:
    """A finger, a hand or a strip of something over the card's edge."""
    import cv2

    side = int(rng.integers(4))
    a, b = where[side], where[(side + 1) % 4]
    inward = where.mean(0) - (a + b) / 2
    at = a + (b - a) * rng.uniform(0.1, 0.9)
    tip = at + inward * rng.uniform(0.1, 0.45)
    start = at - inward * rng.uniform(0.5, 3)
    color = np.array([rng.uniform(60, 190), rng.uniform(90, 200), rng.uniform(130, 235)])
    if rng.random() < 0.5:
        color = rng.uniform(0, 255, 3)
    width = max(int(np.linalg.norm(b - a) * rng.uniform(0.07, 0.2)), 2)
    cv2.line(image, start.astype(int).tolist(), tip.astype(int).tolist(), color.tolist(), width, cv2.LINE_AA)


def _blank(rng: np.random.Generator, image: Image) -> None:
    """A card with nothing on it, or with writing: what a model must not take for one of ours."""
    import cv2

    where = _place(rng)
    written = rng.random() < 0.5
    # An empty one is gray: of a color it would be a plain square.
    color = rng.uniform(0, 255, 3) if written and rng.random() < 0.5 else np.full(3, rng.uniform(90, 215))
    cv2.fillConvexPoly(image, where.astype(np.int32), color.tolist(), cv2.LINE_AA)
    if written:
        other = rng.uniform(0, 255, 3).tolist()
        a, b, c, d = where
        lines = int(rng.integers(2, 9))
        for i in range(lines):
            t = (i + 0.7) / (lines + 0.6)
            left, right = a + (d - a) * t, b + (c - b) * t
            stop = left + (right - left) * rng.uniform(0.4, 0.9)
            begin = left + (right - left) * 0.1
            cv2.line(image, begin.astype(int).tolist(), stop.astype(int).tolist(), other, int(rng.integers(1, 6)), cv2.LINE_AA)


def _stranger(rng: np.random.Generator, image: Image) -> None:
    """Things that are none of our shapes, lit from one side: what photographs are full of."""
    import cv2

    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    for _ in range(int(rng.integers(1, 5))):
        waves = np.arange(2, 8)
        size = rng.uniform(0, 0.5, len(waves)) / np.sqrt(waves)
        r = 1 + (size[:, None] * np.sin(waves[:, None] * t + rng.uniform(0, 2 * np.pi, (len(waves), 1)))).sum(0)
        half = SIZE * rng.uniform(0.08, 0.45)
        stretch = np.exp(rng.uniform(-0.7, 0.7, 2))
        turn = rng.uniform(0, np.pi)
        flat = np.stack([r * np.cos(t) * stretch[0], r * np.sin(t) * stretch[1]], 1) * half
        c, s = np.cos(turn), np.sin(turn)
        line = (flat @ np.array([[c, s], [-s, c]]) + rng.uniform(0, SIZE, 2)).astype(np.int32)
        mask = np.zeros(image.shape[:2], np.uint8)
        if rng.random() < 0.2:
            cv2.polylines(mask, [line], True, 255, int(rng.integers(2, 12)), cv2.LINE_AA)
        else:
            cv2.fillPoly(mask, [line], 255, cv2.LINE_AA)
        color = rng.uniform(0, 255, 3) if rng.random() < 0.5 else rng.uniform(20, 235) + rng.normal(0, 12, 3)
        shades = np.clip(color * rng.uniform(0.4, 1.3, (3, 3, 1)), 0, 255).astype(np.uint8)
        body = cv2.resize(shades, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        if rng.random() < 0.5:
            _texture(rng, body)
        weight = cv2.merge([mask, mask, mask])
        kept = cv2.multiply(image, cv2.bitwise_not(weight), scale=1 / 255)
        cv2.add(kept, cv2.multiply(body, weight, scale=1 / 255), dst=image)


def made_up(rng: np.random.Generator, strength: float = 1.0) -> Image:
    """A background, BGR uint8 224 x 224 x 3."""
    import cv2

    kind = rng.random()
    cells = int(rng.integers(1, 7))
    base = rng.normal(0, 1, (cells + 1, cells + 1, 3)) * rng.uniform(5, 60) + rng.normal(0, 1, (1, 1, 3)) * 25
    image = np.clip(rng.uniform(25, 225) + base, 0, 255).astype(np.uint8)
    image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    if kind < 0.45 * strength:
        _leaves(rng, image)
    if rng.random() < 0.5 * strength:
        _texture(rng, image)
    if rng.random() < 0.3 * strength:
        _lines(rng, image)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 4))
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    color = rng.random() ** 0.7  # most of the world is less colorful than chance
    return np.asarray(cv2.addWeighted(image, color, gray, 1 - color, 0))


def _leaves(rng: np.random.Generator, image: Image) -> None:
    """Overlapping ellipses and polygons, large ones below, their sizes by a power law (Lee, Mumford & Huang 2001)."""
    import cv2

    n = int(rng.integers(4, 45))
    radii = np.sort((1 / rng.uniform(1 / 90**2, 1 / 6**2, n)) ** 0.5)[::-1]
    palette = rng.uniform(0, 255, (int(rng.integers(2, 8)), 3))
    gray = palette.mean(1, keepdims=True)
    palette = gray + (palette - gray) * rng.uniform(0, 1)
    places = rng.uniform(0, SIZE, (n, 2)).astype(int)
    for radius, place in zip(radii, places, strict=True):
        color = (palette[rng.integers(len(palette))] + rng.normal(0, 12, 3)).clip(0, 255).tolist()
        if rng.random() < 0.4:
            axes = (max(int(radius), 1), max(int(radius * rng.uniform(0.2, 0.8)), 1))
            cv2.ellipse(image, place.tolist(), axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
        else:
            a = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
            r = radius * rng.uniform(0.5, 1.4, len(a))
            polygon = place + np.stack([r * np.cos(a), r * np.sin(a)], 1)
            cv2.fillPoly(image, [polygon.astype(np.int32)], color, cv2.LINE_AA)


def _texture(rng: np.random.Generator, image: Image) -> None:
    """Grain of some coarseness, or the stripes of a cloth, a floor or a shelf."""
    import cv2

    strength = rng.uniform(3, 30)
    if rng.random() < 0.6:
        coarse = rng.uniform(1, 12)
        grain = _grain(rng, max(int(SIZE / coarse), 3), max(int(SIZE / coarse / rng.uniform(1, 4)), 3), strength)
        grain = cv2.resize(grain, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    else:
        a, period = rng.uniform(0, np.pi), rng.uniform(4, 60)
        x = np.arange(SIZE, dtype=np.float32)
        wave = np.sin((x[None, :] * np.float32(np.cos(a)) + x[:, None] * np.float32(np.sin(a))) * np.float32(6.28 / period))
        wave = np.sign(wave) if rng.random() < 0.4 else wave
        tint = rng.uniform(0.5, 1, 3).astype(np.float32) * np.float32(strength)
        grain = wave[:, :, None] * tint
    cv2.add(image, np.ascontiguousarray(grain, np.float32), dst=image, dtype=cv2.CV_8U)


def _lines(rng: np.random.Generator, image: Image) -> None:
    import cv2

    for _ in range(int(rng.integers(1, 7))):
        (x0, y0), (x1, y1) = rng.uniform(-20, SIZE + 20, (2, 2)).astype(int).tolist()
        cv2.line(image, (x0, y0), (x1, y1), rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 14)), cv2.LINE_AA)


def _photographed(rng: np.random.Generator, image: Image, strength: float) -> Image:
    """What light, lens, sensor and codec make of it."""
    import cv2

    gain = rng.uniform(0.55, 1.02) * rng.normal(1, 0.045, 3)
    field = rng.uniform(-0.25, 0.25, (2, 2, 1)) if rng.random() < 0.7 else np.zeros((2, 2, 1))
    light = cv2.resize(((1 + field) * gain).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    pixels = cv2.multiply(image, light, dtype=cv2.CV_8U)
    pixels = cv2.add(pixels, (rng.uniform(0, 18),) * 4)  # haze
    chance = rng.random() / max(strength, 0.01)
    if chance < 0.45:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.6))
    elif chance < 0.6:
        length = int(rng.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        a = rng.uniform(0, np.pi)
        mid, dx, dy = (length - 1) / 2, np.cos(a) * length / 2, np.sin(a) * length / 2
        cv2.line(kernel, (round(mid - dx), round(mid - dy)), (round(mid + dx), round(mid + dy)), 1.0)
        pixels = cv2.filter2D(pixels, -1, kernel / kernel.sum())
    if rng.random() < 0.7 * strength:
        pixels = cv2.add(pixels, _grain(rng, SIZE, SIZE, rng.uniform(1, 11)), dtype=cv2.CV_8U)
    if rng.random() < 0.4 * strength:
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(28, 95))])
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return np.asarray(pixels)


def _grain(rng: np.random.Generator, height: int, width: int, sigma: float) -> NDArray[np.float32]:
    """Normal noise height x width x 3, cut out of a sheet made once: drawing it anew costs as much as the rest of a picture."""
    noise = _noise()
    y, x = rng.integers(len(noise) - height + 1), rng.integers(len(noise) - width + 1)
    grain: NDArray[np.float32] = noise[y : y + height, x : x + width] * np.float32(sigma)
    return grain


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.float32]:
    return np.random.default_rng(11).standard_normal((512, 512, 3), np.float32)
