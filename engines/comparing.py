"""Which model, in which runtime, at which precision? Measured here, side by side, and one sentence of advice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .card import ModelCard
from .errors import BackendError, ModelError
from .figures import interval
from .measuring import folder_of_classes
from .registry import BACKENDS, available, find_model

_FILES = {"onnx fp16": "image.fp16.onnx"}


@dataclass
class Row:
    """A model in a runtime at a precision. ms: of each call. size: of the file it runs, in MB. of: pictures looked at."""

    model: str
    backend: str
    precision: str
    size: float
    ms: list[float] = field(default_factory=list)
    peak: float | None = None
    top1: int = 0
    top5: int = 0
    of: int = 0

    @property
    def name(self) -> str:
        """What it is called in one word or three."""
        return f"{self.model} {self.backend} {self.precision}"

    @property
    def p50(self) -> float:
        """Milliseconds, half of the calls take less."""
        return float(np.percentile(self.ms, 50))

    @property
    def p95(self) -> float:
        """Milliseconds, all but one call of twenty take less."""
        return float(np.percentile(self.ms, 95))

    @property
    def rate(self) -> float:
        """Pictures a second, one after another."""
        return 1e3 / float(np.mean(self.ms))

    @property
    def accuracy(self) -> float | None:
        """Share of the pictures that are named right; None where none were looked at."""
        return self.top1 / self.of if self.of else None


def compare(
    models: Sequence[str],
    *,
    backends: Sequence[str] | None = None,
    pictures: Path | None = None,
    need: float | None = None,
    most: float | None = None,
    rounds: int = 5,
    calls: int = 5,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Measure every model in every runtime and precision that can run here, in turn, and print a table and advice.

    backends: those to try, by default all for this machine. pictures: a folder with a folder of pictures for each class, named
    by words. need: recognitions a second that are wanted. most: MB that the model's file may have. Raises `ModelError` for a
    model or folder that is none, `BackendError` where nothing runs.
    """
    classes = folder_of_classes(pictures) if pictures else {}
    if pictures and not any(classes.values()):
        raise ModelError(f"{pictures}: holds no folders of pictures; make one for each class, named as one would say it")
    asked = [(str(find_model(model)), row) for model in models for row in _rows(find_model(model), backends)]
    running: list[tuple[Row, _Process]] = []
    try:
        for folder, row in asked:
            process = _Process(folder, row)
            if error := process.answer().get("error"):
                say(f"{row.name}: {error}")
                process.end()
            else:
                running.append((row, process))
        if not running:
            raise BackendError("nothing can be compared here; the lines above say why")
        for _ in range(rounds):
            for row, process in running:
                answer = process.ask({"calls": calls})
                row.ms += answer.get("ms", [])
                row.peak = answer.get("peak_mb", row.peak)
        if classes:
            for row, process in running:
                answer = process.ask({"classes": classes})
                if "error" in answer:
                    say(f"{row.name}: cannot name pictures ({answer['error']})")
                else:
                    row.top1, row.top5, row.of = answer["top1"], answer["top5"], answer["of"]
    finally:
        for _, process in running:
            process.end()
    rows = [row for row, _ in running if row.ms]
    for line in table(rows):
        say(line)
    say(advice(rows, need, most))
    return rows


def _rows(folder: Path, backends: Sequence[str] | None) -> list[Row]:
    card, rows = ModelCard.load(folder), []
    for backend, missing in available().items():
        if missing or (backends and backend not in backends):
            continue
        for precision in BACKENDS[backend].precisions.split():
            file = folder / _FILES.get(f"{backend} {precision}", BACKENDS[backend].weights)
            on_a_gpu_alone = precision == "fp16" and backend != "onnx" and not BACKENDS[backend].nvidia
            if file.is_file() and not on_a_gpu_alone:
                rows.append(Row(card.id, backend, precision, file.stat().st_size / 1e6))
    return rows


class _Process:
    """`measuring`, asked line by line."""

    def __init__(self, folder: str, row: Row) -> None:
        command = [sys.executable, "-m", f"{__package__}.measuring", folder, row.backend, row.precision]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": "its process ended"}
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines, a heading first."""
    width = max(len(row.name) for row in rows)
    named = any(row.of for row in rows)
    lines = [
        f"{'':{width}}   p50 ms   p95 ms   a second   file MB   peak MB"
        + ("   top-1 (95 %)             top-5" if named else "")
    ]
    for row in rows:
        line = f"{row.name:{width}} {row.p50:8.1f} {row.p95:8.1f} {row.rate:10.1f} {row.size:9.1f}"
        line += f" {row.peak:9.0f}" if row.peak else f" {'-':>9}"
        if row.of:
            low, high = interval(row.top1, row.of)
            line += f"   {row.top1 / row.of:6.1%} ({low:.1%} to {high:.1%})   {row.top5 / row.of:6.1%}"
        lines.append(line)
    return lines


def advice(rows: Sequence[Row], need: float | None, most: float | None) -> str:
    """One sentence: what to take, and why."""
    fitting = [row for row in rows if most is None or row.size <= most]
    if not fitting:
        smallest = min(rows, key=lambda row: row.size)
        return f"None is below {most:g} MB; the smallest is {smallest.name} with {smallest.size:.0f} MB."
    quick = [row for row in fitting if need is None or row.rate >= need]
    if not quick:
        fastest = max(fitting, key=lambda row: row.rate)
        return (
            f"None reaches {need:g} recognitions a second here; {fastest.name} comes nearest with {fastest.rate:.1f}. "
            "The display keeps its rate all the same; names come that much later."
        )
    judged = [row for row in quick if row.accuracy is not None]
    if not judged:
        best = max(quick, key=lambda row: row.rate)
        reason = f"the fastest here, {best.rate:.1f} recognitions a second"
        return f"Take {best.name}: {reason}. (--pictures would say which names best.)"
    top = max(judged, key=lambda row: row.top1)
    low, _ = interval(top.top1, top.of)
    alike = [row for row in judged if row.accuracy is not None and row.accuracy >= low]
    best = max(alike, key=lambda row: row.rate)
    if best is top:
        return f"Take {best.name}: it names the most right, {best.accuracy:.1%}, at {best.rate:.1f} recognitions a second."
    return (
        f"Take {best.name}: {best.accuracy:.1%} right, which these {best.of} pictures cannot tell from the best "
        f"({top.name}, {top.accuracy:.1%}), and the fastest of those, {best.rate:.1f} recognitions a second."
    )
