"""Times in, the figures of a run out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .frame import Figures, Result

_WINDOW = 2.0  # seconds the running figures look back
_KEEP = 200_000  # times kept for the summary: two hours at 30 fps, 5 MB


@dataclass(frozen=True)
class Quantiles:
    """Median, 95th and 99th percentile in milliseconds; NaN where nothing was measured."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Quantiles:
        """From values in seconds."""
        if not seconds:
            return cls(float("nan"), float("nan"), float("nan"))
        return cls(*(float(v) * 1e3 for v in np.percentile(np.asarray(seconds), (50, 95, 99))))

    def __str__(self) -> str:
        if np.isnan(self.p50):
            return "not measured: too short a run"
        return f"p50 {self.p50:.1f}  p95 {self.p95:.1f}  p99 {self.p99:.1f} ms"


@dataclass(frozen=True)
class Summary:
    """A run in figures.

    seconds: from the first shown frame to the last. shown: pictures shown; repeats of a stalled source are not counted.
    fps: shown a second. recognized, recognitions: in all, and a second. captured: frames the source gave. dropped: of
    those, frames never shown because a newer one was there. skipped: frames shown with the scores of an older one.
    interval: between two shown frames. frame_age: from a frame's arrival until it had been shown. result_age: the same of
    the frame whose scores were shown. over_50ms: intervals longer than 50 ms.
    """

    seconds: float
    captured: int
    shown: int
    fps: float
    recognized: int
    recognitions: float
    dropped: int
    skipped: int
    interval: Quantiles
    frame_age: Quantiles
    result_age: Quantiles
    over_50ms: int

    def lines(self) -> list[str]:
        """For people, one figure a line."""
        return [
            f"display        {self.fps:.1f} fps  ({self.shown} frames in {self.seconds:.1f} s, {self.dropped} dropped)",
            # of a source slower than 25 a second every interval is near 50 ms, and the count says nothing
            f"interval       {self.interval}" + (f"  ({self.over_50ms} over 50 ms)" if self.interval.p50 < 40 else ""),
            f"frame age      {self.frame_age}",
            f"result age     {self.result_age}",
            f"recognitions   {self.recognitions:.1f} a second  ({self.recognized} of {self.captured} frames)",
        ]


class Meter:
    """Counts a live run; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured = 0
        self._dropped = 0
        self._recognized: deque[float] = deque(maxlen=_KEEP)
        self._recognized_count = 0
        self._shown: deque[float] = deque(maxlen=_KEEP)
        self._shown_count = 0
        self._skipped = 0
        self._first_shown: float | None = None
        self._frame_ages: deque[float] = deque(maxlen=_KEEP)
        self._result_ages: deque[float] = deque(maxlen=_KEEP)

    def captured(self, dropped: bool) -> None:
        """A frame came from the source; `dropped`: it replaced one that had not been shown."""
        with self._lock:
            self._captured += 1
            self._dropped += dropped

    def recognized(self) -> None:
        """A frame was recognized."""
        with self._lock:
            self._recognized.append(time.perf_counter())
            self._recognized_count += 1

    def shown(self, result: Result) -> None:
        """A new frame is on the screen."""
        now = time.perf_counter()
        with self._lock:
            self._shown.append(now)
            self._shown_count += 1
            self._first_shown = self._first_shown or now
            self._frame_ages.append(now - result.frame.arrived)
            if result.scored_frame is not None:
                self._result_ages.append(now - result.scored_frame.arrived)
                self._skipped += result.scored_frame.index != result.frame.index

    def figures(self) -> Figures:
        """How the last two seconds went."""
        now = time.perf_counter()
        with self._lock:
            age = self._result_ages[-1] if self._result_ages else None
            return Figures(_rate(self._shown, now), _rate(self._recognized, now), age)

    def summary(self) -> Summary:
        """The whole run so far."""
        with self._lock:  # copies alone: capture and the display need it, too
            shown, frame_ages, result_ages = list(self._shown), list(self._frame_ages), list(self._result_ages)
            first = self._first_shown
            counts = self._captured, self._shown_count, self._recognized_count, self._dropped, self._skipped
        captured, count, recognized, dropped, skipped = counts
        intervals = np.diff(shown)
        seconds = shown[-1] - (first or shown[0]) if shown else 0.0
        return Summary(
            seconds=seconds,
            captured=captured,
            shown=count,
            fps=(count - 1) / seconds if seconds else 0.0,
            recognized=recognized,
            recognitions=recognized / seconds if seconds else 0.0,
            dropped=dropped,
            skipped=skipped,
            interval=Quantiles.of(list(intervals)),
            frame_age=Quantiles.of(frame_ages),
            result_age=Quantiles.of(result_ages),
            over_50ms=int((intervals > 0.05).sum()),
        )


def _rate(times: deque[float], now: float) -> float:
    """Events a second over the last `_WINDOW` seconds, from the newest times alone."""
    recent = 0
    oldest = now
    for t in reversed(times):
        if now - t > _WINDOW:
            break
        recent, oldest = recent + 1, t
    return (recent - 1) / (times[-1] - oldest) if recent > 1 else 0.0
