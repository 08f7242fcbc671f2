"""`each` and `live`: what flows, what is dropped, what happens when a part fails."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import pytest

from clipsight.engines import Image, SourceError, SpaceMismatch, open_engine
from clipsight.labels import LabelBank, Scores, open_bank
from clipsight.stream import Feed, Frame, Frames, Recognizer, each, live
from clipsight.stream.meter import Meter, Quantiles
from clipsight.stream.sources.paced import Paced
from clipsight.stream.sources.simulated import SimulatedCamera, paint_clock, read_clock

BANK = LabelBank(("even", "odd"), np.eye(2, dtype=np.float32), "s")


def pictures(n: int) -> list[Image]:
    return [np.full((24, 32, 3), i % 251, np.uint8) for i in range(n)]


def parity(frames: Sequence[Frame]) -> list[Scores]:
    """A recognizer whose answer proves which frame it saw."""
    return BANK.score(np.eye(2, dtype=np.float32)[[int(f.image[0, 0, 0]) % 2 for f in frames]])


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("clipsight")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert workers() == []


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_each_gives_every_frame_its_own_scores_in_order(batch: int) -> None:
    results = list(each(Frames(pictures(30), 10), parity, batch=batch))
    assert [r.frame.index for r in results] == list(range(30))
    assert [r.label for r in results] == ["even", "odd"] * 15
    assert all(r.scored_frame is r.frame for r in results)
    assert results[3].frame.time == pytest.approx(0.3)


def test_each_closes_the_source_when_left_early() -> None:
    source = Frames(pictures(1000))
    results = each(source, parity)
    next(results)
    results.close()
    assert list(source) == []


def test_each_raises_the_sources_error_after_the_results_before_it() -> None:
    got = []
    with pytest.raises(SourceError, match="unplugged"):
        for result in each(Frames(pictures(10), fail=SourceError("unplugged")), parity, batch=4):
            got.append(result.frame.index)
    assert got == list(range(10))


def test_each_raises_the_recognizers_error() -> None:
    def fails_at_5(frames: Sequence[Frame]) -> list[Scores]:
        if frames[0].index == 5:
            raise RuntimeError("engine broke")
        return parity(frames)

    got = []
    with pytest.raises(RuntimeError, match="engine broke"):
        for result in each(Frames(pictures(10)), fails_at_5):
            got.append(result.frame.index)
    assert got == list(range(5))


def test_each_refuses_a_recognizer_that_loses_frames() -> None:
    with pytest.raises(ValueError, match="zip"):
        list(each(Frames(pictures(4)), lambda frames: parity(frames)[:-1], batch=2))


def test_live_never_waits_for_recognition() -> None:
    release = threading.Event()

    def hangs(frames: Sequence[Frame]) -> list[Scores]:
        release.wait(20)
        return parity(frames)

    shown = []
    with live(SimulatedCamera((192, 16), 60, seconds=1), hangs) as results:
        for result in results:
            shown.append(result.frame.index)
            assert result.scores is None
        release.set()
    assert len(set(shown)) > 45  # of 60: display went on though not one frame was recognized


def test_live_shows_the_newest_scores_and_says_of_which_frame() -> None:
    seen_scores = 0
    with live(SimulatedCamera((192, 16), 60, seconds=1), parity) as results:
        for result in results:
            if result.scored_frame is not None:
                assert result.scores is not None
                assert result.scored_frame.index <= result.frame.index
                assert result.scores.label == parity([result.scored_frame])[0].label == result.label
                seen_scores += 1
    assert seen_scores > 30


def test_a_slow_caller_drops_frames_and_they_are_counted() -> None:
    with live(SimulatedCamera((192, 16), 100, seconds=1, queue=200), parity) as results:
        shown = []
        for result in results:
            shown.append(result.frame.index)
            time.sleep(0.05)
    summary = results.meter.summary()
    assert shown == sorted(set(shown))
    assert summary.captured == 100
    assert summary.dropped + summary.shown == 100
    assert summary.dropped > 50


def test_a_source_that_stalls_is_repeated_every_100_ms_and_named_after_a_second() -> None:
    feed = Feed()
    with live(feed, parity) as results:
        feed.put(pictures(1)[0])
        started = time.monotonic()
        states = []
        for result in results:
            states.append((time.monotonic() - started, result.state))
            if result.state == "stalled":
                break
    gaps = np.diff([at for at, _ in states])
    assert 0.9 < states[-1][0] < 2
    assert gaps.max() < 0.5
    assert len(states) > 5
    assert results.meter.summary().shown == 1  # a repeat is no new picture


def test_live_raises_the_sources_error_where_the_caller_stands() -> None:
    results = live(Frames(pictures(5), 100, fail=SourceError("unplugged")), parity)
    with results, pytest.raises(SourceError, match="unplugged"):
        for _ in results:
            pass
    with pytest.raises(SourceError, match="unplugged"):
        results.latest()


def test_live_raises_the_recognizers_error_where_the_caller_stands() -> None:
    def broken(frames: Sequence[Frame]) -> list[Scores]:
        raise RuntimeError(f"engine broke at {frames[0].index}")

    with (
        live(SimulatedCamera((192, 16), 30, seconds=30), broken) as results,
        pytest.raises(RuntimeError, match="broke"),
    ):
        for _ in results:
            pass


def test_latest_never_waits() -> None:
    feed = Feed()
    with live(feed, parity) as results:
        assert results.latest() is None
        feed.put(pictures(2)[1], 7.5)
        deadline = time.monotonic() + 5
        while (result := results.latest()) is None or result.scores is None:
            assert time.monotonic() < deadline
        assert result.frame.time == 7.5
        assert result.label == "odd"


def test_a_host_that_asks_for_the_latest_is_metered_like_one_that_iterates() -> None:
    feed = Feed()
    with live(feed, parity) as results:
        for i in range(30):
            feed.put(pictures(1)[0], i / 30)
            for _ in range(3):  # a render loop faster than the camera
                results.latest()
                time.sleep(0.005)
        figures = results.meter.figures()
        summary = results.meter.summary()
    assert summary.shown + summary.dropped >= 28
    assert summary.shown > 20
    assert figures.display_fps > 20
    assert figures.age is not None


def test_asking_again_after_an_error_does_not_pile_up_where_it_was() -> None:
    results = live(Frames(pictures(2), 100, fail=SourceError("unplugged")), parity)
    with results:
        depths: list[int] = []
        deadline = time.monotonic() + 5
        while len(depths) < 50 and time.monotonic() < deadline:
            try:
                results.latest()
            except SourceError as error:
                depths.append(len(list(traceback.walk_tb(error.__traceback__))))
    assert len(depths) == 50
    assert depths[-1] == depths[1]


def test_results_and_frames_can_be_compared_and_kept_in_sets() -> None:
    a, b = each(Frames(pictures(2)), parity)
    assert a != b
    assert len({a, b, a, a.frame}) == 3


def test_each_over_a_source_that_waits_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed()
    results = each(feed, parity)
    feed.put(pictures(1)[0])
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 1
    assert "left behind" not in caplog.text


def test_a_slow_file_that_is_played_on_time_is_not_stalled() -> None:
    with live(Frames(pictures(2), Fraction(1, 2)), parity) as results:
        assert {result.state for result in results} == {"live"}


def test_the_recognizer_of_a_live_run_can_be_replaced() -> None:
    other = LabelBank(("other",), np.ones((1, 2), np.float32), "s")
    with live(SimulatedCamera((192, 16), 60, seconds=20), parity) as results:
        for i, result in enumerate(results):
            if i == 10:
                results.recognize = lambda frames: other.score(np.ones((len(frames), 2), np.float32))
            if result.label == "other":
                break
        else:
            pytest.fail("the new recognizer was never asked")


def test_the_feed_copies_so_the_host_may_reuse_its_buffer() -> None:
    feed = Feed()
    buffer = pictures(1)[0]
    feed.put(buffer)
    buffer[:] = 99
    feed.end()
    (frame,) = feed
    assert not frame.image.any()


def test_a_file_is_played_at_its_own_pace() -> None:
    started = time.perf_counter()
    arrivals = [f.arrived - started for f in Paced(Frames(pictures(11), 20))]
    wanted = np.arange(11) / 20
    off = np.array(arrivals) - arrivals[0] - wanted
    assert off.min() > -0.002  # never early
    assert arrivals[-1] >= 0.5


def test_closing_while_a_paced_source_waits_is_prompt() -> None:
    with live(Frames(pictures(3), 1), parity) as results:
        next(iter(results))
        started = time.monotonic()
    assert time.monotonic() - started < 1


def test_a_source_that_hangs_is_named_and_left(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def stuck() -> Iterator[Image]:
        yield pictures(1)[0]
        release.wait(60)

    results = live(Frames(stuck(), 1000), parity)
    next(iter(results))
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 5
    assert "frames: does not answer" in caplog.text
    release.set()
    while workers():
        time.sleep(0.01)


def test_the_painted_clock_is_read_back_exactly() -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    for at in (0.0, 1.5, 123456.789012, 2**47 / 1e6):
        paint_clock(image, at)
        assert read_clock(image) == pytest.approx(at, abs=2e-6)


def test_the_simulated_camera_keeps_its_rate_and_drops_like_a_driver() -> None:
    frames = []
    for frame in SimulatedCamera((192, 16), 100, seconds=0.5, queue=4):
        frames.append((frame.index, frame.time, time.perf_counter() - read_clock(frame.image)))
        if frame.index == 10:
            time.sleep(0.2)
    times = [t for _, t, _ in frames]
    assert times == sorted(times)
    assert times[11] - times[10] > 0.1  # the queue was overrun
    assert frames[11][2] > 0.025  # and what it still held is old
    assert len(frames) < 50


def test_quantiles_and_rates() -> None:
    assert Quantiles.of([0.01] * 100).p99 == pytest.approx(10)
    assert np.isnan(Quantiles.of([]).p50)
    summary = Meter().summary()
    assert (summary.shown, summary.fps) == (0, 0.0)
    assert all(isinstance(line, str) for line in summary.lines())


def test_the_recognizer_refuses_a_bank_of_another_space() -> None:
    with open_engine("demo") as engine:
        recognizer = Recognizer(engine, open_bank("demo", "demo"))
        with pytest.raises(SpaceMismatch, match="labels build --model demo"):
            Recognizer(engine, BANK)
        with pytest.raises(SpaceMismatch):
            recognizer.bank = BANK
        recognizer.bank = recognizer.bank.only(["striped red star"])
        assert recognizer([]) == []
