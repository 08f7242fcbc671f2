"""How well a model knows cards: what is counted, against which goal, and the margin that is calibrated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipsight.engines import Image, ModelCard, ModelError, Vectors, open_text
from clipsight.engines.cards import evaluating
from clipsight.engines.cards.evaluating import Examined, Share, calibrate, evaluate, named, photographs, right
from clipsight.engines.cards.scenes import EXAMINING, SIZE, Kinds, held_out, picture, trained
from clipsight.engines.cards.training import Settings
from clipsight.engines.cards.words import BACKGROUND, Card, all_cards
from clipsight.engines.figures import interval
from clipsight.engines.registry import find_model
from clipsight.labels import LabelBank

DEMO = find_model("demo")


def test_the_interval_is_wilsons() -> None:
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert interval(0, 0) == (0.0, 1.0)


def test_a_share_meets_its_goal_from_below_or_above() -> None:
    assert Share("a", 95, 100, 0.95).met
    assert not Share("a", 94, 100, 0.95).met
    assert Share("a", 5, 100, 0.05, least=False).met
    assert not Share("a", 6, 100, 0.05, least=False).met
    assert not Share("a", 0, 0, 0.95).met  # nothing was counted
    told = " ".join(str(Share("it", 94, 100, 0.95)).split())
    assert told == "it 94.0% of 100 (95 %: 87.5% to 97.2%) at least 95%: MISSED"
    assert str(Share("it", 5, 100, 0.05, least=False)).endswith("at most 5%: met")


def test_without_a_background_everything_is_named() -> None:
    """As in `Scores.label`: also what is unlike every label."""
    labels, none = np.eye(3, 4, dtype=np.float32), np.zeros((0, 4), np.float32)
    vectors = np.array([[-0.9, -0.1, -0.1, 0.4], [0.6, 0, 0, 0.8]], np.float32)
    bank = LabelBank(tuple("abc"), labels, "s", margin=0.5)
    assert (
        named(vectors, labels, none, None, 0.5).tolist() == [s.label is not None for s in bank.score(vectors)] == [True, True]
    )


def test_right_is_the_nearest_label() -> None:
    labels = np.eye(3, 4, dtype=np.float32)
    vectors = np.array([[0.9, 0.1, 0, 0.4], [0.1, 0.2, 0.3, 0.9], [0, 0.5, 0.4, 0]], np.float32)
    assert right(vectors, labels, [0, 2, 2]).tolist() == [True, True, False]


def test_named_is_the_rule_of_the_labels() -> None:
    labels, nothing = np.eye(3, 4, dtype=np.float32), np.eye(4, dtype=np.float32)[3:]
    vectors = np.array([[0.9, 0, 0, 0.4], [0.6, 0, 0, 0.8], [0.2, 0, 0, 0.1], [0.5, 0.5, 0, 0.5], [0.5, 0, 0, 0]], np.float32)
    assert named(vectors, labels, nothing, None, 0.0).tolist() == [True, False, True, False, True]
    assert named(vectors, labels, nothing, None, 0.3).tolist() == [True, False, False, False, True]
    assert named(vectors, labels, nothing, 0.6, 0.3).tolist() == [True, False, False, False, False]
    rng = np.random.default_rng(0)
    some, labels, nothing = (rng.normal(0, 1, (n, 6)).astype(np.float32) for n in (200, 5, 3))
    some, labels, nothing = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (some, labels, nothing))
    bank = LabelBank(tuple("abcde"), labels, "s", background=nothing, threshold=0.5, margin=0.2)
    found = named(some, labels, nothing, 0.5, 0.2)
    assert found.tolist() == [scores.label is not None for scores in bank.score(some)]
    assert 20 < found.sum() < 180


class Made(Examined):
    """A model whose pictures have vectors made by hand, with these `cosines` to their labels.

    Each label is an axis, each pair too, and nothing. The first `beaten` pictures are nearer to nothing, the last `wrong` ones
    to another label. pairs: the cosines to pairs, as a share of those to labels.
    """

    def __init__(self, cosines: Vectors, beaten: int = 0, wrong: int = 0, pairs: float = 1.0) -> None:
        self.cosines, self.beaten, self.wrong, self.pair_share = cosines, beaten, wrong, pairs
        self.closed = False
        self.asked: list[tuple[int, Kinds, int]] = []  # seed, cards and number of backgrounds of each series
        cards = all_cards()
        self.pairs = {pair: i for i, pair in enumerate(sorted({(card.color, card.shape) for card in cards}))}
        axes = np.eye(len(cards) + len(self.pairs) + 1, dtype=np.float32)
        self.labels, self.pair_vectors, self.nothing = axes[: len(cards)], axes[len(cards) : -1], axes[-1:]

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def series(self, n: int, seed: int, cards: Kinds, backgrounds: Sequence[Image] | None = None) -> tuple[Vectors, list[Card]]:
        assert n == len(self.cosines)
        self.asked.append((seed, cards, len(backgrounds or ())))
        truth = [cards[(7 * i) % len(cards)] for i in range(n)]
        order = {card: i for i, card in enumerate(all_cards())}
        vectors = np.zeros((n, self.labels.shape[1]), np.float32)
        for i, (card, cosine) in enumerate(zip(truth, self.cosines, strict=True)):
            seen = cards[(7 * i + 1) % len(cards)] if i >= n - self.wrong else card
            vectors[i, order[seen]] = cosine
            vectors[i, len(order) + self.pairs[seen.color, seen.shape]] = self.pair_share * cosine
            vectors[i, -1] = 0.99 if i < self.beaten else 0.0
        return vectors, truth


def kept(model: Made, rule: tuple[float | None, float], n: int) -> float:
    vectors, truth = model.series(n, evaluating.CALIBRATION, trained())
    order = {card: i for i, card in enumerate(all_cards())}
    hits = vectors[right(vectors, model.labels, [order[card] for card in truth])]
    return float(named(hits, model.labels, model.nothing, *rule).mean())


EVEN = np.linspace(0.9, 0.3, 1000, dtype=np.float32)


def test_what_was_asked_for_is_kept() -> None:
    """Of what nothing is like the margin is the cosine: few miss the threshold, the margin takes the rest."""
    model = Made(EVEN)
    threshold, margin = calibrate(model, 1000)
    assert model.asked == [(evaluating.CALIBRATION, trained(), 0)]
    assert 0.95 <= kept(model, (threshold, margin), 1000) < 0.97
    assert threshold == pytest.approx(float(np.quantile(EVEN, 0.002)), abs=1e-4)
    assert margin == pytest.approx(float(np.quantile(EVEN, 0.045)), abs=2e-3)


def test_names_that_nothing_beats_count_against_the_share() -> None:
    model = Made(EVEN, beaten=30)  # those with the highest cosines
    rule = calibrate(model, 1000)
    assert 0.95 <= kept(model, rule, 1000) < 0.97
    assert rule[1] < calibrate(Made(EVEN), 1000)[1]
    assert calibrate(Made(EVEN, beaten=200), 1000)[1] == 0  # no margin gives back what is beaten


def test_wrong_names_lower_neither() -> None:
    cosines = np.concatenate([np.linspace(0.9, 0.5, 500), np.linspace(0.4, 0.1, 100)]).astype(np.float32)
    assert calibrate(Made(cosines, wrong=100), 600) == calibrate(Made(cosines[:500]), 500)


def test_what_is_harder_decides_whole_labels_or_pairs() -> None:
    whole, pairs = calibrate(Made(EVEN), 1000), calibrate(Made(EVEN, pairs=0.8), 1000)
    assert whole[0] is not None
    assert pairs == pytest.approx((0.8 * whole[0], 0.8 * whole[1]), abs=2e-3)
    assert calibrate(Made(EVEN, pairs=1.1), 1000) == pytest.approx(whole, abs=2e-3)


def test_a_model_that_names_nothing_right_gets_neither() -> None:
    assert calibrate(Made(np.linspace(0.9, 0.3, 10, dtype=np.float32), wrong=10), 10) == (None, 0)


def test_what_is_examined_was_neither_trained_nor_calibrated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Made(np.linspace(0.9, 0.3, 100, dtype=np.float32), beaten=4)
    model.card = dataclasses.replace(ModelCard.load(DEMO), threshold=0.35, margin=0.32)
    scenes: list[list[Image]] = []

    def encode(images: Iterable[Image]) -> Vectors:
        scenes.append(list(images))
        return np.concatenate([model.labels[:3], np.repeat(model.nothing, len(scenes[-1]) - 3, 0)])

    monkeypatch.setattr(model, "encode", encode)
    monkeypatch.setattr(evaluating, "Examined", lambda *_: model)
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((30, 30, 3), 40 * i, np.uint8))
    shares = {share.what: share for share in evaluate(DEMO, n=100, photos=tmp_path)}
    assert [(cards, grounds) for _, cards, grounds in model.asked] == [
        (trained(), 0),
        (held_out(), 0),
        (trained() + held_out(), 5),
    ]
    assert model.closed
    seeds = [seed for seed, _, _ in model.asked]
    assert len({*seeds, evaluating.CALIBRATION}) == 4
    assert min(seeds) > EXAMINING > Settings().seed
    assert [len(images) for images in scenes] == [100, 5]
    assert len({image.tobytes() for image in scenes[0]}) == 100
    off = shares["a list of 5, card not on it: named"]
    assert off.hits == 0 < off.of < 100  # each pair is an axis of its own
    hits = {what: (share.hits, share.of) for what, share in shares.items()}
    # Of 100 pictures 4 are nearer to nothing and 9 below the threshold: cosines from 0.9 to 0.3.
    assert hits["right names that are kept"] == hits['"red star" alone, right names kept'] == (87, 100)
    assert hits["no card, made-up scenes: named nevertheless"] == (3, 100)
    assert hits["no card, photographs: named nevertheless"] == (3, 5)
    assert sum(hit == (100, 100) for hit in hits.values()) == 4
    assert not shares["no card, photographs: named nevertheless"].met


def test_pictures_of_a_series_have_a_card_each_and_its_vector() -> None:
    model = Examined(DEMO)
    assert model.labels.shape == (616, 128)
    assert len(model.pairs) == len(model.pair_vectors) == 154
    assert np.array_equal(model.nothing, open_text(DEMO).encode(BACKGROUND))
    vectors, truth = model.series(20, 77, trained())
    assert truth == [picture(77, i, trained(), empty=0).card for i in range(20)]
    images = [picture(77, i, trained(), empty=0).image for i in range(20)]
    assert np.abs(vectors - model.engine.encode(images)).max() < 1e-5
    star = model.pairs["red", "star"]
    assert np.allclose(model.pair_vectors[star], open_text(DEMO).encode(["a photo of a red star"])[0], atol=1e-5)
    ground = [picture(78, i, trained()).image for i in range(2)]
    on, _ = model.series(3, 77, trained(), ground)
    wanted = [picture(77, i, trained(), empty=0, background=ground[i % 2]).image for i in range(3)]
    assert np.abs(on - model.engine.encode(wanted)).max() < 1e-5
    assert model.encode([]).shape == (0, 128)
    model.engine.close()


def test_photographs_are_their_middle(tmp_path: Path) -> None:
    wide = np.zeros((224, 424, 3), np.uint8)
    wide[:, 100:324] = (10, 200, 30)
    (tmp_path / "below").mkdir()
    cv2.imwrite(str(tmp_path / "below" / "a.PNG"), wide)
    cv2.imwrite(str(tmp_path / "b.jpeg"), np.full((500, 300, 3), 90, np.uint8))
    (tmp_path / "c.txt").write_text("no picture")
    found = photographs(tmp_path)
    assert [image.shape for image in found] == [(SIZE, SIZE, 3)] * 2
    assert any((image == (10, 200, 30)).all() for image in found)
    assert any(np.abs(image.astype(int) - 90).max() <= 1 for image in found)


def test_a_folder_without_photographs_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("no picture")
    with pytest.raises(ModelError, match="no picture in it can be read") as caught:
        photographs(tmp_path)
    assert "\n" not in str(caught.value)
