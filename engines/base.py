"""The contract of every image encoder: pictures in, unit vectors out, whatever runs underneath."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .card import ModelCard
from .errors import BackendError, ClipsightError, ModelError
from .preparing import Image, Vectors, check_image, prepare

T = TypeVar("T")
E = TypeVar("E", bound="Engine")

INPUT, OUTPUT = "pixel_values", "image_embeds"  # graph names, fixed for every model folder


class Pending(Protocol):
    """Vectors that are on their way."""

    def result(self) -> Vectors:
        """Wait for the n x dim unit rows; raise what the forward raised."""


class Engine(ABC):
    """An image encoder that is open: n pictures -> n x dim unit vectors.

    May be opened in one thread, used in another and closed in a third; calls are serialized. Use it in a `with` block
    or call `close()`.

    name: the backend's. card: the model's. max_batch: pictures per forward; longer lists are split. good_batch: pictures per
    call at which it is near its best rate; a CPU gains nothing by more than one.
    """

    name: str = ""
    max_batch: int = 32
    good_batch: int = 1

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self._lock = threading.RLock()
        self._closed = False

    def encode(self, images: Sequence[Image]) -> Vectors:
        """Encode H x W x 3 uint8 BGR pictures (sizes may differ) to float32 n x dim unit rows.

        Raises `ImageError` for a picture of another form, `BackendError` when the forward fails or the engine is
        closed.
        """
        return self.submit(images).result()

    def submit(self, images: Sequence[Image]) -> Pending:
        """Start encoding and return at once where the engine can; at most two calls are in flight.

        Most engines run the call here and now. Errors of the pictures are raised here, those of the forward by `result()`.
        """
        for image in images:
            check_image(image)
        parts = [images[i : i + self.max_batch] for i in range(0, len(images), self.max_batch)]
        try:
            with self._telling(), self._lock:
                if self._closed:
                    raise BackendError(f"{self.name}: the engine is closed; open it again")
                running = [(len(part), self._start(part)) for part in parts]
        except ClipsightError as error:
            failed: Future[Vectors] = Future()
            failed.set_exception(error)
            return failed
        return _Running(self, running)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """A runtime's own error comes out as `BackendError`: the caller is told which backend and model it was."""
        try:
            yield
        except ClipsightError:
            raise
        except Exception as error:
            raise BackendError(f"{self.name} failed on {self.card.id}: {one_line(error)}") from error

    def _unit(self, n: int, outputs: Mapping[str, NDArray[Any]]) -> Vectors:
        """The outputs of `n` pictures -> n x dim unit rows."""
        embeds = np.asarray(outputs[OUTPUT], np.float32)
        if embeds.shape != (n, self.card.dim):
            raise BackendError(
                f"{self.name}: {OUTPUT} is {embeds.shape}, the card of {self.card.id} says "
                f"{(n, self.card.dim)}; correct 'dim' in card.json or export the model anew"
            )
        norms = np.linalg.norm(embeds, axis=1, keepdims=True)
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise BackendError(f"{self.name}: {self.card.id} gave NaN, infinite or zero vectors; try --precision fp32")
        unit: Vectors = embeds / norms
        return unit

    def _start(self, images: Sequence[Image]) -> Callable[[], Mapping[str, NDArray[Any]]]:
        """Begin `_run` and return what waits for its outputs; here there is nothing left to wait for."""
        outputs = self._run(images)
        return lambda: outputs

    @abstractmethod
    def _run(self, images: Sequence[Image]) -> Mapping[str, NDArray[Any]]:
        """The one hook: at most `max_batch` pictures -> the graph's outputs by name, `image_embeds` among them."""

    def close(self) -> None:
        """Free what the engine holds; harmless when repeated."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release()

    def _release(self) -> None:  # noqa: B027  an engine may have nothing to free
        """Free the runtime's objects; called once."""

    def __enter__(self: E) -> E:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Running:
    """Batches of one call on their way; the first `result()` waits, later ones give the same."""

    def __init__(self, engine: Engine, parts: Sequence[tuple[int, Callable[[], Mapping[str, NDArray[Any]]]]]) -> None:
        self._engine, self._parts = engine, parts
        self._lock = threading.Lock()
        self._vectors: Vectors | None = None

    def result(self) -> Vectors:
        """See `Pending`."""
        engine = self._engine
        with self._lock, engine._telling():
            if self._vectors is None:
                rows = [engine._unit(n, wait()) for n, wait in self._parts]
                self._vectors = np.concatenate(rows) if rows else np.empty((0, engine.card.dim), np.float32)
                self._parts = ()
            return self._vectors


