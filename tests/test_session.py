"""Buffers, graphs, lanes and failures of a plan at work, on the simulated GPU: no device, but every rule of one."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated_tensorrt
from simulated_cuda import IllegalAddressError, World
from test_engines import TINY, centered_cosines, export_random, graph_of, pictures

from clipsight.engines import BackendError, Engine, Image, open_engine
from clipsight.engines.compiled import session as sessions

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not for this platform")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_random(tmp_path_factory.mktemp("tiny"), "tiny", TINY)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clipsight.engines.export import export
    from clipsight.engines.random_weights import random_card, random_model

    folder = tmp_path_factory.mktemp("patches")
    export(random_model(TINY, 0), folder, random_card("tiny", TINY, 0), ["fp32"], patches=True)
    return folder


def opened(folder: Path, **settings: Any) -> Any:
    return open_engine(folder, "tensorrt-rtx", precision="fp32", **settings)


@pytest.fixture
def engine(simulated_gpu: World, tiny: Path) -> Iterator[Any]:
    with opened(tiny) as engine:
        yield engine


def near(given: Any, wanted: Any) -> bool:
    """The same picture's vector: the GPU prepares as PIL does, `prepare` within one level; another picture is far off."""
    return bool(np.abs(given - wanted).max() < 1e-3)


def break_a_kernel(engine: Any) -> None:
    """Enqueue a kernel that will meet an address that is nobody's."""

    def fail() -> None:
        raise IllegalAddressError("0x40")

    with engine.gpu.current():
        engine._session.compute.put("a kernel", fail)


