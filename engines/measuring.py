"""One model in one runtime, in a process of its own: a line of JSON in, a line of JSON out, until the input ends.

In a process of its own so that its peak memory is its own, and so that rows of a comparison can take turns. It is asked for
times ({"calls": 10}) or for names ({"classes": {"cat": ["a.jpg", ...], ...}}).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .base import Engine, one_line
from .bench import noise
from .errors import ClipsightError
from .registry import open_engine, open_text
from .text import prompt


def serve(model: str, backend: str, precision: str) -> None:
    """Open it, say that it is open or why not, and answer."""
    opened = time.perf_counter()
    try:
        engine = open_engine(model, backend, precision=precision)  # type: ignore[arg-type]
    except ClipsightError as error:
        _say({"error": str(error)})
        return
    with engine:
        frame = noise(1280, 720)
        engine.encode([frame])
        _say({"seconds": time.perf_counter() - opened, "peak_mb": peak_memory()})
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                if "calls" in asked:
                    times = []
                    for _ in range(asked["calls"]):
                        start = time.perf_counter()
                        engine.encode([frame])
                        times.append((time.perf_counter() - start) * 1e3)
                    _say({"ms": times, "peak_mb": peak_memory()})
                else:
                    _say(names(engine, model, asked["classes"]))
            except Exception as error:
                _say({"error": one_line(error)})


def names(engine: Engine, model: str, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """How many pictures have their class first, and among the first five, by words alone."""
    import cv2

    labels = open_text(model).encode([prompt(name) for name in classes])
    first = five = of = 0
    for truth, paths in enumerate(classes.values()):
        for path in paths:
            image = cv2.imread(path)
            if image is None:
                continue
            order = np.argsort(-(engine.encode([image]) @ labels.T)[0])
            first += int(order[0] == truth)
            five += int(truth in order[:5])
            of += 1
    return {"top1": first, "top5": five, "of": of}


def peak_memory() -> float | None:
    """The most memory this process has had, in MB of 10**6 bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _say(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def folder_of_classes(folder: Path) -> dict[str, list[str]]:
    """A folder with a folder of pictures for each class -> their files by class."""
    suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
    return {
        path.name: [str(p) for p in sorted(path.iterdir()) if p.suffix.lower() in suffixes]
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }


if __name__ == "__main__":
    serve(*sys.argv[1:4])