class HostPrepared(Engine):
    """An engine whose pictures are prepared here, by `prepare`; its hook is the forward alone.

    With `background` the runtime is opened and run in a thread of its own at lower priority, and the runtime's pool,
    made by that thread, inherits it: a display beside it keeps its rhythm.
    """

    def __init__(self, card: ModelCard, *, background: bool = False) -> None:
        super().__init__(card)
        self._fixed_batch: int | None = None  # of a graph that takes no other; set by whoever opens it
        self._worker = ThreadPoolExecutor(1, f"clipsight-{self.name}", initializer=lower_priority) if background else None

    def _in_worker(self, work: Callable[[], T]) -> T:
        return self._worker.submit(work).result() if self._worker else work()

    def _run(self, images: Sequence[Image]) -> dict[str, NDArray[Any]]:
        pixel_values = prepare(images, self.card)
        n = len(images)
        if self._fixed_batch is not None and n < self._fixed_batch:
            rest = np.zeros((self._fixed_batch - n, *pixel_values.shape[1:]), np.float32)
            pixel_values = np.concatenate([pixel_values, rest])
        outputs = self._in_worker(lambda: self._forward(pixel_values))
        return {name: values[:n] for name, values in outputs.items()}

    @abstractmethod
    def _forward(self, pixel_values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """float32 n x 3 x S x S -> the graph's outputs by name."""

    def _release(self) -> None:
        if self._worker:
            self._worker.shutdown()


def lower_priority(nice: int = 10) -> None:
    """Put the calling thread, and the threads it will start, behind others (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":  # there setpriority is per task; on other systems it would move the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def default_threads(background: bool) -> int:
    """Threads for a runtime's pool: every core, one fewer in the background where priority cannot be lowered."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - (background and sys.platform != "linux"))


def graph_file(folder: Path, precision: str) -> Path:
    """The ONNX file of a model folder that holds `precision`; raises `ModelError` where the folder lacks it."""
    path = folder / ("image.fp16.onnx" if precision == "fp16" else "image.onnx")
    if not path.is_file():
        raise ModelError(f"{folder}: {path.name} is not there, so {precision} cannot be run; use --precision fp32")
    return path


def check_graph(path: Path, card: ModelCard, inputs: Mapping[str, Sequence[Any]], outputs: Sequence[str]) -> int | None:
    """Hold a graph's names and input shape to the card; return its fixed batch, or None where the batch is free."""
    if list(inputs) != [INPUT] or OUTPUT not in outputs:
        raise ModelError(
            f"{path}: takes {', '.join(inputs)} and gives {', '.join(outputs)}; "
            f"rename them: it must take {INPUT} and give {OUTPUT}"
        )
    shape = list(inputs[INPUT])
    fixed = [d if isinstance(d, int) else want for d, want in zip(shape[1:], (3, card.size, card.size), strict=False)]
    if len(shape) != 4 or fixed != [3, card.size, card.size]:
        raise ModelError(f"{path}: takes {shape}, the card says N x 3 x {card.size} x {card.size}; correct 'size' in card.json")
    return shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None


def one_line(error: BaseException) -> str:
    """What a runtime's error says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # OpenVINO first says where in its source it was, and last what it was.
    return lines[-1 if lines[0].startswith("Exception from") else 0].strip()
