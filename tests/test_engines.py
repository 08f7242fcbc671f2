"""One contract for every backend, and the same answers from all of them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL.Image
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clipsight.engines import (
    BackendError,
    BackendMissing,
    Engine,
    Image,
    ImageError,
    ModelCard,
    ModelError,
    available,
    open_engine,
    prepare,
    registry,
)
from clipsight.labels.__main__ import bank_of_npz

CPU = ["onnx", "openvino", "torch"]  # in auto's order
ALL = [*CPU, "tensorrt-rtx"]
TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
}


def export_random(folder: Path, name: str, arch: dict[str, Any]) -> Path:
    from clipsight.engines.export import export
    from clipsight.engines.random_weights import random_card, random_model

    export(random_model(arch, 0), folder, random_card(name, arch, 0))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_random(tmp_path_factory.mktemp("tiny"), "tiny", TINY)


def pictures(n: int, height: int = 90, width: int = 120) -> list[Image]:
    """Pictures that differ as photographs do: a color, a slope and noise each."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:height, 0:width]
    made = []
    for _ in range(n):
        waves = np.sin(x[..., None] / rng.uniform(5, 40, 3) + y[..., None] / rng.uniform(5, 40, 3))
        image = rng.uniform(40, 215, 3) + rng.uniform(20, 80, 3) * waves + rng.normal(0, 8, (height, width, 3))
        made.append(np.clip(image, 0, 255).astype(np.uint8))
    return made


