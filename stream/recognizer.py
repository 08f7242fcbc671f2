"""Frames in, `Scores` out: an engine and a bank that belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..engines import Box, Engine, seen
from ..labels import LabelBank, Scores
from .frame import Frame


class Recognizer:
    """Scores frames against a bank. Its `bank` may be replaced while it runs, from any thread.

    Any callable of the same form (frames in, as many `Scores` out) can stand in its place.
    Raises `SpaceMismatch` for a bank of another embedding space than the engine's.
    """

    def __init__(self, engine: Engine, bank: LabelBank) -> None:
        self.engine = engine
        self.bank = bank

    @property
    def bank(self) -> LabelBank:
        """The labels to score against."""
        return self._bank

    @bank.setter
    def bank(self, bank: LabelBank) -> None:
        bank.check(self.engine.card)
        self._bank = bank

    def __call__(self, frames: Sequence[Frame]) -> list[Scores]:
        """n frames -> n `Scores`; raises what the engine raises."""
        return self.submit(frames)()

    def submit(self, frames: Sequence[Frame]) -> Callable[[], list[Scores]]:
        """Start on n frames and return what waits for their `Scores`; an engine with a device goes on by itself meanwhile."""
        bank = self._bank  # one bank for the whole call, whoever replaces it meanwhile
        pending = self.engine.submit([frame.image for frame in frames])
        return lambda: bank.score(pending.result())

    @property
    def note(self) -> str:
        """What the model does not know, by its card; empty where it says nothing."""
        card = self.engine.card
        return f"{card.id}: {card.limits}" if card.limits else ""

    def seen(self, frame: Frame) -> Box:
        """The part of the frame that the model sees, in pixels."""
        height, width = frame.image.shape[:2]
        return seen(height, width, self.engine.card)
