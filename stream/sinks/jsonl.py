"""Results as text: one JSON object a line and frame, for other programs."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

from ...engines import Image, SinkError
from ..frame import Result
from .base import Sink

_TOP = 5


class JsonLines(Sink):
    """One line for each result, UTF-8, each on the disk before `write` returns: a killed run leaves whole lines.

    {"source": "clip.mp4", "index": 7, "time": 0.28, "label": "cat", "state": "live",
     "top": [{"name": "cat", "score": 0.2713, "probability": 0.831204}, ...], "scored_index": 7}

    time: seconds. label: null where nothing on the list fits. top: the five that fit best, empty before the first scores.
    scored_index: the frame that the scores belong to; a live run shows newer ones with them.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises `SinkError` where the file cannot be written."""
        self._path = Path(path)
        try:
            self._file = self._path.open("wb")
        except OSError as error:
            raise SinkError(f"{path}: cannot be written ({error.strerror}); choose another folder or name") from None

    def write(self, image: Image, result: Result) -> None:  # noqa: ARG002  only the result is kept
        """Append one line. Raises `SinkError` when the disk fails."""
        frame, scores, scored = result.frame, result.scores, result.scored_frame
        line = {
            "source": frame.source,
            "index": frame.index,
            "time": _rounded(frame.time, 6),
            "label": result.label,
            "state": result.state,
            "top": [
                {"name": name, "score": _rounded(value, 4), "probability": _rounded(probability, 6)}
                for name, value, probability in (scores.top(_TOP) if scores is not None else ())
            ],
            "scored_index": None if scored is None else scored.index,
        }
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        if self._file.closed:
            raise SinkError(f"{self._path}: is closed; nothing more can be written")
        try:
            # File names that are no UTF-8 hold lone surrogates; escaped, they are JSON and come back as they were.
            self._file.write(text.encode("utf-8", "backslashreplace"))
            self._file.flush()
        except OSError as error:
            self.close()
            raise SinkError(f"{self._path}: cannot be written any further ({error.strerror}); make room") from None

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        with contextlib.suppress(OSError):  # over what a failed write left; that was raised already
            self._file.close()


def _rounded(value: float, digits: int) -> float | None:
    """`value` as JSON can say it: None for what is no number."""
    return round(float(value), digits) if math.isfinite(value) else None