def centered_cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each pair of rows after the mean row is taken away: random weights put all pictures in one corner."""
    a, b = a - a.mean(0), b - b.mean(0)
    cosines: NDArray[np.float32] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines


# Prints the priorities of the threads, but the main one, that do the work: those with at least a quarter of the processor
# time of the busiest, once all have started (BLAS's own idle threads spin for a moment after numpy is loaded).
WORKERS = """
import os, sys, time
import numpy as np
from clipsight.engines import open_engine
image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        engine.encode([image] * 32)
    used = {}
    for task in os.listdir("/proc/self/task"):
        fields = open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()
        used[int(task)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[16]
    return used
with open_engine(sys.argv[1], sys.argv[2], background=True) as engine:
    before, after = work(1), work(3)
gained = {task: (cpu - before.get(task, (0,))[0], nice) for task, (cpu, nice) in after.items() if task != os.getpid()}
most = max(cpu for cpu, _ in gained.values())
print(*sorted({nice for cpu, nice in gained.values() if cpu >= max(most / 4, 0.01)}))
"""


def opened(folder: Path, backend: str, **settings: Any) -> Engine:
    """The engine in float32, which is not every backend's own choice."""
    return open_engine(folder, backend, precision="fp32", **settings)


@pytest.mark.parametrize("backend", ALL)
class TestEngine:
    @pytest.fixture(autouse=True)
    def where_it_runs(self, backend: str, request: pytest.FixtureRequest) -> None:
        if backend == "tensorrt-rtx":
            request.getfixturevalue("simulated_gpu")

    @pytest.fixture
    def engine(self, tiny: Path, backend: str) -> Iterator[Engine]:
        with opened(tiny, backend) as engine:
            yield engine

    def test_unit_rows_of_the_cards_length(self, engine: Engine, backend: str) -> None:
        vectors = engine.encode(pictures(5))
        assert vectors.shape == (5, 32)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert engine.name == backend
        assert engine.encode([]).shape == (0, 32)

    def test_each_picture_by_itself_whatever_is_beside_it(self, engine: Engine) -> None:
        images = pictures(2) + pictures(2, 64, 200) + pictures(1, 300, 50)
        together = engine.encode(images)
        for image, row in zip(images, together, strict=True):
            assert np.allclose(engine.encode([image])[0], row, atol=2e-5)

    def test_more_than_one_batch(self, engine: Engine) -> None:
        engine.max_batch = 4
        images = pictures(11)
        whole = engine.encode(images)
        assert np.allclose(whole, np.concatenate([engine.encode(images[:5]), engine.encode(images[5:])]), atol=2e-5)

    def test_it_is_fed_by_prepare(self, engine: Engine, tiny: Path) -> None:
        import onnxruntime

        images = pictures(4)
        session = onnxruntime.InferenceSession(str(tiny / "image.onnx"), providers=["CPUExecutionProvider"])
        (wanted,) = session.run(["image_embeds"], {"pixel_values": prepare(images, engine.card)})
        assert centered_cosines(engine.encode(images), wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).min() > 0.99999

    def test_pictures_of_another_form_are_refused_before_anything_runs(self, engine: Engine) -> None:
        with pytest.raises(ImageError):
            engine.submit([np.zeros((4, 4), np.uint8)])

    def test_results_stay_after_the_next_call(self, engine: Engine) -> None:
        first, second = pictures(2)
        kept = engine.encode([first])
        copy = kept.copy()
        engine.encode([second])
        assert np.array_equal(kept, copy)

    def test_two_calls_in_flight(self, engine: Engine) -> None:
        images = pictures(2)
        a, b = engine.submit(images[:1]), engine.submit(images[1:])
        assert np.allclose(np.concatenate([a.result(), b.result()]), engine.encode(images), atol=2e-5)

    def test_opened_here_used_there_closed_elsewhere(self, tiny: Path, backend: str) -> None:
        def in_thread(work: Any) -> Any:
            got: list[Any] = []
            thread = threading.Thread(target=lambda: got.append(work()))
            thread.start()
            thread.join(60)
            return got[0]

        engine = in_thread(lambda: opened(tiny, backend))
        assert in_thread(lambda: engine.encode(pictures(1))).shape == (1, 32)
        in_thread(engine.close)
        with pytest.raises(BackendError, match="closed"):
            engine.encode(pictures(1))

    def test_many_threads_at_once(self, engine: Engine) -> None:
        images = pictures(6)
        wanted = engine.encode(images)
        got: dict[int, Any] = {}

        def work(i: int) -> None:
            for _ in range(5):
                got[i] = engine.encode([images[i]])[0]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert np.allclose(np.stack([got[i] for i in range(6)]), wanted, atol=2e-5)

    def test_in_the_background_the_answers_are_the_same(self, engine: Engine, tiny: Path, backend: str) -> None:
        images = pictures(4)
        before = threading.active_count()
        with opened(tiny, backend, background=True) as behind:
            assert np.allclose(behind.encode(images), engine.encode(images), atol=2e-5)
        assert threading.active_count() == before

    @pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
    def test_in_the_background_every_thread_that_works_has_lower_priority(self, tiny: Path, backend: str) -> None:
        """In a process of its own: a runtime's pool may belong to the process, and to who started it."""
        if backend == "tensorrt-rtx":
            pytest.skip("it has no threads: the GPU works")
        done = subprocess.run([sys.executable, "-c", WORKERS, str(tiny), backend], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["10"]

    def test_closing_twice_is_harmless(self, engine: Engine) -> None:
        engine.close()
        engine.close()

    def test_no_such_device_is_one_line(self, tiny: Path, backend: str) -> None:
        with pytest.raises(BackendError) as caught:
            opened(tiny, backend, device=97)
        assert "\n" not in str(caught.value)

    def test_fit_replaces_the_cards_resize(self, tiny: Path, backend: str, engine: Engine) -> None:
        image = pictures(1, 40, 200)
        with opened(tiny, backend, fit="squash") as squashed:
            assert squashed.card.resize == "squash"
            assert not np.allclose(squashed.encode(image), engine.encode(image), atol=1e-3)

    def test_a_backend_that_is_not_installed_says_the_install_line(
        self, tiny: Path, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = registry.BACKENDS[backend]
        monkeypatch.setitem(registry.BACKENDS, backend, row._replace(needs="clipsight_surely_not_there"))
        with pytest.raises(BackendMissing, match=re.escape(row.install)):
            opened(tiny, backend)
        assert available()[backend] == row.install

    def test_weights_that_are_damaged_are_one_line(self, tiny: Path, backend: str, tmp_path: Path) -> None:
        ModelCard.load(tiny).save(tmp_path)
        file = registry.BACKENDS[backend].weights
        (tmp_path / file).write_bytes((tiny / file).read_bytes()[:1000])
        with pytest.raises((BackendError, ModelError)) as caught:
            opened(tmp_path, backend)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    def test_weights_that_are_not_there(self, tiny: Path, backend: str, tmp_path: Path) -> None:
        ModelCard.load(tiny).save(tmp_path)
        with pytest.raises(ModelError, match=re.escape(registry.BACKENDS[backend].weights)):
            opened(tmp_path, backend)


def graph_of(tmp_path: Path, value: float, size: int = 8, dim: int = 3, name: str = "image_embeds", batch: Any = "n") -> Path:
    """A model folder whose answer is its input's mean color times `value`; the card says 8 pixels and 3 numbers."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Mul", ["flat", "value"], [name]),
        ],
        "g",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, dim])],
        [numpy_helper.from_array(np.array([value], np.float32), "value")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "image.onnx"))
    ModelCard("g", "g", 8, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
class TestGraphs:
    """Anyone's own ONNX file: what fits runs, what does not is told in one line."""

    def test_what_fits(self, tmp_path: Path, backend: str) -> None:
        with open_engine(graph_of(tmp_path, 2.0), backend) as engine:
            assert engine.encode(pictures(2)).shape == (2, 3)

    @pytest.mark.parametrize("batch", [1, 4])
    def test_a_fixed_batch_is_kept_to(self, tmp_path: Path, backend: str, batch: int) -> None:
        with open_engine(graph_of(tmp_path, 2.0), backend) as free:
            wanted = free.encode(pictures(6))
        with open_engine(graph_of(tmp_path, 2.0, batch=batch), backend) as engine:
            assert engine.max_batch == batch
            assert np.allclose(engine.encode(pictures(6)), wanted, atol=1e-6)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
    def test_vectors_without_a_direction_are_an_error(self, tmp_path: Path, backend: str, value: float) -> None:
        with (
            open_engine(graph_of(tmp_path, value), backend) as engine,
            pytest.raises(BackendError, match="NaN, infinite or zero"),
        ):
            engine.encode(pictures(1))

    def test_another_input_size_than_the_cards(self, tmp_path: Path, backend: str) -> None:
        with pytest.raises(ModelError, match="correct 'size'"):
            open_engine(graph_of(tmp_path, 1.0, size=16), backend)

    def test_another_output_name(self, tmp_path: Path, backend: str) -> None:
        with pytest.raises(ModelError, match="image_embeds"):
            open_engine(graph_of(tmp_path, 1.0, name="logits"), backend)

    def test_another_length_than_the_cards(self, tmp_path: Path, backend: str) -> None:
        card = ModelCard("g", "g", 8, 5, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        graph_of(tmp_path, 1.0)
        card.save(tmp_path)
        with open_engine(tmp_path, backend) as engine, pytest.raises(BackendError, match="correct 'dim'"):
            engine.encode(pictures(1))


def test_auto_takes_the_first_that_is_installed_and_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(available()) == ["tensorrt", "tensorrt-rtx", *CPU, "torch-script", "torch-compile"]
    caplog.set_level("INFO", "clipsight")
    for gone in (None, "onnx", "openvino"):
        if gone:
            row = registry.BACKENDS[gone]
            monkeypatch.setitem(registry.BACKENDS, gone, row._replace(needs="clipsight_surely_not_there"))
        with open_engine(tiny) as engine:
            wanted = CPU[CPU.index(gone) + 1] if gone else CPU[0]
            assert engine.name == wanted
            assert f"engine: {wanted}" in caplog.text


def test_no_such_model_backend_or_precision(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="one of: demo"):
        open_engine("no-such-model")
    with pytest.raises(ModelError, match="give the folder"):
        open_engine(tiny / "image.onnx")
    with pytest.raises(BackendError, match="use auto, tensorrt"):
        open_engine(tiny, "tenserrt")
    with pytest.raises(BackendError, match="auto, fp32, fp16, bf16"):
        open_engine(tiny, precision="int3")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"make one: python -m clipsight.engines export .*image.safetensors -o FOLDER"):
        open_engine(tiny / "image.safetensors")
    for backend in ("onnx", "openvino"):
        with pytest.raises(BackendError, match=f"{backend} does not run bf16; use --precision fp32 or fp16"):
            open_engine(tiny, backend, precision="bf16")
    with pytest.raises(BackendError, match="max_batch must be at least 1, not 0"):
        open_engine(tiny, max_batch=0)
    with open_engine(tiny, "onnx", max_batch=3) as engine:
        assert engine.max_batch == 3
    ModelCard.load(tiny).save(tmp_path)
    with pytest.raises(ModelError, match="neither image"):
        open_engine(tmp_path)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_fp16_is_another_file_and_nearly_the_same_answer(tiny: Path, backend: str) -> None:
    images = pictures(8)
    with open_engine(tiny, backend) as full, open_engine(tiny, backend, precision="fp16") as half:
        a, b = full.encode(images), half.encode(images)
    assert not np.array_equal(a, b)
    assert centered_cosines(a, b).min() > 0.999


def test_150_photographs_are_named_right_and_alike_by_every_runtime(real: Path) -> None:
    """Real encoder, real photographs. 82.7 % and 97.3 % (146 of 150) is what PIL's own preparation gives here, too."""
    files = sorted((real / "images" / "imagenet").glob("*.jpg"))
    assert len(files) == 150
    truth = np.array([int(f.stem) for f in files])
    images = [np.ascontiguousarray(np.asarray(PIL.Image.open(f).convert("RGB"))[:, :, ::-1]) for f in files]
    bank = bank_of_npz(real / "encoder" / "imagenet1k_label_matrix.npz", str(real / "encoder"))
    vectors = {}
    for backend in ("onnx", "openvino"):
        with open_engine(real / "encoder", backend) as engine:
            vectors[backend] = engine.encode(images)
        values = np.stack([s.values for s in bank.score(vectors[backend])])
        order = np.argsort(-values, axis=1)
        assert (order[:, 0] == truth).mean() >= 0.82, backend
        assert (order[:, :5] == truth[:, None]).any(1).mean() >= 0.973, backend
    assert (vectors["onnx"] * vectors["openvino"]).sum(1).min() >= 0.9999


def test_a_vit_of_true_shape_is_the_same_in_every_backend(real: Path, tmp_path: Path) -> None:
    """ViT-B/16, 86 million weights with outliers as CLIP has them, on photographs; centered cosines."""
    from clipsight.engines.towers import ARCHS

    arch = {key: value for key, value in ARCHS["ViT-B-16"].items() if key != "text_cfg"}
    export_random(tmp_path, "ViT-B-16", arch)
    files = sorted((real / "images" / "imagenet").glob("*.jpg"))[:12]
    images = [np.ascontiguousarray(np.asarray(PIL.Image.open(f).convert("RGB"))[:, :, ::-1]) for f in files]
    vectors = {}
    for backend in CPU:
        with open_engine(tmp_path, backend) as engine:
            vectors[backend] = engine.encode(images)
    for other in ("openvino", "torch"):
        assert centered_cosines(vectors["onnx"], vectors[other]).min() >= 0.9999, other
