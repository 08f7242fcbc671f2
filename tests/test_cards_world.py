"""The demo's world: its words, its cards from the front and in perspective, and its pictures."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from itertools import combinations, product

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from clipsight.engines import Image
from clipsight.engines.cards import scenes, words
from clipsight.engines.cards.drawing import bgr, corners, face, lay, outlines, printed, shade
from clipsight.engines.cards.scenes import SIZE, held_out, made_up, picture, trained
from clipsight.engines.cards.words import (
    BACKGROUND,
    COLOR_WORDS,
    COLORS,
    NOTHING,
    SHAPES,
    SURFACES,
    Card,
    all_cards,
    corpus,
    indices,
    is_held_out,
    read_label,
    sentence,
)

KINDS = {"surface": SURFACES, "color": COLOR_WORDS, "shape": SHAPES}
STAR = Card("striped", "red", "star")


def meanings() -> dict[str, set[tuple[str, str]]]:
    """What each single word may mean: ("shape", "cross") of "sign"."""
    found: dict[str, set[tuple[str, str]]] = {}
    for kind, labels in KINDS.items():
        for label, others in labels.items():
            for word in " ".join((label, *others)).split():
                found.setdefault(word, set()).add((kind, label))
    return found


def understood(text: str) -> set[tuple[str, str]]:
    known = meanings()
    return {meaning for word in text.split() for meaning in known.get(word, ())}


def parts(card: Card) -> set[tuple[str, str]]:
    return set(zip(KINDS, card, strict=True))


# Words


def test_there_are_616_labels_in_the_order_of_their_words() -> None:
    labels = [str(card) for card in all_cards()]
    assert len(labels) == len(set(labels)) == 4 * 11 * 14 == 616
    assert [indices(card) for card in all_cards()] == sorted(indices(card) for card in all_cards())
    assert COLORS.keys() == COLOR_WORDS.keys()


def test_a_ninth_is_held_out_and_every_word_and_pair_of_words_is_still_trained() -> None:
    kept, out = trained(), held_out()
    assert {*kept, *out} == {*all_cards()}
    assert len(kept) + len(out) == 616
    assert all(map(is_held_out, out))
    assert not any(map(is_held_out, kept))
    assert 1 / 10 < len(out) / 616 < 1 / 8
    for at, labels in enumerate(KINDS.values()):
        of_each = [sum(card[at] == label for card in out) for label in labels]
        assert min(of_each) > 0
        assert max(of_each) <= 2 * min(of_each)
    for (a, first), (b, second) in combinations(enumerate(KINDS.values()), 2):
        assert {(card[a], card[b]) for card in kept} == set(product(first, second))


def test_a_label_is_read_back() -> None:
    assert all(read_label(str(card)) == card for card in all_cards())


@pytest.mark.parametrize("text", ["plain red dog", "red plain star", "Plain red star"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no card's label"):
        read_label(text)


@pytest.mark.parametrize("text", ["", "red star", "a striped red star", "plain  red star"])
def test_a_text_that_is_not_three_words_is_refused_too(text: str) -> None:
    with pytest.raises(ValueError, match="no card's label"):
        read_label(text)


def test_no_word_has_two_meanings_or_is_said_of_nothing() -> None:
    known = meanings()
    assert {word: found for word, found in known.items() if len(found) > 1} == {}
    said = " ".join((*words._FRAMES, *words._ANY_SHAPE, *NOTHING)).format(a="", bare="").split()
    assert not known.keys() & set(said)
    assert set(BACKGROUND) <= set(NOTHING)
    assert len(set(NOTHING)) == len(NOTHING)


def test_a_sentence_says_what_it_was_given_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    for card in all_cards():
        assert understood(sentence(rng, *card)) == parts(card)
        given = [word if rng.random() < 0.5 else None for word in card]
        assert understood(sentence(rng, *given)) == {part for part in parts(card) if part[1] in given}


def test_sentences_differ_in_synonyms_order_and_frame() -> None:
    rng = np.random.default_rng(2)
    said = {sentence(rng, *STAR) for _ in range(300)}
    assert len(said) > 60
    for piece in ("striped red star", "red striped star", "scarlet", "with stripes", "stripy", "a photo of", "on a table"):
        assert any(piece in text for text in said), piece
    many = [sentence(rng, *card) for card in all_cards()]
    assert not [text for text in many if re.search(r"\ban [^aeiou]", text)]
    assert any(" an o" in text for text in many)
    assert {sentence(np.random.default_rng(3), *STAR) for _ in range(5)} == {sentence(np.random.default_rng(3), *STAR)}


def test_the_corpus_has_every_word_and_no_card_that_is_held_out() -> None:
    said = list(corpus())
    assert said == list(corpus())
    assert set(meanings()) <= {word for text in said for word in text.split()}
    assert set(NOTHING) <= set(said)
    cards = {frozenset(found) for text in said if len(found := understood(text)) >= 3}
    assert cards == {frozenset(parts(card)) for card in trained()}


# Drawing


def test_every_card_differs_visibly_from_every_other() -> None:
    for color in COLORS:
        same = [card for card in all_cards() if card.color == color]
        faces = np.stack([face(card, printed(card), 64)[0] for card in same])
        for i, one in enumerate(faces[1:], 1):
            changed = (cv2.absdiff(faces[:i], np.broadcast_to(one, faces[:i].shape)).max(3) > 60).mean((1, 2))
            closest = int(changed.argmin())
            assert changed[closest] > 0.015, f"{same[i]} and {same[closest]} differ in {changed[closest]:.1%} of their pixels"
    for a, b in combinations(COLORS, 2):
        assert np.abs(np.subtract(COLORS[a], COLORS[b])).max() > 0.25, f"{a} and {b}"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_square_and_stays_within(shape: str) -> None:
    assert outlines().keys() == SHAPES.keys()
    points = np.concatenate(outlines()[shape])
    assert points.dtype == np.float32
    assert np.abs(points).max() <= 1
    assert np.ptp(points, axis=0).max() > 1.55
    assert np.ptp(points, axis=0).min() > 1.2
    assert np.abs(points.max(0) + points.min(0)).max() < 0.25  # about in the middle


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_a_plain_card_is_its_colors_ink_on_paper_that_shows_it(color: str, shape: str) -> None:
    card = Card("plain", color, shape)
    look = printed(card)
    assert look.ink == bgr(color) == tuple(255 * part for part in COLORS[color][::-1])
    picture, mask = face(card, look, 101)
    assert picture.shape == (101, 101, 3)
    assert picture.dtype == mask.dtype == np.uint8
    assert (mask == 255).all()
    assert look.paper is not None
    inked = (np.abs(picture - np.array(look.ink)).max(2) <= 1).mean()
    bare = (np.abs(picture - np.array(look.paper)).max(2) <= 1).mean()
    assert inked > 0.09
    assert inked + bare > 0.9
    assert np.abs(picture[0] - np.array(look.paper)).max() <= 1
    assert abs(float(np.dot([0.114, 0.587, 0.299], np.subtract(look.ink, look.paper)))) > 70  # luma, 0..255


@pytest.mark.parametrize("shape", SHAPES)
def test_surfaces_differ_in_how_much_is_inked_and_where(shape: str) -> None:
    def ink(surface: str) -> NDArray[np.uint8]:
        card = Card(surface, "black", shape)
        return face(card, printed(card)._replace(paper=None), 201)[1]

    plain, striped, dotted, outlined = (ink(surface) for surface in SURFACES)
    border = cv2.dilate(plain, np.ones((7, 7))) > 0
    for patterned in (striped, dotted):
        assert 0.08 < (patterned[plain == 255] < 50).mean() < 0.6
        assert not patterned[~border].any()
    inside = cv2.erode(plain, np.ones((21, 21))) > 0
    assert inside.any()
    assert outlined[inside].mean() < 3  # a dent reaches further in than the line is wide
    edge = (cv2.morphologyEx(plain, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 200) & (plain > 200)
    assert (outlined[edge] > 200).all()
    band = (plain == 255) & (cv2.erode(plain, np.ones((9, 9))) == 0)  # 4 pixels wide, of the line's 6 that are within
    assert outlined[band].mean() > 245


def test_a_look_says_size_angle_and_height() -> None:
    look = printed(STAR)
    high, mask = face(STAR, look._replace(aspect=1.4), 100)
    assert high.shape == (140, 100, 3)
    assert mask.shape == (140, 100)
    straight = face(Card("striped", "red", "square"), look._replace(angle=0.0), 100)[0]
    middle = straight[35:66, 20:80]
    assert np.ptp(middle, axis=0).max() == 0  # upright stripes
    assert np.ptp(middle, axis=1).max() > 60
    small, large = (face(Card("plain", "red", "square"), look._replace(size=size), 200)[0] for size in (0.4, 0.8))
    inked = [(np.abs(image - np.array(look.ink)).max(2) < 3).mean() for image in (small, large)]
    assert inked[1] == pytest.approx(4 * inked[0], rel=0.05)


def test_a_card_that_is_not_turned_is_a_rectangle() -> None:
    assert corners((100, 80), (30, 40), 0, 0, 0).tolist() == [[70, 40], [130, 40], [130, 120], [70, 120]]


def test_turning_a_card_turns_its_corners() -> None:
    rolled = corners((0, 0), (30, 40), 0, 0, np.pi / 2)  # clockwise
    assert rolled == pytest.approx(np.array([[40, -30], [40, 30], [-40, 30], [-40, -30]]), abs=1e-3)
    yawed = corners((0, 0), (30, 40), 0.5, 0, 0)
    left, right = yawed[3, 1] - yawed[0, 1], yawed[2, 1] - yawed[1, 1]
    assert right < 80 < left  # the far side is the shorter one
    assert np.ptp(yawed[:, 0]) < 60
    pitched = corners((0, 0), (30, 40), 0, 0.5, 0)
    assert pitched[2, 0] - pitched[3, 0] < 60 < pitched[1, 0] - pitched[0, 0]
    near, far = (np.ptp(corners((0, 0), (30, 40), 0.5, 0, 0, distance)[:2, 1]) for distance in (2.5, 6.0))
    assert near > far > 0


@pytest.fixture
def noise() -> Image:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def filled(where: NDArray[np.float32], shape: tuple[int, ...], grow: int) -> NDArray[np.bool_]:
    """Where the quadrilateral is, made larger (or smaller) by so many pixels."""
    room = 50  # around the picture, so that nothing happens at its border
    area = np.zeros((shape[0] + 2 * room, shape[1] + 2 * room), np.uint8)
    cv2.fillConvexPoly(area, np.rint(where + room).astype(np.int32), 255)
    kernel = np.ones((2 * abs(grow) + 1,) * 2)
    changed = cv2.dilate(area, kernel) if grow > 0 else cv2.erode(area, kernel)
    return np.asarray(changed)[room:-room, room:-room] > 0


@pytest.mark.parametrize("center", [(80, 60), (150, 20), (5, 115)])
def test_laying_a_card_touches_nothing_outside_its_corners(noise: Image, center: tuple[int, int]) -> None:
    image, where = noise.copy(), corners(center, (30, 38), 0.4, -0.3, 0.5)
    picture, mask = face(STAR, printed(STAR), 60)
    cover = lay(image, picture, mask, where)
    outside, inside = ~filled(where, image.shape, 2), filled(where, image.shape, -2)
    assert np.array_equal(image[outside], noise[outside])
    assert not cover[outside].any()
    assert inside.sum() > 500
    assert (cover[inside] == 255).all()
    paper = np.array(printed(STAR).paper)
    assert (np.abs(image[inside] - paper).max(1) <= 1).mean() > 0.3


@pytest.mark.parametrize(("x", "y"), [(40, 30), (-20, 30), (130, 90), (40, -33)])
def test_an_upright_card_is_its_face_as_far_as_it_is_in_the_picture(noise: Image, x: int, y: int) -> None:
    image = noise.copy()
    picture, mask = face(STAR, printed(STAR), 60)
    cover = lay(image, picture, mask, corners((x + 30, y + 30), (30, 30), 0, 0, 0))
    large, wanted = np.zeros((320, 360, 3), np.uint8), np.zeros((320, 360), np.uint8)
    large[100:220, 100:260] = noise
    large[100 + y : 160 + y, 100 + x : 160 + x] = picture
    wanted[100 + y : 160 + y, 100 + x : 160 + x] = 255
    assert np.abs(image.astype(int) - large[100:220, 100:260]).max() <= 1
    assert np.array_equal(cover, wanted[100:220, 100:260])


@pytest.mark.parametrize("center", [(-90, 60), (80, -90), (400, 60), (80, 400), (-90, -90), (-40, 400)])
def test_a_card_outside_of_the_picture_leaves_it_as_it_is(noise: Image, center: tuple[int, int]) -> None:
    image = noise.copy()
    picture, mask = face(STAR, printed(STAR), 60)
    cover = lay(image, picture, mask, corners(center, (30, 38), 0.2, 0.2, 0.3))
    assert not cover.any()
    assert cover.shape == (120, 160)
    assert np.array_equal(image, noise)


def test_what_lies_below_a_card_that_is_cut_out_is_seen_through_its_gaps(noise: Image) -> None:
    image = noise.copy()
    picture, mask = face(STAR, printed(STAR)._replace(paper=None), 60)
    cover = lay(image, picture, mask, corners((80, 60), (30, 30), 0, 0, 0))
    assert np.array_equal(cover[30:90, 50:110], mask)
    assert np.array_equal(image[cover == 0], noise[cover == 0])
    assert np.abs(image[cover == 255] - np.array(bgr("red"))).max() <= 1
    assert 0.05 < (cover == 255).sum() / 3600 < 0.3


def test_shade_darkens_by_the_shadow() -> None:
    image = np.full((1, 3, 3), 200, np.uint8)
    shade(image, np.array([[0, 51, 255]], np.uint8))
    assert image[0, :, 0].tolist() == [200, 160, 0]


# Scenes


def prints(n: int) -> list[str]:
    """Pictures and their truth, hashed."""
    made = [picture(7, i, trained()) for i in range(n)]
    return [hashlib.sha256(m.image.tobytes() + m.cover.tobytes() + str(m.card).encode()).hexdigest() for m in made]


def test_a_picture_is_the_same_each_time_and_in_another_process() -> None:
    code = (
        "import sys, hashlib, cv2\n"
        "from clipsight.engines.cards.scenes import picture, trained\n"
        "cv2.setNumThreads(1)\n"  # as where training renders
        "for i in reversed(range(6)):\n"
        "    m = picture(7, i, trained())\n"
        "    print(hashlib.sha256(m.image.tobytes() + m.cover.tobytes() + str(m.card).encode()).hexdigest())"
    )
    here = prints(6)
    assert here == prints(6)
    assert len(set(here)) == 6
    assert picture(8, 0, trained()).image.tobytes() != picture(7, 0, trained()).image.tobytes()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == here[::-1], done.stderr


def test_pictures_are_what_a_camera_may_see() -> None:
    made = [picture(5, i, trained()) for i in range(200)]
    for m in made:
        assert m.image.shape == (SIZE, SIZE, 3) == (224, 224, 3)
        assert m.cover.shape == (224, 224)
        assert m.image.dtype == m.cover.dtype == np.uint8
        assert m.image.std() > 5
        assert m.cover.any() == (m.card is not None)
    cards = [m.card for m in made if m.card]
    assert 10 <= len(made) - len(cards) <= 40
    assert not any(map(is_held_out, cards))
    assert {card.shape for card in cards} == {*SHAPES}
    assert {card.color for card in cards} == {*COLORS}
    shares = np.array([m.cover.mean() / 255 for m in made if m.card])
    assert 0.3 < shares.mean() < 0.5
    assert shares.min() > 0.02  # those that are cut out cover least
    assert shares.max() < 1
    assert 60 < np.mean([m.image.mean() for m in made]) < 160


def test_the_given_cards_alone_are_drawn() -> None:
    some = held_out()[:3]
    drawn = {picture(1, i, some, empty=0).card for i in range(30)}
    assert drawn == set(some)


def test_empty_is_the_share_of_pictures_without_a_card() -> None:
    assert all(picture(2, i, trained(), empty=0).card for i in range(30))
    for i in range(10):
        nothing = picture(2, i, trained(), empty=1)
        assert nothing.card is None
        assert not nothing.cover.any()
    half = sum(picture(2, i, trained(), empty=0.5).card is None for i in range(60))
    assert 18 <= half <= 42


def test_easy_pictures_show_cards_large_and_upright() -> None:
    easy, hard = ([picture(3, i, trained(), empty=0, strength=strength).cover for i in range(60)] for strength in (0.0, 1.0))
    assert np.mean(easy) > 1.4 * np.mean(hard)
    for cover in easy:
        card = cover == 255
        assert np.array_equal(card, np.outer(card.any(1), card.any(0)))
    skewed = [cover == 255 for cover in hard]
    assert np.mean([card.sum() < 0.95 * np.outer(card.any(1), card.any(0)).sum() for card in skewed]) > 0.5


def test_things_lie_over_hard_cards_and_blank_ones_are_among_hard_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("_cover", "_blank"):
        monkeypatch.setattr(scenes, name, lambda *_, name=name: done.append(name))
    for i in range(200):
        picture(3, i, trained(), empty=0.5, strength=0)
    assert done == []
    for i in range(200):
        picture(3, i, trained(), empty=0.5)
    assert 10 <= done.count("_cover") <= 45  # a quarter of the cards
    assert 20 <= done.count("_blank") <= 65


def fits(image: Image, background: Image, where: NDArray[np.bool_]) -> float:
    """How far the picture is from the background times a light that varies evenly, plus haze: levels, at most."""
    at = ((np.arange(SIZE) + 0.5) * 2 / SIZE - 0.5).clip(0, 1)  # between the corners' lights, as resize goes
    v, u = np.meshgrid(at, at, indexing="ij")
    worst = 0.0
    for channel in range(3):
        below = background[..., channel].astype(float)
        columns = np.stack([below, u * below, v * below, u * v * below, np.ones_like(u)], -1)[where]
        seen = image[..., channel][where].astype(float)
        found, *_ = np.linalg.lstsq(columns, seen, rcond=None)
        worst = max(worst, float(np.abs(columns @ found - seen).max()))
    return worst


def test_an_easy_picture_is_the_given_background_in_some_light_and_a_card_on_it() -> None:
    background = np.minimum(made_up(np.random.default_rng(4)), 150)
    before = background.copy()
    everywhere = np.ones((SIZE, SIZE), bool)
    free = 0
    for i in range(8):
        nothing = picture(4, i, trained(), empty=1, background=background, strength=0)
        assert fits(nothing.image, background, everywhere) < 2
        assert nothing.image.mean() > 0.4 * background.mean()
        shown = picture(4, i, trained(), empty=0, background=background, strength=0)
        away = cv2.dilate(shown.cover, np.ones((47, 47))) == 0  # its shadow is as far as 0.09 of its width, and soft
        if away.sum() > 500:
            free += 1
            assert fits(shown.image, background, away) < 2
            assert fits(shown.image, background, everywhere) > 20
    assert free >= 2
    assert np.array_equal(background, before)


def test_the_background_shows_where_there_is_no_card_and_only_there() -> None:
    black, white = (np.full((SIZE, SIZE, 3), level, np.uint8) for level in (0, 255))
    seen = 0
    for i in range(24):
        on_black, on_white = (picture(6, i, trained(), empty=0, background=ground) for ground in (black, white))
        assert on_black.card == on_white.card
        assert np.array_equal(on_black.cover, on_white.cover)
        differs = np.abs(on_black.image.astype(int) - on_white.image).mean(2)
        card = cv2.erode(on_black.cover, np.ones((15, 15))) == 255
        ground = cv2.dilate(on_black.cover, np.ones((15, 15))) == 0
        if card.sum() > 300:
            assert differs[card].mean() < 6  # JPEG
            seen += 1
        if ground.sum() > 1000:
            assert np.median(differs[ground]) > 60
    assert seen > 15


def test_backgrounds_are_not_alike() -> None:
    made = np.stack([made_up(np.random.default_rng((9, i))) for i in range(40)])
    assert made.shape == (40, SIZE, SIZE, 3)
    levels = made.reshape(40, -1).mean(1)
    assert levels.std() > 25
    detail = np.abs(np.diff(made.astype(int), axis=2)).mean((1, 2, 3))
    assert detail.min() < 1.5
    assert detail.max() > 3
