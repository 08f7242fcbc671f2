"""One card in, its picture from the front out; and a card laid into a picture in perspective."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..preparing import Image
from .words import COLORS, Card

DOT = 0.31  # a dot's radius, as a share of the dots' period
_BITS = 4  # fractional bits of the coordinates that OpenCV takes
Contours = tuple[NDArray[np.float32], ...]  # each k x 2, x right and y down, within -1..1; inner ones are holes


class Look(NamedTuple):
    """What differs between two prints of the same card.

    ink, paper: BGR, 0..255; without paper the shape is cut out and what lies below is seen through its gaps. size: half
    the shape's width as a share of half the card's. angle: of stripes and dots, radians. period: of stripes and dots as a
    share of the shape's half width. share: of a stripe's period that is inked. line: width of outlines, as period.
    aspect: the card's height by its width.
    """

    ink: tuple[float, float, float]
    paper: tuple[float, float, float] | None = (250.0, 250.0, 250.0)
    size: float = 0.74
    angle: float = 0.8
    period: float = 0.36
    share: float = 0.58
    line: float = 0.15
    aspect: float = 1.0


def bgr(color: str) -> tuple[float, float, float]:
    """A color word's BGR, 0..255."""
    r, g, b = COLORS[color]
    return 255 * b, 255 * g, 255 * r


def printed(card: Card) -> Look:
    """The look of a card on the printable sheet and in the demo: white paper, or gray where white would hide the ink."""
    paper = {"white": (105.0, 100.0, 96.0), "yellow": (120.0, 112.0, 105.0)}.get(card.color, (248.0, 250.0, 250.0))
    return Look(bgr(card.color), paper)


def face(card: Card, look: Look, edge: int) -> tuple[Image, NDArray[np.uint8]]:
    """The card from the front, BGR uint8 h x edge x 3, and how much of each pixel is card, uint8 h x edge.

    h follows from the look's aspect.
    """
    import cv2

    height = max(round(edge * look.aspect), 2)
    ink = _ink(card, look, edge, height)
    full = np.full_like(ink, 255)
    if look.paper is None:
        return cv2.merge([cv2.multiply(full, value / 255) for value in look.ink]), ink
    # From how much a pixel is inked to its color, by table.
    steps = np.linspace(look.paper, look.ink, 256).clip(0, 255).astype(np.uint8)[None]  # 1 x 256 x 3
    return np.asarray(cv2.LUT(cv2.merge([ink, ink, ink]), steps)), full


