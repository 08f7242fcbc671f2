"""What several test files share: the real data, and videos made on the spot."""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated_tensorrt
from simulated_cuda import World

from clipsight.engines import Image

REAL = Path(__file__).parent.parent.parent / "shared" / "real"

MakeVideo = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    """A cache of the run's own, before a test module is read that hands its environment on; and Ctrl-C as everywhere.

    A shell that runs the tests in the background ignores Ctrl-C, and so would the programs that they start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = tempfile.TemporaryDirectory(prefix="clipsight-tests-")
    os.environ["CLIPSIGHT_CACHE"] = str(Path(folder.name) / "cache")
    config.add_cleanup(folder.cleanup)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real data, ../shared/real; without it the test is skipped, where CI=true it fails."""
    if not REAL.is_dir():
        reason = f"the real data is not at {REAL}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return REAL


@pytest.fixture(scope="session")
def make_video() -> MakeVideo:
    """`make_video(path, images, ticks, base)`: an MP4 of these pictures at these times, written by PyAV alone."""

    def make(
        path: Path,
        images: Sequence[Image],
        ticks: Sequence[int] | None = None,
        base: Fraction = Fraction(1, 10),
        *,
        rotation: float = 0,
        mirrored: bool = False,
        options: dict[str, str] | None = None,
    ) -> Path:
        import av

        with av.open(str(path), "w", container_options=options or {}) as output:
            stream = output.add_stream("libx264", rate=10, time_base=base, options={"crf": "1", "preset": "ultrafast"})
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            if rotation or mirrored:
                stream.set_display_rotation(rotation, hflip=mirrored)
            for i, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "bgr24").reformat(format="yuv420p")
                frame.pts, frame.time_base = ticks[i] if ticks else i, base
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path

    return make


@pytest.fixture(scope="session")
def moving() -> Callable[..., list[Image]]:
    """`moving(n, width, height)`: n pictures, no two alike, with something in them to encode."""

    def make(n: int, width: int = 64, height: int = 48) -> list[Image]:
        y, x = np.mgrid[:height, :width]
        return [np.stack([(x * 3 + 5 * i) % 256, (y * 4) % 256, (x + y + 9 * i) % 256], -1).astype(np.uint8) for i in range(n)]

    return make


@pytest.fixture(scope="session")
def plan_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of plans for all tests that do not care how a plan came to be."""
    return tmp_path_factory.mktemp("cache") / "clipsight"


@pytest.fixture(scope="session")
def trt() -> Any:
    """TensorRT for RTX, which builds plans without a GPU; skipped where it is not, but where CI=true on Linux it must be."""
    try:
        import tensorrt_rtx
    except ImportError as error:
        if os.environ.get("CI") == "true" and sys.platform == "linux" and platform.machine() == "x86_64":
            pytest.fail(f"TensorRT for RTX does not load: {error}")
        pytest.skip(f"TensorRT for RTX is not here: {error}")
    return tensorrt_rtx


@pytest.fixture
def simulated_gpu(trt: Any, monkeypatch: pytest.MonkeyPatch, plan_cache: Path) -> Iterator[World]:
    """An NVIDIA GPU that is simulated (`simulated_cuda`), and TensorRT for RTX on it; nothing may be left on it."""
    world = World()
    simulated_tensorrt.install(monkeypatch, world, plan_cache)
    yield world
    gc.collect()
    assert world.complaints == []
    assert world.stack() == []
    assert not world.memory, f"{len(world.memory)} pieces of memory were not freed"