def sizes(n: int) -> list[Image]:
    """A picture each of `n` sizes."""
    return [pictures(1, 40 + 3 * i, 70)[0] for i in range(n)]


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4, 5])
def test_whenever_the_gpu_gets_to_its_work_the_answers_are_the_same(
    seed: int | None, tiny: Path, plan_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two in flight, batches of all kinds; seed None is a GPU that is always late, the others run at any moment."""
    images = pictures(12) + pictures(4, 64, 200)
    rng = np.random.default_rng(seed)
    batches = [[int(i) for i in rng.integers(0, 16, rng.integers(1, 6))] for _ in range(25)]
    with open_engine(tiny, "onnx") as reference:
        wanted = reference.encode(images)
    world = World(seed=seed)
    simulated_tensorrt.install(monkeypatch, world, plan_cache)
    with opened(tiny) as engine:
        running = [engine.submit([images[i] for i in batch]) for batch in batches]
        for batch, result in reversed(list(zip(batches, running, strict=True))):
            assert near(result.result(), wanted[batch])
    gc.collect()
    assert (world.complaints, world.memory, world.broken) == ([], {}, None)


def test_a_frame_may_be_overwritten_as_soon_as_submit_returns(engine: Engine) -> None:
    """A camera's buffer is used again while the GPU has not even begun."""
    image = pictures(1)[0]
    wanted = engine.encode([image])
    pending = engine.submit([image])
    image[:] = 0
    assert np.array_equal(pending.result(), wanted)


def test_submit_does_not_wait_and_at_most_two_are_in_flight(engine: Engine, simulated_gpu: World) -> None:
    images = [[image] for image in pictures(3)]
    for image in images:
        engine.encode(image)  # programs are made
    engine.encode(images[0])
    del simulated_gpu.executed[:]
    first, second = engine.submit(images[0]), engine.submit(images[1])
    assert simulated_gpu.executed == []  # nobody has waited, so nothing has run
    third = engine.submit(images[2])
    assert simulated_gpu.executed.count("forward") == 1  # the first had to go, to make room
    third.result()
    assert simulated_gpu.executed.count("forward") == 3
    for pending, image in zip((first, second, third), images, strict=True):
        assert np.array_equal(pending.result(), engine.encode(image))


def test_the_next_frame_goes_up_beside_the_forward(engine: Any) -> None:
    """Not before it, on the same stream: the copy stream holds what goes up, the compute stream the rest."""
    image = pictures(1)
    engine.encode(image)
    engine.encode(image)
    session = engine._session
    pending = [engine.submit(image), engine.submit(image)]
    assert [name for name, _ in session.copy.work] == ["up", "event", "up", "event"]
    steps = ["wait", "columns", "rows", "forward", "down", "event"]
    assert [name for name, _ in session.compute.work] == steps * 2
    assert [p.result().shape for p in pending] == [(1, 32)] * 2


def test_frames_go_up_once_and_only_the_part_that_is_seen(engine: Any) -> None:
    engine.encode(pictures(2, 90, 200))
    (program,) = (p for (size, n), p in engine._session.lanes[0]._programs.items() if size == (90, 200) and n == 2)
    assert program.staging.dtype == np.uint8
    assert program.staging.shape[0] == 2
    assert program.staging.shape[1] == 90
    assert 90 <= program.staging.shape[2] < 110


def test_graphs_are_recorded_once_and_launched_every_time(engine: Any, simulated_gpu: World) -> None:
    before = simulated_gpu.recorded
    launched = simulated_gpu.launched
    for _ in range(10):
        engine.encode(pictures(1, 61, 83))
    assert simulated_gpu.recorded - before == 2  # one in each lane
    assert simulated_gpu.launched - launched == 10


def test_the_least_recently_used_program_makes_room(engine: Any, simulated_gpu: World) -> None:
    images = sizes(sessions._KEPT + 5)
    for image in images * 2:  # an odd number, so that both lanes meet them all
        engine.encode([image])
    held, used = len(simulated_gpu.memory), simulated_gpu.used()
    wanted = [engine.encode([image]) for image in images]
    for lane in engine._session.lanes:
        assert len(lane._programs) == sessions._KEPT
    for _ in range(3):
        for image, vector in zip(images, wanted, strict=True):
            assert np.array_equal(engine.encode([image]), vector)
    assert len(simulated_gpu.memory) == held
    assert abs(simulated_gpu.used() - used) < 300_000  # sizes differ
    recorded = simulated_gpu.recorded
    for _ in range(3):
        engine.encode([images[-1]])
    assert simulated_gpu.recorded == recorded  # it was kept


def test_one_in_each_profile(engine: Any) -> None:
    engine.encode(pictures(1))
    engine.encode(pictures(5))
    contexts = {n: p._context.profile for lane in engine._session.lanes for (_, n), p in lane._programs.items()}
    assert contexts[1] == 0
    assert contexts[8] == 1  # five are rounded up


def test_a_maximum_that_the_user_names(simulated_gpu: World, tiny: Path) -> None:
    images = pictures(7)
    with opened(tiny, max_batch=3) as engine, open_engine(tiny, "onnx") as reference:
        assert engine.max_batch == 3
        assert engine._session.batches == [(1, 1, 1), (1, 3, 3)]
        assert near(engine.encode(images), reference.encode(images))
    with opened(tiny, max_batch=1) as engine:
        assert engine._session.batches == [(1, 1, 1)]
        assert engine.encode(images).shape == (7, 32)
    with pytest.raises(BackendError, match="max_batch must be from 1 to 1024, not 5000"):
        opened(tiny, max_batch=5000)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_graph_of_a_fixed_batch(simulated_gpu: World, tmp_path: Path, batch: int) -> None:
    images = pictures(6)
    with open_engine(graph_of(tmp_path, 2.0, batch=batch), "onnx") as reference:
        wanted = reference.encode(images)
    with opened(tmp_path) as engine:
        assert engine.max_batch == batch
        assert np.allclose(engine.encode(images), wanted, atol=1e-4)
        assert np.allclose(engine.encode(images[:1]), wanted[:1], atol=1e-4)


def test_every_output_of_the_model_has_its_buffers(simulated_gpu: World, patches: Path) -> None:
    images = pictures(3)
    with opened(patches) as engine, open_engine(patches, "onnx") as reference:
        given, wanted = engine._run(images), reference._run(images)
        assert {name: values.shape for name, values in given.items()} == {
            "image_embeds": (3, 32),
            "patch_embeds": (3, 4, 4, 32),
        }
        for name, values in wanted.items():
            flat = given[name].reshape(3, -1), np.asarray(values).reshape(3, -1)
            assert centered_cosines(*flat).min() > 0.9999, name


def test_where_nothing_can_be_recorded_each_step_is_started_by_itself(
    tiny: Path, plan_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    simulated_tensorrt.install(monkeypatch, world, plan_cache, refuses_capture=True)
    caplog.set_level("INFO", "clipsight")
    images = pictures(3)
    with opened(tiny) as engine, open_engine(tiny, "onnx") as reference:
        for _ in range(3):
            assert near(engine.encode(images), reference.encode(images))
    assert world.launched == 0
    assert "not recorded as a CUDA graph" in caplog.text
    assert "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in caplog.text


def test_exhausted_memory_is_one_line_and_the_engine_goes_on(engine: Engine, simulated_gpu: World) -> None:
    small = pictures(1)
    wanted = engine.encode(small)
    engine.encode(small)
    held = len(simulated_gpu.memory)
    simulated_gpu.total = simulated_gpu.used() + 100_000
    pending = engine.submit(pictures(1, 720, 1280))
    with pytest.raises(BackendError) as caught:
        pending.result()
    wanted_line = r"the memory of Simulated GPU is exhausted \(0 of \d+ MiB are free\); end other programs on it, or use .*"
    assert re.fullmatch(wanted_line, str(caught.value))
    assert len(simulated_gpu.memory) < held  # what was kept for others was tried, and what was allocated is given back
    simulated_gpu.total = 1 << 33
    assert np.array_equal(engine.encode(small), wanted)
    assert engine.encode(pictures(1, 720, 1280)).shape == (1, 32)


def test_programs_of_other_sizes_make_room_for_a_large_picture(engine: Any, simulated_gpu: World) -> None:
    kept = [pictures(1, 700 + 10 * i, 700) for i in range(4)]
    for image in kept * 2:
        engine.encode(image)
        engine.encode(image)
    simulated_gpu.total = simulated_gpu.used() + 100_000  # not enough for one more, until something goes
    other = pictures(1, 755, 700)
    wanted = engine.encode(other)
    assert np.array_equal(engine.encode(other), wanted)
    assert 1 in [len(lane._programs) for lane in engine._session.lanes]  # one lane gave up all that it kept
    simulated_gpu.total = 1 << 33
    assert np.array_equal(engine.encode(kept[0]), engine.encode(kept[0]))


def test_memory_that_is_exhausted_while_opening_leaves_nothing(
    tiny: Path, plan_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    simulated_tensorrt.install(monkeypatch, world, plan_cache)
    with opened(tiny):
        needed = world.used()
    for total in range(0, needed, needed // 12):  # wherever it runs out
        world.total = total
        with pytest.raises(BackendError, match="is exhausted"):
            opened(tiny)
        gc.collect()
        assert (world.complaints, world.memory, world.stack()) == ([], {}, [])


def test_a_failed_kernel_is_one_clear_error_and_closing_does_not_hang(
    tiny: Path, plan_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    simulated_tensorrt.install(monkeypatch, world, plan_cache)
    engine = opened(tiny)
    image = pictures(1)
    wanted = engine.encode(image)
    before = engine.submit(image)
    assert np.array_equal(before.result(), wanted)
    break_a_kernel(engine)
    pending = engine.submit(image)
    for _ in range(2):  # and again, for whoever asks again
        with pytest.raises(BackendError) as caught:
            pending.result()
        assert str(caught.value).endswith("CUDA is lost to this process; start the program again")
        assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="start the program again"):
        engine.encode(image)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    with pytest.raises(BackendError, match="closed"):
        engine.encode(image)


def test_results_asked_for_after_closing_are_still_there(simulated_gpu: World, tiny: Path) -> None:
    images = pictures(2)
    engine = opened(tiny)
    wanted = engine.encode(images)
    pending = [engine.submit(images[:1]), engine.submit(images[1:])]
    engine.close()
    assert np.allclose(np.concatenate([p.result() for p in pending]), wanted, atol=1e-6)


def test_a_context_that_another_made_current_is_current_again(engine: Engine, simulated_gpu: World) -> None:
    theirs = object()
    simulated_gpu.stack().append(theirs)
    try:
        engine.encode(pictures(1))
        assert simulated_gpu.stack() == [theirs]
        with pytest.raises(BackendError):
            simulated_gpu.total = 0
            engine.encode(pictures(1, 333, 444))
        assert simulated_gpu.stack() == [theirs]
    finally:
        simulated_gpu.stack().clear()
        simulated_gpu.total = 1 << 33


def test_waiting_sleeps_in_the_background_and_spins_otherwise(simulated_gpu: World, tiny: Path) -> None:
    for background, flag in ((False, 0), (True, 1)):
        with opened(tiny, background=background) as engine:
            assert engine._session.lanes[0]._done.flags & 1 == flag


def test_nothing_is_left_after_many_encodes(engine: Engine, simulated_gpu: World) -> None:
    images = sizes(12)
    for image in images * 3:
        engine.encode([image])
    held = len(simulated_gpu.memory)
    for i in range(300):
        engine.encode([images[(5 * i) % 12]])
    assert len(simulated_gpu.memory) == held


ENDING = """
import atexit, sys
sys.path.insert(0, sys.argv[1])
from simulated_cuda import World
world = World()
atexit.register(lambda: print(world.complaints, len(world.memory), world.stack(), world.detached))  # runs after clipsight's
import threading, time
from pathlib import Path
import numpy as np
import pytest
import simulated_tensorrt
from clipsight.engines import BackendError, open_engine
simulated_tensorrt.install(pytest.MonkeyPatch(), world, Path(sys.argv[3]))
engine = open_engine(sys.argv[2], "tensorrt-rtx", precision="fp32")
image = [np.zeros((90, 120, 3), np.uint8)]
engine.encode(image)
def work():
    try:
        while True:
            engine.encode(image)
    except BackendError:
        pass  # closed under it, because the program ends
"""
ENDINGS = {
    "closed": "engine.close()",
    "not closed": "",
    "in flight": "engine.submit(image)",
    "a thread at work": "threading.Thread(target=work, daemon=True).start(); time.sleep(0.5)",
    "an error": "raise SystemExit('an error')",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_however_the_program_ends_the_gpu_is_left_in_order(ending: str, tiny: Path, tmp_path: Path) -> None:
    """pycuda aborts a process that ends with a thread in a context, and warns of each object that goes without one."""
    code = ENDING + ENDINGS[ending]
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tiny), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (1 if ending == "an error" else 0), done.stderr
    assert done.stdout.splitlines()[-1] == "[] 0 [] 1", done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("compiling ")]
    assert said in ([], ["an error"])


def test_what_is_lost_is_not_freed_and_nothing_new_is_opened(
    tiny: Path, plan_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    simulated_tensorrt.install(monkeypatch, world, plan_cache)
    engine = opened(tiny)
    break_a_kernel(engine)
    with pytest.raises(BackendError, match="CUDA is lost"):
        engine.encode(pictures(1))
    held = len(world.memory)
    engine.close()
    assert engine.gpu.lost
    assert len(world.memory) == held  # every `free` would be a warning of pycuda's
    with pytest.raises(BackendError, match="CUDA is lost"):
        opened(tiny)