def _ink(card: Card, look: Look, width: int, height: int) -> NDArray[np.uint8]:
    """How much of each pixel is inked, uint8 height x width."""
    import cv2

    half = look.size * min(width, height) / 2
    center = np.array([(width - 1) / 2, (height - 1) / 2], np.float32)
    contours = [np.rint((center + half * c) * 2**_BITS).astype(np.int32) for c in outlines()[card.shape]]
    ink = np.zeros((height, width), np.uint8)
    line = max(round(look.line * half), 2)
    if card.surface != "outlined":
        cv2.fillPoly(ink, contours, 255, cv2.LINE_AA, _BITS)
    if card.surface == "outlined":
        cv2.polylines(ink, contours, True, 255, line, cv2.LINE_AA, _BITS)
    elif card.surface != "plain":
        edge = np.zeros_like(ink)  # so that the silhouette stays whole
        cv2.polylines(edge, contours, True, 255, max(line // 3, 1), cv2.LINE_AA, _BITS)
        ink = cv2.max(cv2.multiply(ink, _pattern(card.surface, look, half, center, width, height), scale=1 / 255), edge)
    return ink


def _pattern(surface: str, look: Look, half: float, center: NDArray[np.float32], width: int, height: int) -> NDArray[np.uint8]:
    """Where stripes are, or where dots are not: uint8 height x width, 0 or 255 with soft edges a pixel wide."""
    period = max(look.period * half, 4.0)
    c, s = np.float32(np.cos(look.angle) / period), np.float32(np.sin(look.angle) / period)
    x = (np.arange(width, dtype=np.float32) - center[0])[None, :]
    y = (np.arange(height, dtype=np.float32) - center[1])[:, None]
    u = x * c + y * s
    across = np.abs(u - np.rint(u))  # in periods, from the middle of the nearest stripe
    if surface == "striped":
        inside = look.share / 2 - across
    else:
        v = y * c - x * s
        inside = np.sqrt(across**2 + (v - np.rint(v)) ** 2) - DOT
    pattern: NDArray[np.uint8] = np.clip(inside * (255 * period) + 127.5, 0, 255).astype(np.uint8)
    return pattern


def corners(
    center: tuple[float, float], half: tuple[float, float], yaw: float, pitch: float, roll: float, distance: float = 3.5
) -> NDArray[np.float32]:
    """Where the corners of a card lie that is turned in space: float32 4 x 2, from its upper left, clockwise.

    center: pixels. half: its half width and half height in pixels, seen from the front. yaw, pitch, roll: radians.
    distance: of the camera, in the card's half diagonals; less is a stronger perspective.
    """
    flat = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64) * half
    cr, sr = np.cos(roll), np.sin(roll)
    x, y = flat[:, 0] * cr - flat[:, 1] * sr, flat[:, 0] * sr + flat[:, 1] * cr
    z = x * np.sin(yaw) + y * np.sin(pitch)
    x, y = x * np.cos(yaw), y * np.cos(pitch)
    nearer = 1 / (1 + z / (distance * np.hypot(*half)))
    return (np.stack([x * nearer, y * nearer], 1) + center).astype(np.float32)


def lay(image: Image, picture: Image, mask: NDArray[np.uint8], where: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a face into `image`, in place, with its corners at `where`; return how much of each pixel it covers, uint8 H x W."""
    import cv2

    h, w = mask.shape
    cover = np.zeros(image.shape[:2], np.uint8)
    # Only what the card may reach: a warp costs by the pixel.
    left, top = np.maximum(np.floor(where.min(0)).astype(int), 0)
    right, bottom = np.maximum(np.ceil(where.max(0)).astype(int) + 1, 0)
    part, covered = image[top:bottom, left:right], cover[top:bottom, left:right]
    if not covered.size:
        return cover
    flat = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
    matrix = cv2.getPerspectiveTransform(flat, where - np.array([left, top], np.float32))
    size = part.shape[1], part.shape[0]
    warped = cv2.warpPerspective(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    covered[:] = cv2.warpPerspective(mask, matrix, size, flags=cv2.INTER_LINEAR)
    weight = cv2.merge([covered, covered, covered])
    kept = cv2.multiply(part, cv2.bitwise_not(weight), scale=1 / 255)
    part[:] = cv2.add(kept, cv2.multiply(warped, weight, scale=1 / 255))
    return cover


def shade(image: Image, shadow: NDArray[np.uint8]) -> None:
    """Darken `image`, in place, by `shadow` (uint8 H x W, 255 is black)."""
    import cv2

    light = cv2.bitwise_not(shadow)
    cv2.multiply(image, cv2.merge([light, light, light]), dst=image, scale=1 / 255)


@cache
def outlines() -> dict[str, Contours]:
    """The shapes' contours."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.sin(t), -np.cos(t)], 1)

    def points(*xy: tuple[float, float]) -> NDArray[np.float64]:
        return np.array(xy, np.float64)

    def spokes(n: int, inner: float) -> NDArray[np.float64]:
        a = np.arange(2 * n) * np.pi / n
        r = np.where(np.arange(2 * n) % 2, inner, 1.0)
        return np.stack([r * np.sin(a), -r * np.cos(a)], 1)

    def moon() -> NDArray[np.float64]:
        # The part of the unit circle outside of a circle of radius 0.8 around (0.45, 0).
        at, r = 0.45, 0.8
        x = (at**2 - r**2 + 1) / (2 * at)
        a, b = np.arctan2(np.sqrt(1 - x**2), x), np.arctan2(np.sqrt(1 - x**2), x - at)
        outer, inner = np.linspace(a, 2 * np.pi - a, 48), np.linspace(2 * np.pi - b, b, 40)
        rim = [np.stack([np.cos(outer), np.sin(outer)], 1), np.stack([at + r * np.cos(inner), r * np.sin(inner)], 1)]
        line: NDArray[np.float64] = np.concatenate(rim) + np.array([0.22, 0])
        return line

    def heart() -> NDArray[np.float64]:
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x / 17, -(y + 2.5) / 15.5], 1)

    def drop() -> NDArray[np.float64]:
        a = np.linspace(np.pi * 0.17, np.pi * 1.83, 48)
        belly = np.stack([0.66 * np.sin(a), 0.34 - 0.66 * np.cos(a)], 1)
        return np.concatenate([points((0.0, -1.0)), belly])

    def flower() -> NDArray[np.float64]:
        fine = np.linspace(0, 2 * np.pi, 120, endpoint=False)
        r = 0.42 + 0.58 * np.abs(np.cos(2.5 * fine)) ** 0.8
        return np.stack([r * np.sin(fine), -r * np.cos(fine)], 1)

    def fish() -> NDArray[np.float64]:
        a = np.linspace(0.12 * np.pi, 1.88 * np.pi, 48)
        body = np.stack([0.7 * np.cos(a) - 0.28, 0.55 * np.sin(a)], 1)
        return np.concatenate([body, points((0.98, -0.62), (0.98, 0.62))])

    shapes: dict[str, list[NDArray[np.float64]]] = {
        "circle": [0.9 * circle],
        "square": [points((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))],
        "triangle": [points((0, -0.9), (0.98, 0.78), (-0.98, 0.78))],
        "star": [spokes(5, 0.42)],
        "heart": [heart()],
        "cross": [
            points(
                *((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)),
                *((0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)),
            )
        ],
        "ring": [0.95 * circle, 0.5 * circle],
        "moon": [moon()],
        "arrow": [points((0, -1), (0.85, -0.05), (0.34, -0.05), (0.34, 0.95), (-0.34, 0.95), (-0.34, -0.05), (-0.85, -0.05))],
        "drop": [drop()],
        "bolt": [points((0.3, -1), (-0.66, 0.14), (-0.1, 0.14), (-0.34, 1), (0.68, -0.26), (0.1, -0.26))],
        "flower": [flower()],
        "house": [points((0, -0.95), (0.98, -0.1), (0.68, -0.1), (0.68, 0.88), (-0.68, 0.88), (-0.68, -0.1), (-0.98, -0.1))],
        "fish": [fish()],
    }
    return {name: tuple(c.astype(np.float32) for c in contours) for name, contours in shapes.items()}
