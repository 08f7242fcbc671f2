"""What a run comes to, in lines for people."""

from __future__ import annotations

import time
from collections import Counter

from .frame import Frame, Result
from .meter import Summary
from .sources import Source

_GOOD = 0.9  # share of a demo's scored frames that must be named right
_HELD = 0.98  # of the source's rate that a display must keep
_LATE = 50.0  # ms: a p99 interval longer than this is seen as stutter
_OFTEN = 10.0  # recognitions a second under which names lag behind what is seen


class Report:
    """Counts results as they pass; `lines()` at the end. A source that knows its truth is our self-test, and is judged."""

    def __init__(self, source: Source) -> None:
        self._is_right = getattr(source, "is_right", None)  # of a scene that knows what it shows
        self._rate = float(source.rate or 0)
        self._labels: Counter[str] = Counter()
        self._note = ""
        self._started: float | None = None
        self._frames = 0
        self._last: Frame | None = None
        self._scored: Frame | None = None
        self._right = self._judged = self._named = 0
        self._whole = False  # the model sees the whole frame, not its middle

    def add(self, result: Result) -> bool:
        """Count a result; False when it repeats the frame before."""
        if result.frame is self._last:
            return False
        self._last = result.frame
        self._started = self._started or time.perf_counter()
        self._frames += 1
        self._note = result.note
        if result.label is not None:
            self._labels[result.label] += 1
        if self._is_right and result.scores and result.scored_frame is not None and result.scored_frame is not self._scored:
            self._scored = result.scored_frame
            right = self._is_right(result.scored_frame, result.scores.label, result.scores.names)
            height, width = result.frame.image.shape[:2]
            self._whole = result.seen == (0, 0, width, height)
            self._judged += 1
            self._right += right
            self._named += right and result.scores.label is not None
        return True

    @property
    def passed(self) -> bool:
        """False where the scene knows what it shows and too many frames were named wrong."""
        return not self._is_right or self._right >= _GOOD * self._judged > 0

    def lines(self, summary: Summary | None = None) -> list[str]:
        """Frames and their rate, the labels seen most; of a live run its figures; where the truth is known the verdict."""
        seconds = time.perf_counter() - self._started if self._started else 0.0
        lines = [f"frames         {self._frames} in {seconds:.1f} s ({self._frames / seconds if seconds else 0:.1f} a second)"]
        if self._labels:
            most = ", ".join(f"{name} {count / self._frames:.0%}" for name, count in self._labels.most_common(3))
            lines.append(f"seen           {most} of the frames")
        if self._note:
            lines.append(f"model          {self._note}")
        lines += summary.lines() if summary else []
        if self._is_right:
            share = self._right / self._judged if self._judged else 0.0
            verdict = f"{'passed' if self.passed else 'FAILED'} ({_GOOD:.0%} is asked for)"
            lines.append(f"named right    {share:.1%} of {self._judged} scored frames, each by its own truth: {verdict}")
            if self._judged and not self._named:
                lines.append(
                    "warning        none of these words is in this scene, so all that was right is that it named nothing"
                )
            if self._whole and not self.passed:
                lines.append(
                    "warning        several cards are seen at once, and the one in the middle is asked for: use --fit crop"
                )
            lines += [f"warning        {warning}" for warning in self._slow(summary)] if summary else []
        return lines

    def _slow(self, summary: Summary) -> list[str]:
        """What this machine did not keep up with, and what to do about it."""
        warnings = []
        if summary.fps < _HELD * self._rate:
            warnings.append(f"the display held {summary.fps:.1f} of {self._rate:.0f} fps; close what else runs here")
        elif summary.interval.p99 > _LATE:
            warnings.append(f"one interval in a hundred was longer than {_LATE:.0f} ms; close what else runs here")
        if summary.recognitions < _OFTEN:
            warnings.append(
                f"{summary.recognitions:.1f} recognitions a second are few; try another --engine: "
                "python -m clipsight.engines bench times them"
            )
        return warnings
