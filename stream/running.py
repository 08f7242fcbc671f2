"""From a source and a recognizer to results: `each` (every frame, in order) and `live` (the newest frame wins)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType

from ..engines import Box
from ..labels import Scores
from .frame import Figures, Frame, Recognize, Result, State
from .handoff import Ended, Latest, ahead, join
from .meter import Meter
from .recognizer import Recognizer
from .sources import Source
from .sources.paced import Paced

_REPEAT = 0.1  # seconds after which the last frame is given out again, so that a window goes on answering
_STALLED = 1.0  # seconds without a frame after which a source counts as stalled
_FIGURES = 0.25  # seconds between two sets of figures: faster than this nobody reads them


def each(source: Source, recognize: Recognize, *, batch: int = 1) -> Generator[Result, None, None]:
    """Every frame of the source with its own scores, in order, nothing dropped: for files and folders.

    batch: frames given to `recognize` at once (it pays on a GPU). Reading, recognizing and what the caller does with a
    result overlap, a few frames apart. Errors of the source and of `recognize` are raised here after the results before
    them. The source is closed at the end, however it comes.
    """
    results = ahead(_recognized(source, recognize, batch), max(2, batch))
    try:
        for result in results:  # noqa: UP028  `yield from` would close `results` before the source
            yield result
    finally:
        source.close()  # first: a thread that waits for the next frame is let go by it
        results.close()


def _recognized(source: Source, recognize: Recognize, batch: int) -> Iterator[Result]:
    frames = ahead(source, 2 * batch)
    try:
        for part, answers in _answers(_batches(frames, batch), recognize):
            for frame, scores in zip(part, answers, strict=True):
                yield Result(frame, scores, frame, scores.label, seen=_seen(recognize, frame), note=_note(recognize))
    finally:
        frames.close()


def _answers(parts: Iterable[list[Frame]], recognize: Recognize) -> Iterator[tuple[list[Frame], Sequence[Scores]]]:
    """Each part with its scores. An engine that gains by batches has the next one before the last one is waited for."""
    if not (isinstance(recognize, Recognizer) and recognize.engine.good_batch > 1):
        for part in parts:
            yield part, recognize(part)
        return
    before: tuple[list[Frame], Callable[[], list[Scores]]] | None = None
    try:
        for part in parts:
            following = part, recognize.submit(part)
            if before:
                last, before = before, None
                yield last[0], last[1]()
            before = following
    except Exception:
        if before:
            yield before[0], before[1]()  # what came before a failure is still worth its results
        raise
    if before:
        yield before[0], before[1]()


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    part: list[Frame] = []
    try:
        for frame in frames:
            part.append(frame)
            if len(part) == size:
                yield part
                part = []
    except Exception:
        if part:
            yield part  # the frames before a failure are still worth their results
        raise
    if part:
        yield part


def live(source: Source, recognize: Recognize) -> Live:
    """Run a source in real time, see `Live`; one that is no camera is played at the pace of its own times."""
    return Live(source if source.live else Paced(source), recognize)


class Live:
    """The newest frame wins: for cameras. It starts at once.

    Capture and recognition each have a thread, the caller's thread shows; showing never waits for recognition. A context
    manager and an iterable of `Result`: one as soon as a new frame is there, and at least one every 100 ms (then the last
    frame again, its `state` "stalled" after a second without a new one). The iteration ends with the source.

    An error of the source or of `recognize` is raised where the caller stands: in the iteration, or in `latest()`.
    recognize: may be replaced while it runs. meter: the run in figures. The source is closed by `close()`.
    """

    def __init__(self, source: Source, recognize: Recognize) -> None:
        self.recognize = recognize
        self.meter = Meter()
        self._source = source
        # A slow camera is not a stalled one, and a file that is played at its pace never stalls.
        slow = float(3 / source.rate) if source.rate else 0.0
        self._patience = float("inf") if isinstance(source, Paced) else max(_STALLED, slow)
        self._frames: Latest[Frame] = Latest()  # capture -> the caller
        self._todo: Latest[Frame] = Latest()  # capture -> recognition
        self._scored: tuple[Frame, Scores] | None = None
        self._stop = threading.Event()
        self._figures: Figures | None = None
        self._figures_at = 0.0
        self._handed: Result | None = None  # by `latest()`, and not yet counted as shown
        self._threads = [
            threading.Thread(target=self._capture, name=f"clipsight-capture ({source.name})", daemon=True),
            threading.Thread(target=self._work, name="clipsight-recognize", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _capture(self) -> None:
        try:
            for frame in self._source:
                if self._stop.is_set():
                    return
                self._todo.put(frame)
                self.meter.captured(dropped=self._frames.put(frame))
            self._frames.end()
        except Exception as error:
            self._frames.end(error)
        finally:
            self._todo.end()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    frame = self._todo.get(_REPEAT)
                except TimeoutError:
                    continue
                (scores,) = self.recognize([frame])
                self._scored = frame, scores
                self.meter.recognized()
        except Ended:
            pass
        except Exception as error:
            self._frames.end(error)

    def __iter__(self) -> Iterator[Result]:
        last: Frame | None = None
        while not self._stop.is_set():
            try:
                last = self._frames.get(_REPEAT)
                fresh = True
            except TimeoutError:
                fresh = False
            except Ended:
                return
            if last is not None:
                result = self._result(last)
                yield result
                if fresh:
                    self.meter.shown(result)  # the caller is back: it is on the screen

    def latest(self) -> Result | None:
        """The newest frame with the newest scores, at once; None before the first. For hosts with a render loop of their own.

        A frame counts as shown when the host asks again. Raises the error of the source or of `recognize`, once there is
        one.
        """
        self._frames.check()
        if self._handed is not None:
            self.meter.shown(self._handed)
            self._handed = None
        frame = self._frames.peek()
        if frame is None:
            return None
        result = self._result(frame)
        if self._frames.take():
            self._handed = result
        return result

    def _result(self, frame: Frame) -> Result:
        now = time.perf_counter()
        if now - self._figures_at > _FIGURES:
            self._figures, self._figures_at = self.meter.figures(), now
        scored = self._scored
        state: State = "stalled" if now - frame.arrived > self._patience else "live"
        box, note = _seen(self.recognize, frame), _note(self.recognize)
        if scored is None:
            return Result(frame, state=state, seen=box, figures=self._figures, note=note)
        return Result(frame, scored[1], scored[0], scored[1].label, state, box, self._figures, note)

    def close(self) -> None:
        """Stop, wait for the threads (2 s each; one that hangs in a driver is named and left) and close the source."""
        self._stop.set()
        self._source.close()  # names a driver that hangs, so its thread is not waited for again
        capture, work = self._threads
        capture.join(_REPEAT)
        join(work)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _seen(recognize: Recognize, frame: Frame) -> Box | None:
    """What the recognizer's model sees of the frame, where it can tell."""
    tell = getattr(recognize, "seen", None)
    return tell(frame) if tell else None


def _note(recognize: Recognize) -> str:
    """What the recognizer's model does not know, where it can tell."""
    note = getattr(recognize, "note", "")
    return note if isinstance(note, str) else ""
