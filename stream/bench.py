"""Does the display hold its rate beside the encoder? Minutes with it alternate with minutes without.

A simulated camera is shown through the whole live path: capture, `live`, `draw`, and in the place of a screen a copy of
the drawn picture, which is what a window makes of it, or a JPEG of it, which is what a server does. In the control
minutes a recognizer that returns at once takes the encoder's place. Frame age is read out of the picture
(`simulated.read_clock`) at the moment it has been shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..engines import Box, Engine, Image
from ..labels import LabelBank
from .drawing import draw
from .frame import Figures, Frame, Recognize, Result
from .meter import Quantiles
from .recognizer import Recognizer
from .running import live
from .sources.simulated import SimulatedCamera, read_clock

_SETTLE = 2.0  # seconds at the start of a minute that are not counted: threads start, caches fill


@dataclass
class Phase:
    """What was measured in the minutes of one kind; times in seconds."""

    name: str
    seconds: float = 0.0
    intervals: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    recognized: int = 0
    dropped: int = 0

    @property
    def fps(self) -> float:
        """Frames shown a second."""
        return len(self.intervals) / self.seconds

    @property
    def over_50ms(self) -> int:
        """Intervals longer than 50 ms."""
        return sum(i > 0.05 for i in self.intervals)

    def row(self) -> str:
        """One line of the table."""
        gap, age = Quantiles.of(self.intervals), Quantiles.of(self.ages)
        return (
            f"{self.name:9} {self.fps:6.2f}  {gap.p50:6.1f} {gap.p95:6.1f} {gap.p99:6.1f} {max(self.intervals) * 1e3:6.1f} "
            f"{self.over_50ms:5}   {age.p50:6.1f} {age.p95:6.1f} {age.p99:6.1f}   {self.recognized / self.seconds:6.1f} "
            f"{self.dropped:7}"
        )


HEADER = (
    f"{'':9} {'shown':>6}  {'interval ms':>27} {'over':>5}   {'frame age ms':>20}   {'recog-':>6}\n"
    f"{'':9} {'fps':>6}  {'p50':>6} {'p95':>6} {'p99':>6} {'max':>6} {'50 ms':>5}   {'p50':>6} {'p95':>6} {'p99':>6}   "
    f"{'nized/s':>6} {'dropped':>7}"
)


def bench(
    engine: Engine,
    *,
    labels: int,
    size: tuple[int, int],
    fps: int,
    seconds: float,
    rounds: int,
    jpeg: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[Phase, Phase]:
    """Measure (control, encoder) in turn, `rounds` times `seconds` each, and print a table and what it means.

    labels: size of the bank (random vectors). size: width, height. jpeg: show by encoding a JPEG.
    Raises what the engine raises.
    """
    vectors = np.random.default_rng(0).standard_normal((labels, engine.card.dim), np.float32)
    bank = LabelBank(tuple(f"label {i}" for i in range(labels)), vectors, engine.card.space)
    recognizer = Recognizer(engine, bank)
    answers = bank.score(vectors[:64])
    at_once: Recognize = lambda frames: [answers[frame.index % 64] for frame in frames]  # noqa: E731
    control, encoder = Phase("control"), Phase("encoder")
    say(HEADER)
    for _ in range(rounds):
        for total, recognize in ((control, at_once), (encoder, recognizer)):
            part = _minute(total.name, recognize, size, fps, seconds, jpeg)
            say(part.row())
            total.seconds += part.seconds
            total.intervals += part.intervals
            total.ages += part.ages
            total.recognized += part.recognized
            total.dropped += part.dropped
    say("together")
    say(control.row())
    say(encoder.row())
    more = Quantiles.of(encoder.intervals).p99 - Quantiles.of(control.intervals).p99
    say(f"p99 of the interval beside the encoder: {more:+.1f} ms against the control (promised: at most +2)")
    say(f"intervals over 50 ms: {encoder.over_50ms} beside the encoder, {control.over_50ms} in the control")
    return control, encoder


def bench_draw(say: Callable[[str], None] = print) -> None:
    """Time `draw` into a buffer that is there, with 500 labels: the same scores again, and new ones for every frame."""
    rng = np.random.default_rng(0)
    bank = LabelBank(tuple(f"label {i}" for i in range(500)), rng.standard_normal((500, 512), np.float32), "bench")
    scores = bank.score(bank.vectors)
    figures = Figures(30, 5, 0.2)
    say("draw, p50 ms          the same scores   new scores   a copy alone")
    for width, height in ((1280, 720), (1920, 1080), (3840, 2160)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        frame = Frame(image, 0, 0.0, 0.0)
        box = (width - height) // 2, 0, (width + height) // 2, height
        out = image.copy()

        def one(i: int, frame: Frame = frame, box: Box = box, out: Image = out) -> None:
            draw(
                frame.image,
                Result(frame, scores[i], frame, scores[i].label, seen=box, figures=figures, note="knows a few things"),
                out=out,
            )

        same = _p50(lambda _, one=one: one(0))  # type: ignore[misc]
        new = _p50(lambda i, one=one: one(i))  # type: ignore[misc]
        copy = _p50(lambda _, out=out, image=image: np.copyto(out, image))  # type: ignore[misc]
        say(f"  {width:4}x{height:<4}           {same:8.2f}     {new:8.2f}       {copy:8.2f}")


def _p50(work: Callable[[int], None]) -> float:
    times = []
    for i in range(150):
        start = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - start)
    return float(np.median(times[20:])) * 1e3


def _minute(name: str, recognize: Recognize, size: tuple[int, int], fps: int, seconds: float, jpeg: bool) -> Phase:
    import cv2

    phase = Phase(name)
    buffer: Image | None = None
    screen: Image | None = None
    last: float | None = None
    began: float | None = None
    recognized = dropped = 0
    camera = SimulatedCamera(size, fps, seconds=seconds + _SETTLE)
    with live(camera, recognize) as results:
        started = time.perf_counter()
        shown = -1
        for result in results:
            if result.frame.index == shown:
                continue  # the last frame again, because no new one came
            shown = result.frame.index
            buffer = draw(result.frame.image, result, out=buffer)
            if jpeg:
                cv2.imencode(".jpg", buffer, (cv2.IMWRITE_JPEG_QUALITY, 80))
            else:
                screen = np.copy(buffer) if screen is None else screen
                np.copyto(screen, buffer)
            now = time.perf_counter()
            if now - started < _SETTLE:
                continue
            if last is None:
                began = now
                before = results.meter.summary()
                recognized, dropped = before.recognized, before.dropped
            else:
                phase.intervals.append(now - last)
                phase.ages.append(now - read_clock(result.frame.image))
            last = now
        after = results.meter.summary()
    phase.seconds = (last or 0.0) - (began or 0.0)
    phase.recognized = after.recognized - recognized
    phase.dropped = after.dropped - dropped
    return phase
