"""The cards in words: shapes, colors and surfaces, the labels they make, and the sentences people say of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

# The first word of each is the label's, the others mean the same.
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "round"),
    "square": ("box",),
    "triangle": (),
    "star": (),
    "heart": (),
    "cross": ("plus", "plus sign"),
    "ring": ("hoop", "donut"),
    "moon": ("crescent", "crescent moon"),
    "arrow": (),
    "drop": ("teardrop", "droplet"),
    "bolt": ("lightning bolt", "flash"),
    "flower": ("blossom",),
    "house": ("home",),
    "fish": (),
}
# RGB, 0..1
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.08, 0.10),
    "orange": (0.97, 0.50, 0.05),
    "yellow": (0.96, 0.88, 0.10),
    "green": (0.10, 0.60, 0.15),
    "turquoise": (0.10, 0.78, 0.75),
    "blue": (0.10, 0.22, 0.85),
    "purple": (0.48, 0.12, 0.65),
    "pink": (0.97, 0.52, 0.75),
    "brown": (0.42, 0.24, 0.11),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
}
COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "orange": (),
    "yellow": (),
    "green": (),
    "turquoise": ("teal", "cyan"),
    "blue": (),
    "purple": ("violet",),
    "pink": ("rose",),
    "brown": ("chocolate",),
    "white": (),
    "black": (),
}
SURFACES: dict[str, tuple[str, ...]] = {
    "plain": ("solid", "filled"),
    "striped": ("stripy", "stripes"),
    "dotted": ("spotted", "dots", "polka dots"),
    "outlined": ("hollow", "outline"),
}
# Sentences that are true of a picture without a card; the first few are what a bank's background is made of.
NOTHING = (
    "nothing",
    "a photo of nothing",
    "a photo without a card",
    "an empty scene",
    "just the background",
    "a picture of a wall",
    "an empty table",
    "a room without cards",
    "no shape",
    "a blank card",
    "no card at all",
    "something else",
    "a photo of the floor",
    "the background only",
    "a person",
    "a photo of something else",
)
BACKGROUND = NOTHING[:9]

_FRAMES = (
    "a photo of {a}",
    "a photo of {a}",
    "{bare}",
    "{bare}",
    "{a}",
    "a picture of {a}",
    "an image of {a}",
    "a card with {a}",
    "a card with {a} on it",
    "{a} on a card",
    "{a} on a table",
    "this is {a}",
    "I see {a}",
    "a blurry photo of {a}",
    "a photo of the {bare}",
    "a card showing {a}",
    "somebody holds {a}",
)
_ANY_SHAPE = ("shape", "thing", "figure", "object")
_FILLERS = {
    "something",
    *_ANY_SHAPE,
    *" ".join(_FRAMES).format(a="", bare="").lower().split(),
    "an",
    "of",
    "with",
    "that",
    "is",
}


class Card(NamedTuple):
    """What is printed on a card; `str` gives its label, "striped red star"."""

    surface: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.surface} {self.color} {self.shape}"


def all_cards() -> tuple[Card, ...]:
    """Every card there is, in the order of the shipped bank."""
    return tuple(Card(*c) for c in product(SURFACES, COLORS, SHAPES))


def is_held_out(card: Card) -> bool:
    """Whether a card is kept out of training, out of its pictures and out of its sentences: 1 in 9, spread evenly."""
    surface, color, shape = indices(card)
    return (2 * surface + 4 * color + 7 * shape) % 9 == 0


def indices(card: Card) -> tuple[int, int, int]:
    """Where its words stand in SURFACES, COLORS and SHAPES."""
    return list(SURFACES).index(card.surface), list(COLORS).index(card.color), list(SHAPES).index(card.shape)


def read_label(label: str) -> Card:
    """The card of a label; raises ValueError for any other text."""
    words = label.split(" ")
    if len(words) != 3 or (card := Card(*words)) not in all_cards():
        raise ValueError(f"{label!r} is no card's label")
    return card


def is_true(text: str, card: Card) -> bool:
    """Whether a few words ("red star", "a star with stripes") are true of a card; False where one is none of this world's."""
    rest, said = f" {text.lower()} ", 0
    for part, word in zip((SURFACES, COLOR_WORDS, SHAPES), card, strict=True):
        for meaning, others in part.items():
            for name in sorted((meaning, *others), key=len, reverse=True):  # "lightning bolt" before "bolt"
                for form in (name, f"{name}s", f"{name}es"):
                    if f" {form} " in rest:
                        if meaning != word:
                            return False
                        rest, said = rest.replace(f" {form} ", " "), said + 1
    return said > 0 and not set(rest.split()) - _FILLERS


def sentence(rng: np.random.Generator, surface: str | None = None, color: str | None = None, shape: str | None = None) -> str:
    """Something one might say of a card, or of all cards with what is given: synonyms, word order and frame by chance."""

    def either(word: str, others: tuple[str, ...]) -> str:
        return word if not others or rng.random() < 0.6 else others[rng.integers(len(others))]

    before, behind = [either(color, COLOR_WORDS[color])] if color else [], ""
    if surface:
        word = either(surface, SURFACES[surface])
        if word in ("stripes", "dots", "polka dots"):
            behind = f" with {word}"
        elif word == "outline":
            behind = ""
            before = ["outline of a", *before]
        else:
            before.insert(rng.integers(len(before) + 1), word)
    noun = either(shape, SHAPES[shape]) if shape else _ANY_SHAPE[rng.integers(len(_ANY_SHAPE))]
    bare = " ".join([*before, noun]) + behind
    # Those who fill a template write "a orange star" too.
    article = "an" if bare[0] in "aeiou" and rng.random() < 0.7 else "a"
    return _FRAMES[rng.integers(len(_FRAMES))].format(a=f"{article} {bare}", bare=bare)


def corpus() -> Iterator[str]:
    """Sentences with every word of this world in them, for a tokenizer to be made of."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        for card in all_cards():
            if not is_held_out(card):
                yield sentence(rng, *card)
    yield from (*SURFACES, *COLORS, *SHAPES, *NOTHING)
