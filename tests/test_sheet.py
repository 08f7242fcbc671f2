"""The printable sheet: its pages, its words, the same bytes each time, and cards that look as the demo draws them."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipsight.engines import BackendMissing
from clipsight.engines.cards import sheet
from clipsight.engines.cards.drawing import Look, face, printed
from clipsight.engines.cards.sheet import HEADER, places, selected, write_sheet
from clipsight.engines.cards.words import COLORS, SHAPES, SURFACES, Card, all_cards, is_held_out
from clipsight.engines.preparing import Image

SHIPPED = Path(sheet.__file__).parents[1] / "models" / "demo" / "cards.pdf"

# At this edge the look's lines are 60 and 20 pixels: OpenCV, which takes whole ones, draws the widths that the sheet has.
EDGE = 1080
# Mean absolute difference of a rendered card and the same card of `face`, 0..255. OpenCV draws whatever has soft edges about
# half a pixel fatter on each side than it is; that, along the edges, makes 0.4 on average and 1.2 at most (the outlined black
# ring) over all 616 cards. The pink bolt, a thin shape in a pale color, is 3 away from itself with another surface.
TOLERANCE = 1.5


def rendered(path: Path, number: int, paper: str = "a4") -> Image:
    """Card `number` of a sheet, BGR EDGE x EDGE x 3, from its page's pixels."""
    pdfium: Any = pytest.importorskip("pypdfium2")
    with pdfium.PdfDocument(path) as document:
        where = places(paper)
        page, place = document[number // len(where)], where[number % len(where)]
        page.set_cropbox(place.left, place.bottom, place.left + place.edge, place.bottom + place.edge)
        image: Any = page.render(scale=(EDGE - 0.01) / place.edge).to_numpy()  # it rounds up
    assert image.shape == (EDGE, EDGE, 3)
    return np.array(image, np.uint8)


def difference(image: Image, card: Card, look: Look) -> float:
    inner = slice(20, EDGE - 20)  # without the cut line
    picture, _ = face(card, look, EDGE)
    return float(np.abs(image[inner, inner].astype(float) - picture[inner, inner]).mean())


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sheet") / "cards.pdf"
    assert write_sheet(path) == 4
    return path


def text(path: Path) -> list[str]:
    """The pages' text."""
    pdfium: Any = pytest.importorskip("pypdfium2")
    with pdfium.PdfDocument(path) as document:
        return [page.get_textpage().get_text_range() for page in document]


def test_the_selection_shows_every_word_and_no_two_alike_side_by_side() -> None:
    cards = selected()
    assert len(set(cards)) == len(cards) == 24
    assert not any(is_held_out(card) for card in cards)
    assert {card.surface for card in cards} == {*SURFACES}
    assert {card.color for card in cards} == {*COLORS}
    assert {card.shape for card in cards} == {*SHAPES}
    side_by_side = [*pairwise(cards), *zip(cards, cards[2:], strict=False)]  # two in a row: what is below comes two later
    assert all(sum(a != b for a, b in zip(*pair, strict=True)) >= 2 for pair in side_by_side)


def test_every_page_says_what_is_on_it(written: Path) -> None:
    pages = text(written)
    assert len(pages) == 4
    for i, page in enumerate(pages):
        assert HEADER in page
        assert f"page {i + 1} of 4" in page
        for card in selected()[6 * i : 6 * i + 6]:
            assert str(card) in page


def test_all_cards_and_a_page_that_is_not_full(tmp_path: Path) -> None:
    assert write_sheet(tmp_path / "all.pdf", all_cards()) == 103
    pages = text(tmp_path / "all.pdf")
    assert len(pages) == 103
    assert [str(card) in pages[i // 6] for i, card in enumerate(all_cards())] == [True] * 616
    assert write_sheet(tmp_path / "one.pdf", all_cards()[:1]) == 1


def test_the_same_bytes_each_time_and_those_that_are_shipped(tmp_path: Path, written: Path) -> None:
    write_sheet(tmp_path / "again.pdf")
    assert (tmp_path / "again.pdf").read_bytes() == written.read_bytes()
    assert SHIPPED.read_bytes() == written.read_bytes(), "write_sheet draws otherwise now: ship its sheet"
    assert SHIPPED.stat().st_size < 300_000


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_cards_look_as_the_demo_draws_them(tmp_path: Path, paper: str) -> None:
    # Each shape with each surface, in colors of light and of dark paper.
    cards = [Card(s, c, shape) for shape in SHAPES for s, c in zip(SURFACES, ("red", "white", "blue", "yellow"), strict=True)]
    write_sheet(tmp_path / "cards.pdf", cards, paper=paper)
    differences = {str(c): difference(rendered(tmp_path / "cards.pdf", i, paper), c, printed(c)) for i, c in enumerate(cards)}
    assert max(differences.values()) < TOLERANCE, differences


def test_every_color_of_the_default_sheet(written: Path) -> None:
    differences = {str(card): difference(rendered(written, i), card, printed(card)) for i, card in enumerate(selected())}
    assert max(differences.values()) < TOLERANCE, differences


def test_a_card_that_looks_otherwise_is_noticed(tmp_path: Path) -> None:
    """What the tolerance is worth: a card with one thing changed is beyond it."""
    striped, dotted, ring = Card("striped", "blue", "heart"), Card("dotted", "blue", "heart"), Card("plain", "blue", "ring")
    write_sheet(tmp_path / "cards.pdf", [striped, dotted, ring])
    for i, card in enumerate((striped, dotted)):
        image, look = rendered(tmp_path / "cards.pdf", i), printed(card)
        changed = [
            look._replace(angle=-look.angle),
            look._replace(period=1.1 * look.period),
            look._replace(size=0.95 * look.size),
            look._replace(ink=(look.ink[2], look.ink[1], look.ink[0])),
            *([look._replace(share=1.2 * look.share)] if card is striped else []),
        ]
        for other in changed:
            assert difference(image, card, other) > TOLERANCE, other
        for surface in {*SURFACES} - {card.surface}:
            assert difference(image, card._replace(surface=surface), look) > 3 * TOLERANCE, surface
    assert difference(rendered(tmp_path / "cards.pdf", 2), ring._replace(shape="circle"), printed(ring)) > 3 * TOLERANCE


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_cards_lie_within_the_page_and_beside_each_other(paper: str) -> None:
    millimeter = 72 / 25.4
    width = {"a4": 210, "letter": 215.9}[paper] * millimeter
    where = places(paper)
    assert len(where) == 6
    for i, a in enumerate(where):
        assert 78 * millimeter < a.edge < 86 * millimeter
        assert a.left > 6 * millimeter  # as far as printers print
        assert a.left + a.edge < width - 6 * millimeter
        assert a.bottom > 10 * millimeter
        for b in where[:i]:
            assert abs(a.left - b.left) > a.edge or abs(a.bottom - b.bottom) > a.edge


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no paper 'a5'; use a4 or letter"):
        write_sheet(tmp_path / "cards.pdf", paper="a5")
    with pytest.raises(ValueError, match="at least one card"):
        write_sheet(tmp_path / "cards.pdf", [])
    monkeypatch.setitem(sys.modules, "reportlab.pdfgen.canvas", None)
    with pytest.raises(
        BackendMissing, match=r"^the sheet needs reportlab, which is not installed; run: pip install reportlab$"
    ):
        write_sheet(tmp_path / "cards.pdf")
    assert not list(tmp_path.iterdir())
