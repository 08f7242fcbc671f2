"""TensorRT on a real NVIDIA GPU: python -m pytest -m gpu. Skipped, with the reason, where there is none.

CLIPSIGHT_GPU_MODEL names a model folder where torch and onnx are not there to make one; CLIPSIGHT_GPU_ENCODES is how often the
leak test encodes (by default 2,000; 200,000 for the record in BENCHMARKS.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipsight.engines import BackendError, Image, available, open_engine, prepare
from clipsight.engines.compiled import gate
from clipsight.engines.compiled.device import driver
from clipsight.engines.tensorrt_engine import TensorRTEngine

REASON = driver()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(1500),  # a plan of ViT-B/16 takes TensorRT 8.6 minutes
]
RUNTIMES = [name for name in ("tensorrt", "tensorrt-rtx") if REASON is None and available()[name] is None]
ENCODES = int(os.environ.get("CLIPSIGHT_GPU_ENCODES", "2000"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/16 in true shape, random weights with outliers."""
    given = os.environ.get("CLIPSIGHT_GPU_MODEL")
    if given:
        return Path(given)
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from test_engines import export_random

    from clipsight.engines.towers import ARCHS

    arch = {key: value for key, value in ARCHS["ViT-B-16"].items() if key != "text_cfg"}
    return export_random(tmp_path_factory.mktemp("vit"), "ViT-B-16", arch)


