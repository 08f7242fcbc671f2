"""Cards in, a PDF to print and cut out: six on a page, drawn in lines that follow the look the demo shows on the screen.

A card's label stands below it and is cut off, so that what is held before the camera is the picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, degrees, hypot
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BackendMissing
from .drawing import DOT, Look, outlines, printed
from .words import COLORS, SHAPES, SURFACES, Card, is_held_out

HEADER = "clipsight demo cards - cut out, hold one before the camera, run: python run_camera.py 0 --model demo"
COLUMNS, ROWS = 2, 3
_MM = 72 / 25.4
_TOP = 14.0  # above the cards; this and all that follows in mm
_LABEL = 5.0  # below each card
_GAP = 4.0  # between the columns
_PAPERS = {"a4": (210.0, 297.0, 85.0), "letter": (215.9, 279.4, 80.0)}  # width, height, a card's edge
_SELECTED = 24


class Place(NamedTuple):
    """Where a card is on its page: its lower left corner from the page's, and its edge; in points, as PDF counts."""

    left: float
    bottom: float
    edge: float


def selected() -> tuple[Card, ...]:
    """The cards of the default sheet: every shape, color and surface, of those that training saw, neighbors quite different."""
    surfaces, colors, waiting = list(SURFACES), list(COLORS), list(SHAPES)
    cards = []
    for i in range(_SELECTED):
        # 4 has no divisor in common with the 11 colors: it passes all of them, and no two alike follow each other.
        surface, color = surfaces[i % len(surfaces)], colors[4 * i % len(colors)]
        shape = next(s for s in waiting if not is_held_out(Card(surface, color, s)))
        waiting.remove(shape)
        waiting.append(shape)
        cards.append(Card(surface, color, shape))
    return tuple(cards)


def places(paper: str) -> tuple[Place, ...]:
    """Where a page's cards are, row by row from the top; raises ValueError for a paper that is not known."""
    if paper not in _PAPERS:
        raise ValueError(f"no paper {paper!r}; use {' or '.join(_PAPERS)}")
    width, height, edge = _PAPERS[paper]
    left = (width - COLUMNS * edge - (COLUMNS - 1) * _GAP) / 2
    return tuple(
        Place((left + column * (edge + _GAP)) * _MM, (height - _TOP - row * (edge + _LABEL) - edge) * _MM, edge * _MM)
        for row, column in product(range(ROWS), range(COLUMNS))
    )


def write_sheet(path: Path, cards: Sequence[Card] | None = None, *, paper: str = "a4") -> int:
    """Write a PDF of `cards` (of `selected` where none are given) for "a4" or "letter"; return how many pages it has.

    The same cards give the same bytes. Raises `BackendMissing` where reportlab is not installed.
    """
    try:
        from reportlab.pdfgen.canvas import Canvas  # type: ignore[import-untyped]
    except ImportError:
        raise BackendMissing("the sheet needs reportlab, which is not installed; run: pip install reportlab") from None
    cards, where = selected() if cards is None else cards, places(paper)
    if not cards:
        raise ValueError("a sheet needs at least one card")
    width, height, _ = _PAPERS[paper]
    # Invariant: neither date nor chance in the file. Not compressed: another zlib would give other bytes.
    canvas = Canvas("", (width * _MM, height * _MM), invariant=1, pageCompression=0)
    canvas.setTitle("clipsight demo cards")
    canvas.setSubject("cards to print and cut out")
    canvas.setAuthor("clipsight")
    canvas.setCreator("clipsight")
    pages = ceil(len(cards) / len(where))
    for page in range(pages):
        _header(canvas, f"page {page + 1} of {pages}", where, (height - _TOP + 3) * _MM)
        for card, place in zip(cards[page * len(where) :], where, strict=False):
            _card(canvas, card, place)
        canvas.showPage()
    path.write_bytes(canvas.getpdfdata())
    return pages


def _header(canvas: Any, number: str, where: Sequence[Place], y: float) -> None:
    canvas.setFillGray(0.35)
    canvas.setFont("Helvetica", 8)
    canvas.drawString(where[0].left, y, HEADER)
    canvas.drawRightString(where[-1].left + where[-1].edge, y, number)


def _card(canvas: Any, card: Card, place: Place) -> None:
    look = printed(card)
    canvas.saveState()
    if look.paper is not None:
        canvas.setFillColorRGB(*_rgb(look.paper))
        canvas.rect(place.left, place.bottom, place.edge, place.edge, stroke=0, fill=1)
    # From here on lengths are those of the look: the shape's half width is 1, and y goes down.
    half = look.size * place.edge / 2
    canvas.transform(half, 0, 0, -half, place.left + place.edge / 2, place.bottom + place.edge / 2)
    _shape(canvas, card, look)
    canvas.restoreState()

    canvas.saveState()
    canvas.setStrokeGray(0.55)
    canvas.setLineWidth(0.5)
    canvas.setDash([1.5 * _MM, 1.2 * _MM])
    canvas.rect(place.left, place.bottom, place.edge, place.edge, stroke=1, fill=0)
    canvas.setFillGray(0.5)
    canvas.setFont("Helvetica", 7)
    canvas.drawCentredString(place.left + place.edge / 2, place.bottom - 3 * _MM, str(card))
    canvas.restoreState()


def _shape(canvas: Any, card: Card, look: Look) -> None:
    from reportlab.pdfgen.canvas import FILL_EVEN_ODD

    path = canvas.beginPath()
    reach = 0.0
    for contour in outlines()[card.shape]:
        points = contour.tolist()
        reach = max(reach, *(hypot(*point) for point in points))
        path.moveTo(*points[0])
        for point in points[1:]:
            path.lineTo(*point)
        path.close()
    canvas.setFillColorRGB(*_rgb(look.ink))
    canvas.setStrokeColorRGB(*_rgb(look.ink))
    canvas.setLineJoin(1)  # round, as OpenCV's
    if card.surface == "outlined":
        canvas.setLineWidth(look.line)
        canvas.drawPath(path, stroke=1, fill=0)
        return
    if card.surface == "plain":
        canvas.drawPath(path, stroke=0, fill=1, fillMode=FILL_EVEN_ODD)
        return
    canvas.saveState()
    canvas.clipPath(path, stroke=0, fill=0, fillMode=FILL_EVEN_ODD)
    canvas.rotate(degrees(look.angle))
    _pattern(canvas, card.surface, look, reach)
    canvas.restoreState()
    # The silhouette stays whole; its line lies half outside of the shape, so it comes after the clipping.
    canvas.setLineWidth(look.line / 3)
    canvas.drawPath(path, stroke=1, fill=0)


def _pattern(canvas: Any, surface: str, look: Look, reach: float) -> None:
    """Ink with stripes or dots as far as `reach` from the middle, in the directions that the canvas is turned to."""
    period = look.period
    steps = range(-ceil(reach / period), ceil(reach / period) + 1)
    inked = canvas.beginPath()
    if surface == "striped":
        for i in steps:
            inked.rect((i - look.share / 2) * period, -reach, look.share * period, 2 * reach)
    else:
        inked.rect(-reach, -reach, 2 * reach, 2 * reach)
        for i, j in product(steps, steps):
            if hypot(i, j) * period < reach + DOT * period:
                inked.circle(i * period, j * period, DOT * period)  # a hole, by the even-odd rule
    canvas.drawPath(inked, stroke=0, fill=1)


def _rgb(color: tuple[float, float, float]) -> tuple[float, float, float]:
    """A look's BGR, 0..255, as PDF's RGB, 0..1."""
    b, g, r = color
    return r / 255, g / 255, b / 255
