"""What flows through the stream: a `Frame` from a source, a `Result` to whoever shows or keeps it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ..engines import Box, Image
from ..labels import Scores

State = Literal["live", "stalled", "reconnecting"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture and its times.

    image: H x W x 3 uint8 BGR, read-only. index: 0, 1, 2 ... in its source. time: seconds in the medium (a camera: since
    it was opened). arrived: `time.perf_counter()` when it reached this program. pts, time_base: the container's own
    time, where there is one. source: the source's name.
    """

    image: Image
    index: int
    time: float
    arrived: float
    pts: int | None = None
    time_base: Fraction | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """How a live run is doing, for the overlay's small line.

    display_fps: frames shown a second. recognitions: recognitions a second. age: seconds between the arrival of the frame
    whose scores are shown and their being shown; None before the first.
    """

    display_fps: float
    recognitions: float
    age: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A frame and what is known of it when it is shown.

    scores: the newest scores, None before the first. scored_frame: the frame they belong to (in `live` often an older
    one). label: the name to show, None when nothing on the list fits. state: whether frames are arriving. seen: the part
    of the frame that the model sees. figures: how a live run is doing. note: what the model does not know, to be shown.
    """

    frame: Frame
    scores: Scores | None = None
    scored_frame: Frame | None = None
    label: str | None = None
    state: State = "live"
    seen: Box | None = None
    figures: Figures | None = None
    note: str = ""


Recognize = Callable[[Sequence[Frame]], Sequence[Scores]]