@pytest.fixture(scope="module", params=RUNTIMES or ["none"])
def engine(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param == "none":
        pytest.skip("neither tensorrt nor tensorrt-rtx is installed: python -m clipsight.engines list")
    cache = pytest.MonkeyPatch()
    cache.setenv("CLIPSIGHT_CACHE", str(tmp_path_factory.mktemp("cache") / "own"))  # no plan of an older day
    with open_engine(model, request.param) as engine:
        yield engine
    cache.undo()


def frames(n: int, height: int = 720, width: int = 1280) -> list[Image]:
    return gate.render(n, height, width)


def test_the_model_is_the_model_with_outliers_in_fp16(engine: Any) -> None:
    assert engine.precision == "fp16"
    assert engine.facts["cosine"] >= 0.99
    assert engine.facts["agreement"] >= 0.99
    print(f"{engine.name}: {engine.facts}")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_pass_the_gate(engine: Any, model: Path, precision: Any) -> None:
    if precision == "bf16" and not engine.family.strongly_typed:
        with pytest.raises(BackendError, match="knows no bf16"):
            open_engine(model, engine.name, precision="bf16", max_batch=4)
        return
    with open_engine(model, engine.name, precision=precision, max_batch=4) as other:
        assert isinstance(other, TensorRTEngine)
        print(f"{other.name} {precision}: {other.facts}")


@pytest.mark.parametrize("size", [(720, 1280), (480, 640), (1080, 1920), (37, 1001), (224, 224), (20, 30)])
def test_pixel_values_are_those_that_the_host_prepares(engine: Any, size: tuple[int, int]) -> None:
    """What prepare.cu leaves on the device, brought back: one 8-bit level from `prepare` at the most."""
    images = frames(2, *size)
    engine.encode(images)
    session, card = engine._session, engine.card
    lane = session.lanes[(session._turn + 1) % 2]  # the one that has just worked
    with session.gpu.current():
        values = session.gpu.cuda.pagelocked_empty((2, 3, card.size, card.size), np.float32)
        session.gpu.cuda.memcpy_dtoh_async(values, lane.pixels, session.compute)
        session.compute.synchronize()
        off = np.abs(values - prepare(images, card)) * np.asarray(card.std)[None, :, None, None] * 255
        del values
    assert off.max() < 1.01
    assert (off > 0.5).mean() < 1e-3


def test_every_batch_and_mixed_sizes_give_each_picture_its_own_vector(engine: Any) -> None:
    images = frames(40)
    alone = np.concatenate([engine.encode([image]) for image in images])
    for n in (1, 2, 3, 7, 32, 40):
        assert ((engine.encode(images[:n]) * alone[:n]).sum(1) > 0.9995).all(), n
    mixed = frames(3) + frames(2, 480, 640) + frames(1, 300, 100)
    together = engine.encode(mixed)
    for image, row in zip(mixed, together, strict=True):
        assert (engine.encode([image])[0] * row).sum() > 0.999


def test_the_forward_is_a_graph(engine: Any) -> None:
    engine.encode(frames(1))
    programs = [program for lane in engine._session.lanes for program in lane._programs.values()]
    assert programs
    assert all(program._graph is not None for program in programs)


def test_two_in_flight_and_many_threads(engine: Any) -> None:
    images = frames(16)
    wanted = np.concatenate([engine.encode([image]) for image in images])
    waiting = [engine.submit([image]) for image in images]
    given = np.concatenate([w.result() for w in waiting])
    assert ((given * wanted).sum(1) > 0.9999).all()
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if (engine.encode([images[i]])[0] * wanted[i]).sum() < 0.9999:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    assert not wrong


def test_beside_torch_in_one_process(engine: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    image = frames(1)
    wanted = engine.encode(image)
    a = torch.randn(512, 512, device="cuda")
    before = (a @ a).sum().item()
    for _ in range(20):
        product = a @ a  # in flight while the engine works
        given = engine.encode(image)
        assert product.sum().item() == pytest.approx(before)
        assert (given * wanted).sum() > 0.9999
    with open_engine(engine._folder, engine.name) as second:
        assert (second.encode(image) * wanted).sum() > 0.9999
    assert (a @ a).sum().item() == pytest.approx(before)  # closing took nothing from it
    assert (engine.encode(image) * wanted).sum() > 0.9999


def resident() -> int:
    """Kilobytes of this process in memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def test_nothing_leaks_on_host_or_device(engine: Any) -> None:
    small = [frames(1, 90 + 10 * i, 160)[0] for i in range(24)]  # more sizes than programs are kept
    usual = frames(1)

    def work(times: int) -> None:
        for i in range(times):
            engine.encode(usual if i % 50 else [small[(i // 50) % 24]])

    work(2400)
    gpu = engine.gpu
    with gpu.current():
        free = gpu.cuda.mem_get_info()[0]
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    work(ENCODES)
    with gpu.current():
        lost = free - gpu.cuda.mem_get_info()[0]
    print(f"{engine.name}: {ENCODES} encodes, host {resident() - before:+d} kB, device {lost:+d} bytes")
    assert resident() - before < 20_000
    assert lost <= 2 << 20  # the driver takes memory in pieces of 2 MiB
    assert len(os.listdir("/proc/self/fd")) == files


FAILING = """
import sys
import numpy as np
from clipsight.engines import BackendError, open_engine
from clipsight.engines.compiled.kernels import region
engine = open_engine(sys.argv[1], sys.argv[2])
image = np.zeros((720, 1280, 3), np.uint8)
engine.encode([image])
session = engine._session
{what}
for _ in range(2):
    try:
        engine.encode([np.zeros((720, 1279, 3), np.uint8)])
    except BackendError as error:
        print("told:", error)
engine.close()
print("closed")
"""
A_KERNEL = """
part = region(720, 1280, 224, "crop", "bicubic")
with session.gpu.current():
    session.kernels.columns(session.compute, 64, part, 64, 64, 64, 1)  # addresses that are nobody's
"""
NO_MEMORY = """
taken = []
with session.gpu.current():
    for size in (1 << 30, 1 << 24, 1 << 20):
        try:
            while True:
                taken.append(session.gpu.cuda.mem_alloc(size))
        except session.gpu.cuda.MemoryError:
            pass
"""


@pytest.mark.parametrize(
    ("what", "told"), [(A_KERNEL, "start the program again"), (NO_MEMORY, "is exhausted")], ids=["kernel", "memory"]
)
def test_a_failure_is_one_line_in_the_caller_and_no_hang(engine: Any, model: Path, what: str, told: str) -> None:
    code = FAILING.format(what=what)
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), engine.name], capture_output=True, text=True, timeout=240, check=False
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "closed", done.stdout + done.stderr
    assert sum(line.startswith("told: ") and told in line for line in lines) == 2, done.stdout + done.stderr
