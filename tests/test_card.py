"""A model's card: read, refused, written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipsight.engines import ModelCard, ModelError

FACTS: dict[str, Any] = {
    "id": "m", "space": "s", "size": 224, "dim": 512, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
}  # fmt: skip


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    card = ModelCard(**{**FACTS, "mean": (0.1, 0.2, 0.3)}, resize="pad", arch={"embed_dim": 512}, context_length=77)
    card.save(tmp_path)
    assert ModelCard.load(tmp_path) == card
    hash(card)


def test_what_competes_with_words_and_when_none_of_them_is_named(tmp_path: Path) -> None:
    plain = ModelCard(**FACTS)
    assert (plain.background, plain.threshold, plain.margin, plain.limits) == ((), None, 0.0, "")
    card = ModelCard(**FACTS, background=("nothing", "an empty table"), threshold=0.25, margin=0.1, limits="knows cards alone")
    card.save(tmp_path)
    read = ModelCard.load(tmp_path)
    assert read == card
    assert read.background == ("nothing", "an empty table")  # a tuple again, so that a card stays hashable
    assert (read.threshold, read.margin, read.limits) == (0.25, 0.1, "knows cards alone")
    hash(read)
    plain.save(tmp_path)
    assert ModelCard.load(tmp_path) == plain
    assert ModelCard(**{**FACTS, "background": []}, threshold=-1).threshold == -1


def test_the_real_encoders_card(real: Path) -> None:
    card = ModelCard.load(real / "encoder")
    assert (card.dim, card.size, card.resize, card.activation) == (1280, 224, "crop", "softmax")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 0}, "'size'"),
        ({"dim": "512"}, "'dim'"),
        ({"mean": [0.5]}, "'mean'"),
        ({"std": [0.5, 0.5, 0]}, "'std'"),
        ({"resize": "stretch"}, "crop, squash, pad"),
        ({"activation": "relu"}, "softmax, sigmoid"),
        ({"space": ""}, "'space'"),
        ({"logit_scale": "big"}, "'logit_scale'"),
        ({"background": "nothing"}, "'background' must be a list of texts"),
        ({"background": None}, "'background'"),
        ({"background": ["nothing", ""]}, "'background'"),
        ({"background": ["nothing", 3]}, "'background'"),
        ({"threshold": "0.2"}, "'threshold' must be a number or null"),
        ({"threshold": True}, "'threshold'"),
        ({"threshold": [0.2]}, "'threshold'"),
        ({"margin": "0.2"}, "'margin' must be a number"),
        ({"margin": True}, "'margin'"),
        ({"margin": None}, "'margin'"),
        ({"limits": None}, "'limits' must be a text"),
        ({"limits": ["cards"]}, "'limits'"),
        ({"filer": "bicubic"}, "unknown field 'filer'"),
    ],
)
def test_a_wrong_card_is_one_line_that_names_file_and_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "card.json").write_text(json.dumps({**FACTS, **change}))
    with pytest.raises(ModelError) as caught:
        ModelCard.load(tmp_path)
    assert said in str(caught.value)
    assert "card.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '"card"', "\x00"])
def test_what_is_no_card_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ModelError, match=r"card\.json"):
        ModelCard.load(tmp_path)


def test_missing_card_and_missing_field(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        ModelCard.load(tmp_path)
    facts = dict(FACTS)
    del facts["space"]
    (tmp_path / "card.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="'space' is missing"):
        ModelCard.load(tmp_path)
