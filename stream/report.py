"""What a run comes to, in lines for people."""

from __future__ import annotations

import time
from collections import Counter

from .frame import Frame, Result
from .sources import Source

_GOOD = 0.9  # share of a demo's scored frames that must be named right


class Report:
    """Counts results as they pass; `lines()` at the end."""

    def __init__(self, source: Source) -> None:
        self._truth = getattr(source, "truth", None)  # a scene that knows what it shows
        self._labels: Counter[str] = Counter()
        self._started: float | None = None
        self._frames = 0
        self._last: Frame | None = None
        self._scored: Frame | None = None
        self._right = self._judged = 0

    def add(self, result: Result) -> bool:
        """Count a result; False when it repeats the frame before."""
        if result.frame is self._last:
            return False
        self._last = result.frame
        self._started = self._started or time.perf_counter()
        self._frames += 1
        if result.label is not None:
            self._labels[result.label] += 1
        if self._truth and result.scored_frame is not None and result.scored_frame is not self._scored:
            self._scored = result.scored_frame
            self._judged += 1
            self._right += result.label == self._truth(result.scored_frame)
        return True

    @property
    def passed(self) -> bool:
        """False where the scene knows what it shows and too many frames were named wrong."""
        return not self._truth or self._right >= _GOOD * self._judged > 0

    def lines(self) -> list[str]:
        """Frames and their rate, the labels seen most, and where the truth is known the verdict."""
        seconds = time.perf_counter() - self._started if self._started else 0.0
        lines = [f"frames         {self._frames} in {seconds:.1f} s ({self._frames / seconds if seconds else 0:.1f} a second)"]
        if self._labels:
            most = ", ".join(f"{name} {count / self._frames:.0%}" for name, count in self._labels.most_common(3))
            lines.append(f"seen           {most}")
        if self._truth:
            share = self._right / self._judged if self._judged else 0.0
            verdict = "passed" if self.passed else "FAILED"
            lines.append(f"named right    {share:.1%} of {self._judged} scored frames, each by its own truth: {verdict}")
        return lines
