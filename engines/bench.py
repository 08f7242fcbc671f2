"""How fast is it here? Backends in turn on one model, and `prepare` beside PIL."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .base import Engine
from .card import ModelCard
from .errors import BackendError, ClipsightError
from .preparing import Image, prepare
from .registry import BACKENDS, Precision, available, find_model, open_engine

_SIZES = ((640, 480), (1280, 720), (1920, 1080), (3840, 2160))


def bench(
    model: str | Path,
    only: Sequence[str] | None = None,
    *,
    device: int | None = None,
    precision: Precision = "auto",
    rounds: int,
    calls: int,
    say: Callable[[str], None] = print,
) -> dict[str, list[float]]:
    """Time every backend that can run `model`, in turn, and print medians and ratios; seconds of each call by name.

    only: the names of those to time, by default all. device: index of a GPU, None for the CPU; a backend that cannot use it
    says why and is left out. Each of `rounds` rounds times `calls` calls of every backend, one frame of 1280 x 720 a call, and
    as many of a picture that has the model's size already, so that a machine whose speed drifts drifts for all. Raises
    `BackendError` where none can run the model.
    """
    folder = find_model(model)
    size = ModelCard.load(folder).size
    image, small = noise(1280, 720), noise(size, size)
    engines: dict[str, Engine] = {}
    times: dict[str, list[float]] = {}
    prepared: dict[str, list[float]] = {}  # of a picture that has the model's size already
    try:
        for name, missing in available().items():
            if only is not None and name not in only:
                continue
            if missing:
                say(f"{name}: cannot run here ({missing})")
            elif not (folder / BACKENDS[name].weights).is_file():
                say(f"{name}: needs {BACKENDS[name].weights}, which {folder} has not")
            else:
                try:
                    engines[name] = open_engine(folder, name, device=device, precision=precision)
                except ClipsightError as error:
                    say(str(error))
                else:
                    times[name] = []
        if not engines:
            raise BackendError(f"no backend can run {folder} here; the lines above say why")
        for engine in engines.values():
            engine.encode([image])  # the first call builds what the rest reuse
        for _ in range(rounds):
            for name, engine in engines.items():
                times[name] += _times(lambda e=engine: e.encode([image]), calls)  # type: ignore[misc]
                prepared[name] = prepared.get(name, []) + _times(lambda e=engine: e.encode([small]), calls)  # type: ignore[misc]
    finally:
        for engine in engines.values():
            engine.close()
    first = np.median(times[next(iter(times))])
    say(f"frame to vector, 1280x720, batch 1, {rounds} rounds of {calls} calls in turn")
    for name, seconds in times.items():
        p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
        alone = np.median(prepared[name]) * 1e3
        ratio = f"x{np.median(seconds) / first:.2f} of {next(iter(times))}"
        say(f"  {name:9} p50 {p50:7.1f} ms  p95 {p95:7.1f} ms   {size}x{size}: p50 {alone:6.1f} ms   {ratio}")
    return times


def bench_prepare(card: ModelCard, *, rounds: int, calls: int, say: Callable[[str], None] = print) -> None:
    """Time `prepare`, which works in one thread, against PIL's resize and crop of the same frame, in turn."""
    say(f"prepare to {card.size} x {card.size} ({card.resize}), in one thread")
    for size in _SIZES:
        image = noise(*size)
        contenders: dict[str, Callable[[], object]] = {"prepare": lambda i=image: prepare([i], card)}  # type: ignore[misc]
        try:
            contenders["PIL"] = _by_pil(image, card.size)
        except ImportError:
            say("  (PIL is not installed: pip install pillow)")
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, work in contenders.items():
                times[name] += _times(work, calls)
        p50 = {name: float(np.median(t)) * 1e3 for name, t in times.items()}
        peer = f"   PIL {p50['PIL']:5.2f} ms   x{p50['prepare'] / p50['PIL']:.2f}" if "PIL" in p50 else ""
        say(f"  {size[0]:4}x{size[1]:<4}  p50 {p50['prepare']:5.2f} ms{peer}")


def _by_pil(image: Image, size: int) -> Callable[[], object]:
    """CLIP's own preparation with PIL and numpy: resize of the shorter edge, center crop, normalization."""
    import PIL.Image

    def work() -> object:
        whole = PIL.Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
        scale = size / min(whole.size)
        width, height = (max(size, int(edge * scale)) for edge in whole.size)
        resized = whole.resize((width, height), PIL.Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        pixels = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / 255
        return np.ascontiguousarray(((pixels - 0.5) / 0.5).transpose(2, 0, 1))

    return work


def noise(width: int, height: int) -> Image:
    """A frame of uint8 noise, height x width x 3, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _times(work: Callable[[], object], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times
