"""Opening a model in TensorRT: what is missing is said, a plan is built once and kept, and what is not the model is not.

The plans are real, built by TensorRT for RTX; the GPU they run on is simulated (`simulated_tensorrt`).
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib.abc
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import pytest
import simulated_tensorrt
from onnx import TensorProto, helper, numpy_helper
from simulated_cuda import World, host_kernels
from simulated_tensorrt import SimulatedFamily
from test_building import refused
from test_engines import graph_of, pictures

from clipsight.engines import BackendError, BackendMissing, ModelCard, ModelError, available, open_engine, registry
from clipsight.engines import tensorrt_engine as engines
from clipsight.engines.__main__ import main
from clipsight.engines.compiled import device, families, gate, plans

posix = pytest.mark.skipif(os.name != "posix", reason="needs modes and processes of POSIX")
RTX = "tensorrt-rtx"
WAITING = "another process is building this plan; waiting for it"


class Machine:
    """A simulated machine with a cache of its own; what it built and what it opened is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, world: World) -> None:
        self.world, self.cache = world, cache
        self.family = simulated_tensorrt.install(monkeypatch, world, cache)
        self.built: list[tuple[str, int]] = []
        self.opened: list[bytes] = []
        build, really = vars(engines)["build"], self.family.open

        def building(family: Any, folder: Path, card: Any, precision: str, max_batch: int, target: Any = None) -> Any:
            self.built.append((precision, max_batch))
            return build(family, folder, card, precision, max_batch, target)

        def opening(family: SimulatedFamily, plan: bytes) -> Any:
            self.opened.append(plan)
            return really(family, plan)

        monkeypatch.setattr(self.family, "graphs", {})  # those that this machine knows
        monkeypatch.setattr(engines, "build", building)
        monkeypatch.setattr(self.family, "open", opening)

    def kept(self) -> list[str]:
        """What is in the cache, but for locks."""
        return sorted(path.name for path in self.cache.rglob("*") if path.is_file() and path.suffix != ".lock")

    def plan(self) -> Path:
        (plan,) = self.cache.rglob("*.plan")
        return plan


MakeMachine = Callable[..., Machine]


@pytest.fixture(scope="module")
def rendered() -> list[Any]:
    return gate.render()


@pytest.fixture
def machines(trt: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rendered: list[Any]) -> Iterator[MakeMachine]:
    """Makes simulated machines; nothing may be left on them."""
    made: list[Machine] = []

    def make(**options: Any) -> Machine:
        made.append(Machine(monkeypatch, tmp_path / f"cache{len(made)}", World(**options)))
        return made[-1]

    monkeypatch.setattr(gate, "render", lambda: rendered)  # the same pictures, not drawn again
    yield make
    gc.collect()
    for machine in made:
        assert machine.world.complaints == []
        assert machine.world.stack() == []
        assert not machine.world.memory, "memory was not freed"


@pytest.fixture
def machine(machines: MakeMachine) -> Machine:
    return machines()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of one multiplication."""
    folder = tmp_path / "model"
    folder.mkdir()
    return graph_of(folder, 2.0)


def opened(model: Path, **settings: Any) -> engines.TensorRTEngine:
    engine = open_engine(model, RTX, **settings)
    assert isinstance(engine, engines.TensorRTForRTXEngine)
    return engine


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.name == "clipsight" and record.levelno >= level]
    assert not any("\n" in line for line in said)
    return said


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], list[str]]:
    """The exit status of `python -m clipsight.engines WORDS`, and the lines it prints."""
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err.splitlines()


# What is missing

NO_DRIVER = "there is no NVIDIA driver here (libcuda.so.1 does not load); install one and check it: nvidia-smi"
INSTALL = 'pip install -e ".[tensorrt-rtx]"'


class Libcuda:
    """libcuda.so.1 as far as it is asked whether there is a GPU."""

    def __init__(self, init: int = 0, counting: int = 0, count: int = 0) -> None:
        self._init, self._counting, self._count = init, counting, count

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self._init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._count
        return self._counting


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (Libcuda(count=1), None),
        (None, "there is no NVIDIA driver here ("),
        (Libcuda(init=35), "the NVIDIA driver does not start (CUDA error 35); see what it says: nvidia-smi"),
        (Libcuda(counting=803), "the NVIDIA driver does not start (CUDA error 803); see what it says: nvidia-smi"),
        (Libcuda(), "the NVIDIA driver sees no GPU; see which there are: nvidia-smi; in a container add --gpus all"),
    ],
)
def test_whether_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, library: Libcuda | None, said: str | None) -> None:
    def load(name: str) -> Libcuda:
        assert name in ("libcuda.so.1", "nvcuda.dll")
        if library is None:
            raise OSError(f"{name}: cannot open shared object file\nno such file")
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    reason = device.driver.__wrapped__()
    if said is None:
        assert reason is None
    else:
        assert reason is not None
        assert reason.startswith(said)
        assert "\n" not in reason
        assert "nvidia-smi" in reason


def here() -> bool:
    return device.driver() is None


def test_this_machine_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """As a user types it, in a process of its own."""
    if here():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, "-m", "clipsight.engines", "build", "demo"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said == f"clipsight: tensorrt: {registry.missing(registry.BACKENDS['tensorrt'])}"
    assert "NVIDIA driver" in said
    assert "nvidia-smi" in said
    status, out, err = command(capsys, "list")
    assert (status, err) == (0, [])
    for name in ("tensorrt", RTX):
        (line,) = (line for line in out if line.split()[:1] == [name])
        assert line.split(maxsplit=1)[1] == available()[name]
        assert "nvidia-smi" in line


def test_no_driver(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(device, "driver", lambda: NO_DRIVER)
    with pytest.raises(BackendError) as caught:
        opened(model)
    assert str(caught.value) == f"{RTX}: {NO_DRIVER}"
    assert not isinstance(caught.value, ImportError)  # nothing is lacking that can be installed by pip
    assert refused(BackendError, lambda: engines.TensorRTForRTXEngine(model, ModelCard.load(model))) == NO_DRIVER
    assert available()[RTX] == NO_DRIVER
    monkeypatch.setitem(sys.modules, "pycuda", None)
    assert refused(BackendMissing, lambda: opened(model)) == f"{RTX}: {NO_DRIVER}; then run: {INSTALL}"
    for words in (["build", str(model), "--engine", RTX], ["adopt", "absent", str(model), "--sha256", "0" * 64]):
        status, out, err = command(capsys, *words)
        assert (status, out, len(err)) == (2, [], 1)
    assert machine.built == []


@pytest.mark.parametrize("package", registry.BACKENDS[RTX].needs.split())
def test_a_package_that_is_not_installed(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    wanted = f"{RTX} is not installed ({package}); run: {INSTALL}"
    said = refused(BackendMissing, lambda: opened(model))
    assert said == wanted
    assert refused(ImportError, lambda: opened(model)) == wanted
    assert available()[RTX] == INSTALL
    assert command(capsys, "build", str(model), "--engine", RTX) == (2, [], [f"clipsight: {wanted}"])
    _, out, _ = command(capsys, "list")
    assert f"  {RTX} {INSTALL}" in out


@pytest.mark.parametrize("module", ["pycuda.driver", "cuda.bindings.driver"])
def test_a_package_that_does_not_load(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """It was built for another CUDA, say, or finds no library of it."""

    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                raise ImportError("libcurand.so.10: cannot open shared object file\nand more")

    package = module.rpartition(".")[0]
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(sys.modules[package], "driver")
    monkeypatch.setattr(sys.modules[package], "__path__", [], raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    for act in (lambda: opened(model), lambda: device.Gpu(0)):
        assert refused(BackendMissing, act) == (
            "TensorRT is driven through pycuda and cuda-python (libcurand.so.10: cannot open shared object file); "
            "run: pip install pycuda cuda-bindings (pycuda is built from source: engines/NVIDIA.md says what that needs)"
        )


def test_a_tensorrt_that_does_not_load(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def family(name: str) -> None:
        raise ImportError("libcudart.so.13: cannot open shared object file\nand more")

    monkeypatch.setattr(engines, "Family", family)
    assert refused(BackendMissing, lambda: opened(model)) == (
        f"{RTX} is installed but does not load (libcudart.so.13: cannot open shared object file); "
        f"run: {INSTALL} --force-reinstall"
    )


@pytest.mark.parametrize("index", [1, 7, -1])
def test_a_device_that_is_not_there(machine: Machine, model: Path, index: int, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(BackendError, lambda: opened(model, device=index))
    assert said == f"no CUDA device {index}; there are 1, from 0: nvidia-smi -L"
    status, _, err = command(capsys, "build", str(model), "--engine", RTX, "--device", str(index))
    assert (status, err[-1]) == (2, f"clipsight: {said}")
    assert machine.built == []


def test_settings_that_are_not_known(machine: Machine, model: Path) -> None:
    card = ModelCard.load(model)
    said = refused(BackendError, lambda: engines.TensorRTEngine(model, card, precision="int8"))
    assert said == "tensorrt: precision 'int8' is not known; use one of fp32, fp16, bf16"
    for most in (0, 1025):
        said = refused(BackendError, lambda n=most: engines.TensorRTEngine(model, card, max_batch=n))  # type: ignore[misc]
        assert said == f"tensorrt: max_batch must be from 1 to 1024, not {most}"
    (model / "image.onnx").rename(model / "elsewhere")
    assert refused(ModelError, lambda: opened(model)) == (
        f"{model}: image.onnx, which {RTX} runs, is not there; export the model with it"
    )
    (model / "image.onnx").touch()
    assert str(model / "image.onnx") in refused(ModelError, lambda: opened(model))
    assert machine.kept() == []


# Built once


def test_the_second_opening_takes_the_plan_from_the_cache(
    machine: Machine, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clipsight")
    images = pictures(3)
    with opened(model) as first:
        wanted = first.encode(images)
        assert 0 <= first.facts["seconds"] < 60  # rounded: a tiny graph takes none
        assert (first.facts["precision"], first.facts["max_batch"], first.facts["id"]) == ("fp16", 32, "g")
        assert (first.facts["pictures"], first.facts["agreement"]) == (64, 1)
        assert first.plan == machine.plan()
    assert machine.built == [("fp16", 32)]
    assert any("centered cosine at least 1.00000, the same label in 100.0 %" in line for line in lines(caplog))
    caplog.clear()
    with opened(model) as second:
        assert np.array_equal(second.encode(images), wanted)
        assert second.facts == first.facts
    assert machine.built == [("fp16", 32)]
    assert machine.opened[0] == machine.opened[1] == machine.plan().read_bytes()
    assert lines(caplog) == []


def test_what_a_plan_depends_on_is_built_anew(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = sys.modules["pycuda.driver"]

    def builds(**settings: Any) -> bool:
        before = len(machine.built)
        opened(model, **settings).close()
        opened(model, **settings).close()
        assert len(machine.built) <= before + 1
        return len(machine.built) > before

    assert builds()
    assert not builds(max_batch=32, precision="fp16", background=True, fit="squash")  # what it does not depend on
    assert builds(max_batch=8)
    assert builds(precision="fp32")
    with monkeypatch.context() as changed:
        changed.setattr(cuda, "get_driver_version", lambda: 12050)
        assert builds()
    with monkeypatch.context() as changed:
        changed.setattr(cuda.Device, "name", lambda _: "Another GPU")
        assert builds()
    with monkeypatch.context() as changed:
        changed.setattr(machine.world, "capability", (8, 6))
        assert builds()
    with monkeypatch.context() as changed:
        changed.setattr(engines, "RECIPE", engines.RECIPE + 1)
        assert builds()
    assert not builds()
    card = json.loads((model / "card.json").read_text())
    (model / "card.json").write_text(json.dumps({**card, "mean": [0.4, 0.4, 0.4]}))
    assert not builds()  # pictures are prepared outside of the plan
    graph_of(model, 3.0)
    assert builds()
    assert len(machine.built) == 8


def external(folder: Path, location: str, seed: int) -> None:
    """A model whose weights lie outside of its graph, in the file `location`."""
    weights = np.random.default_rng(seed).standard_normal((3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["image_embeds"]),
    ]
    takes = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, 8, 8])
    gives = helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [takes], [gives], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    (folder / location).unlink(missing_ok=True)
    onnx.save(model, str(folder / "image.onnx"), save_as_external_data=True, location=location, size_threshold=0)


@pytest.mark.parametrize("location", ["image.onnx.data", "parts/w.txt"])
def test_weights_outside_of_the_graph_count(machine: Machine, model: Path, location: str) -> None:
    external(model, location, 0)
    graph = (model / "image.onnx").read_bytes()
    opened(model).close()
    opened(model).close()
    assert len(machine.built) == 1
    external(model, location, 1)
    assert (model / "image.onnx").read_bytes() == graph
    opened(model).close()
    assert len(machine.built) == 2
    (model / location).unlink()
    assert str(model / location) in refused(ModelError, lambda: opened(model))


def test_other_files_beside_the_graph_do_not_count(machine: Machine, model: Path) -> None:
    """A plan for another machine, say, which was written there."""
    opened(model).close()
    for name in ("vit.plan", "vit.plan.json", "notes", "labels.bin"):
        (model / name).write_bytes(b"something else")
    opened(model).close()
    assert len(machine.built) == 1


@posix
@pytest.mark.parametrize("how", ["a bit has flipped", "others can write it", "another's sidecar"])
def test_a_plan_that_somebody_else_could_have_written_is_never_opened(
    machine: Machine, model: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened(model).close()
    plan = machine.plan()
    right = plan.read_bytes()
    if how == "others can write it":
        plan.chmod(0o666)
    else:
        plan.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        sidecar = plan.with_name(f"{plan.name}.json")
        if how == "another's sidecar":
            facts = json.loads(sidecar.read_text())
            sidecar.write_text(json.dumps({**facts, "sha256": plans.hash_file(plan), "driver": "99.0"}))
    tampered = plan.read_bytes()
    machine.opened.clear()
    caplog.set_level(logging.INFO, "clipsight")
    with opened(model) as engine:
        assert engine.encode(pictures(1)).shape == (1, 3)
    assert len(machine.built) == 2
    assert how == "others can write it" or tampered not in machine.opened
    assert len(machine.opened) == 1
    (reason,) = {line for line in lines(caplog) if str(plan) in line}
    assert reason.endswith("it will be made again")
    opened(model).close()
    assert len(machine.built) == 2


@posix
def test_a_cache_that_is_open_to_others_is_refused(machine: Machine, model: Path) -> None:
    folder = machine.cache / "plans"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    said = refused(BackendError, lambda: opened(model))
    assert said == (
        f"{folder}: others can reach the plans in it (mode 755); run: chmod 700 {folder}, "
        "or set CLIPSIGHT_CACHE to a folder of your own"
    )
    assert (machine.built, machine.opened) == ([], [])
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_no_reason_not_to_open(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plans, "_write", full)
    monkeypatch.setattr(machine.family, "settings", lambda *_: (None, lambda: b"kernels"))
    with opened(model) as engine:
        assert engine.encode(pictures(2)).shape == (2, 3)
        _, warning = lines(caplog, logging.WARNING)
        assert warning == (
            f"{engine.plan}: not kept (No space left on device); free space or set CLIPSIGHT_CACHE to a folder of your own"
        )
    assert machine.kept() == []


def test_compiled_kernels_are_kept_beside_the_plan(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What TensorRT for RTX compiles when a plan is opened is given to the next opening of that plan, and of no other."""
    given: list[bytes | None] = []
    compiled = [b"kernels"]

    def settings(family: Any, engine: Any, kept: bytes | None) -> Any:
        given.append(kept)
        return None, lambda: compiled[0]

    monkeypatch.setattr(machine.family, "settings", settings)
    opened(model).close()
    opened(model).close()
    compiled[0] = b"more kernels"
    opened(model).close()
    opened(model).close()
    assert given == [None, b"kernels", b"kernels", b"more kernels"]
    machine.plan().write_bytes(b"damaged")
    opened(model).close()
    assert given[4:] == [None]  # of another plan they would be of no use
    assert len(machine.built) == 2


# What is not the model


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_plan_that_is_not_the_model_is_not_kept(machine: Machine, model: Path, precision: Any) -> None:
    machine.family.wrong = 0.5
    said = refused(BackendError, lambda: opened(model, precision=precision))
    least = gate.LIMITS[precision][0]
    assert re.fullmatch(
        rf"the plan of g in {precision} is not the model: centered cosine to ONNX Runtime fp32 is 0\.\d{{4}}, at least {least} "
        "is needed; it was not kept; use .*--engine onnx",
        said,
    )
    assert ("--precision fp32" in said) == (precision != "fp32")
    assert not [name for name in machine.kept() if ".plan" in name]
    gc.collect()
    assert machine.world.used() == 0
    machine.family.wrong = 0.0
    again = refused(BackendError, lambda: opened(model, precision=precision))
    assert again == f"{said}; to try again: python -m clipsight.engines build"  # without compiling it in vain once more
    assert len(machine.built) == 1
    opened(model, precision=precision, max_batch=3).close()  # another plan is another matter


def test_build_tries_again_what_was_refused(machine: Machine, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine.family.wrong = 0.5
    refused(BackendError, lambda: opened(model))
    machine.family.wrong = 0.0
    assert command(capsys, "build", str(model), "--engine", RTX)[0] == 0
    opened(model).close()
    assert len(machine.built) == 2
    assert not [name for name in machine.kept() if "refused" in name]


def test_a_plan_that_does_not_open_any_more_is_made_anew(
    machine: Machine, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(model).close()
    machine.family.graphs.clear()  # TensorRT takes none of the plans it made
    with opened(model) as engine:
        assert engine.encode(pictures(2)).shape == (2, 3)
    assert len(machine.built) == 2
    assert [said for said in lines(caplog, logging.WARNING) if said.endswith("; compiling it anew")]


def test_auto_takes_the_next_and_says_so(machine: Machine, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine.family.wrong = 0.5
    caplog.set_level(logging.INFO, "clipsight")
    with open_engine(model) as engine:
        assert engine.name == "onnx"
        assert engine.encode(pictures(2)).shape == (2, 3)
    compiling, warning = lines(caplog, logging.WARNING)
    assert compiling.startswith("compiling g for this GPU, ")
    assert warning.startswith(f"engine: {RTX} cannot open g (the plan of g in fp16 is not the model: centered cosine")
    assert warning.endswith("; taking the next")
    assert not [name for name in machine.kept() if ".plan" in name]


def test_memory_that_does_not_suffice_is_one_line(machines: MakeMachine, model: Path) -> None:
    machine = machines(total=1 << 12)
    said = refused(BackendError, lambda: opened(model))
    assert re.fullmatch(r"the memory of Simulated GPU is exhausted \(\d+ of 0 MiB are free\); end other programs .*", said)
    assert machine.kept() == []


# At the same time

OPEN = f"""
import ctypes, logging, os, sys, time
from pathlib import Path
import pytest
import simulated_cuda, simulated_tensorrt
from clipsight.engines import open_engine, tensorrt_engine
from simulated_tensorrt import SimulatedFamily
from test_engines import pictures
folder, model, kernels = Path(sys.argv[1]), Path(sys.argv[2]), ctypes.CDLL(sys.argv[3])
simulated_cuda.host_kernels = lambda: kernels
family = simulated_tensorrt.install(pytest.MonkeyPatch(), simulated_cuda.World(), folder / "cache")
build = tensorrt_engine.build
def building(*arguments):
    (folder / f"began-{{os.getpid()}}").touch()
    deadline = time.monotonic() + 60
    while not (folder / "go").exists() and time.monotonic() < deadline: time.sleep(0.02)
    return build(*arguments)
def opening(self, plan):  # the other's plan is of this world too
    family.graphs[hash(plan)] = model / "image.onnx", 32
    return SimulatedFamily.open(self, plan)
tensorrt_engine.build, family.open = building, opening
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
print("ready", flush=True)
with open_engine(model, "{RTX}") as engine:
    print("vector", *engine.encode(pictures(1))[0], flush=True)
"""


@posix
def test_two_processes_build_once(trt: Any, tmp_path: Path, model: Path) -> None:
    library = str(host_kernels()._name)  # compiled here once, not in each of them
    command = [sys.executable, "-c", OPEN, str(tmp_path), str(model), library]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said: dict[int, list[str]] = {process.pid: [] for process in both}
    waits = threading.Event()

    def listen(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said[process.pid].append(line.rstrip("\n"))
            if WAITING in line:
                waits.set()

    threads = [threading.Thread(target=listen, args=(process,)) for process in both]
    try:
        for thread in threads:
            thread.start()
        assert waits.wait(60), said
        deadline = time.monotonic() + 60
        while not (found := list(tmp_path.glob("began-*"))) and time.monotonic() < deadline:
            time.sleep(0.02)  # it has the lock, and has yet to begin
        (began,) = found
        builder = int(began.name.partition("-")[2])
        (waiter,) = said.keys() - {builder}
        (tmp_path / "go").touch()
        assert [process.wait(60) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join(10)
        for process in both:
            assert process.stdout is not None
            process.stdout.close()
    assert len(list(tmp_path.glob("began-*"))) == 1
    assert said[waiter].count(WAITING) == 1
    assert WAITING not in said[builder]
    assert not any("compiling" in line for line in said[waiter])
    vectors = [line for pid in said for line in said[pid] if line.startswith("vector ")]
    assert len(vectors) == 2
    assert vectors[0] == vectors[1]


def test_eight_threads_build_once(machine: Machine, model: Path) -> None:
    images = pictures(8)
    start = threading.Barrier(8)
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        try:
            start.wait(30)
            with opened(model) as engine:
                got[i] = engine.encode([images[i]])[0]
        except BaseException as error:
            got[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not [error for error in got.values() if isinstance(error, BaseException)]
    assert len(machine.built) == 1
    assert len(machine.opened) == 8
    with open_engine(model, "onnx") as engine:
        assert np.allclose(np.stack([got[i] for i in range(8)]), engine.encode(images), atol=1e-3)


# Plans made elsewhere


class Made(NamedTuple):
    """What `engines build --target` left in a folder, and what it printed."""

    folder: Path
    plan: Path
    model: Path
    line: str
    facts: dict[str, Any]

    def adopt(self, capsys: pytest.CaptureFixture[str], line: str | None = None) -> tuple[int, list[str], list[str]]:
        """The line, typed in the folder of the plan."""
        python, dash, module, *words = shlex.split(line or self.line)
        assert (python, dash, module) == ("python", "-m", "clipsight.engines")
        return command(capsys, *words)

    def sidecar(self, **changes: Any) -> None:
        """Let the sidecar say something else; None takes a field away."""
        facts = {name: value for name, value in {**self.facts, **changes}.items() if value is not None}
        self.plan.with_name(f"{self.plan.name}.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def build_machine(trt: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A plan built on this machine as a user does it, and what was printed."""
    folder = tmp_path_factory.mktemp("elsewhere") / "two words"
    (folder / "my model").mkdir(parents=True)
    graph_of(folder / "my model", 2.0)
    words = ["build", "my model", "--engine", RTX, "--target", "sm89", "-o", str(folder / "my plan")]
    done = subprocess.run(
        [sys.executable, "-m", "clipsight.engines", *words], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def made(build_machine: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The plan, copied to another machine."""
    folder = shutil.copytree(build_machine[0], tmp_path / "copied")
    monkeypatch.chdir(folder)
    line = build_machine[1].splitlines()[-1].strip()
    plan = folder / "my plan"
    return Made(folder, plan, folder / "my model", line, json.loads((folder / "my plan.json").read_text()))


def of_this_world(machine: Machine, made: Made) -> Machine:
    """The simulated GPU knows what that plan computes."""
    machine.family.graphs[hash(made.plan.read_bytes())] = made.model / "image.onnx", 32
    return machine


def test_a_plan_is_built_for_another_machine(build_machine: tuple[Path, str]) -> None:
    folder, out = build_machine
    size, sha256 = (folder / "my plan").stat().st_size, plans.hash_file(folder / "my plan")
    told, copy, line = out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(folder))}/my plan: g for sm89, fp16, {size / 1e6:.0f} MB, \d+\.\d s", told)
    assert copy == "Copy it and its .json to the machine with that GPU and run there:"
    assert line == f"  python -m clipsight.engines adopt 'my plan' 'my model' --sha256 {sha256}"
    assert sorted(path.name for path in folder.iterdir()) == ["my model", "my plan", "my plan.json"]
    facts = json.loads((folder / "my plan.json").read_text())
    assert (facts["device"], facts["runtime"], facts["precision"], facts["max_batch"]) == ("sm89", RTX, "fp16", 32)
    assert facts["sha256"] == sha256
    assert b"accelerators={sm89 }" in (folder / "my plan").read_bytes()


def test_the_line_that_was_printed_adopts_it(machine: Machine, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    of_this_world(machine, made)
    status, out, err = made.adopt(capsys)
    assert (status, err) == (0, [])
    assert out == [
        f"{machine.plan()}: adopted",
        "beside ONNX Runtime fp32 on 64 pictures: centered cosine at least 1.00000, the same label in 100.0%",
    ]
    assert machine.plan().read_bytes() == made.plan.read_bytes()
    with opened(made.model) as engine:  # no more words are needed
        assert engine.max_batch == 32
        assert engine.encode(pictures(2)).shape == (2, 3)
        assert engine.facts["device"] == "Simulated GPU sm89 84 units 8192 MiB"
    assert machine.built == []
    assert set(machine.opened) == {made.plan.read_bytes()}
    assert made.adopt(capsys)[0] == 0  # and once more


def wrong_line(machine: Machine, made: Made, capsys: pytest.CaptureFixture[str], line: str | None = None) -> str:
    """The line that is said of what cannot be adopted: nothing was opened, nothing is kept."""
    of_this_world(machine, made)
    status, out, err = made.adopt(capsys, line)
    assert (status, out, len(err)) == (2, [], 1)
    assert (machine.opened, machine.built) == ([], [])
    assert machine.kept() == []
    return err[0]


def test_another_sha256(machine: Machine, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = made.line[:-1] + ("0" if made.line[-1] != "0" else "1")
    said = wrong_line(machine, made, capsys, wrong)
    assert said == (
        f"clipsight: my plan: its sha256 is {made.facts['sha256']}, not the one given; do not use it, fetch it again"
    )
    made.plan.write_bytes(made.plan.read_bytes() + b"\0")
    assert "not the one given; do not use it, fetch it again" in wrong_line(machine, made, capsys)


REBUILD = "build it anew for this one: python -m clipsight.engines build MODEL --engine tensorrt-rtx --target {} -o PLAN"


def test_another_gpu(machines: MakeMachine, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    said = wrong_line(machines(capability=(8, 6)), made, capsys)
    assert said == f"clipsight: my plan: is for device 'sm89', here it is 'sm86'; {REBUILD.format('sm86')}"
    assert command(capsys, *shlex.split(said.partition("clipsight.engines ")[2])[:1], "--help")[0] == 0


def test_another_model(machine: Machine, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    graph_of(made.model, 3.0)
    said = wrong_line(machine, made, capsys)
    here = plans.hash_file(made.model / "image.onnx")
    assert said == f"clipsight: my plan: is for model '{made.facts['model']}', here it is '{here}'; {REBUILD.format('sm89')}"
    said = wrong_line(machine, made, capsys, made.line.replace("'my model'", "absent"))
    assert said.startswith("clipsight: no model folder 'absent'; give a folder")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "1.0"}, "is for version '1.0', here it is "),
        ({"driver": "12.4"}, "is for driver '12.4', here it is ''"),
        ({"max_batch": 64}, "is for profile '1,32 recipe 1', here it is '1,64 recipe 1'"),
        ({"max_batch": 0}, "is for profile "),
        ({"max_batch": True}, "is for profile "),
        ({"max_batch": 1 << 40, "profile": f"1,{1 << 40} recipe 1"}, "max_batch must be from 1 to 1024, not 1099511627776"),
        ({"max_batch": -1, "profile": "1,-1 recipe 1"}, "max_batch must be from 1 to 1024, not -1"),
        ({"max_batch": "32"}, "does not say what the plan is; fetch it again together with the plan"),
        ({"max_batch": None}, "does not say what the plan is; fetch it again together with the plan"),
        ({"precision": "int8"}, "does not say what the plan is"),
        ({"precision": ["fp16"]}, "does not say what the plan is"),
        ({"runtime": "onnx"}, "does not say what the plan is"),
        ({"runtime": {}}, "does not say what the plan is"),
        ({"sha256": "0" * 64}, "the sidecar belongs to another file; fetch it again together with the plan"),
    ],
)
def test_a_sidecar_that_lies(
    machine: Machine, made: Made, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made.sidecar(**changes)
    assert said in wrong_line(machine, made, capsys)


def test_a_plan_of_a_runtime_that_is_not_installed(
    machine: Machine, made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "Family", families.Family)
    monkeypatch.setitem(families.MODULES, "tensorrt", "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    made.sidecar(runtime="tensorrt")
    assert (
        wrong_line(machine, made, capsys)
        == 'clipsight: tensorrt is not installed (tensorrt); run: pip install -e ".[tensorrt]"'
    )


def test_a_sidecar_that_lies_consistently_cannot_make_batches_larger(
    machine: Machine, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its plan takes 32, and so does the engine."""
    made.sidecar(max_batch=64, profile="1,64 recipe 1")
    of_this_world(machine, made)
    assert made.adopt(capsys)[0] == 0
    with opened(made.model, max_batch=64) as engine:
        assert engine.max_batch == 32
        assert engine.encode(pictures(40)).shape == (40, 3)
    assert machine.built == []


def test_a_sidecar_that_lies_of_precision_is_held_to_its_word(
    machine: Machine, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    made.sidecar(precision="fp32")
    of_this_world(machine, made).family.wrong = 0.05
    status, out, err = made.adopt(capsys)
    assert (status, out, len(err)) == (2, [], 1)
    assert re.search(r"is 0\.99\d\d, at least 0\.9999 is needed; it was not kept; use --engine onnx$", err[0])
    assert machine.kept() == []


def test_no_sidecar(machine: Machine, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    (made.folder / "my plan.json").unlink()
    said = wrong_line(machine, made, capsys)
    assert said == "clipsight: my plan.json: cannot be read (No such file or directory); put PLAN and PLAN.json in one folder"


def test_an_adopted_plan_that_is_not_the_model_is_not_kept(
    machine: Machine, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    of_this_world(machine, made).family.wrong = 0.5
    status, out, err = made.adopt(capsys)
    assert (status, out, len(err)) == (2, [], 1)
    assert err[0].startswith("clipsight: the plan of g in fp16 is not the model: centered cosine to ONNX Runtime fp32 is 0.")
    assert len(machine.opened) == 1
    assert machine.kept() == []
    gc.collect()
    assert machine.world.used() == 0


def test_an_adopted_plan_that_does_not_open_is_not_kept(
    machine: Machine, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = made.adopt(capsys)  # of no graph that this world knows
    assert (status, out, len(err)) == (2, [], 1)
    assert "the plan does not open (no plan of this world)" in err[0]
    assert machine.kept() == []


# The build command


def test_build_prints_what_was_made(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, "build", "demo", "--engine", RTX, "--max-batch", "4")
    assert (status, err) == (0, [])
    size = machine.plan().stat().st_size
    assert re.fullmatch(rf"{re.escape(str(machine.plan()))}: {size / 1e6:.0f} MB, \d+\.\d s", out[0])
    assert re.fullmatch(
        r"beside ONNX Runtime fp32 on 64 pictures: centered cosine at least (1\.00000|0\.9999\d), the same label in 100\.0%",
        out[1],
    )
    assert len(out) == 2
    assert machine.built == [("fp16", 4)]


def test_build_builds_anew_and_on_pictures_of_the_users_own(
    machine: Machine, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(model).close()
    folder = tmp_path / "own"
    folder.mkdir()
    words = ["build", str(model), "--engine", RTX, "--pictures", str(folder)]
    said = f"clipsight: {folder}: no picture in it can be read; give a folder of JPEG or PNG files"
    assert command(capsys, *words) == (2, [], [said])
    for i, image in enumerate(pictures(3)):
        cv2.imwrite(str(folder / f"{i}.png"), image)
    status, out, _ = command(capsys, *words)
    assert status == 0
    assert out[1].startswith("beside ONNX Runtime fp32 on 67 pictures: ")
    assert machine.built == [("fp16", 32)] * 2
    opened(model).close()
    assert len(machine.built) == 2


def test_ctrl_c_while_it_builds(
    machine: Machine, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr(engines, "build", pressed)
        assert command(capsys, "build", str(model), "--engine", RTX) == (130, [], [])
    assert machine.kept() == []
    assert machine.world.used() == 0
    opened(model).close()  # nobody holds the lock
    assert len(machine.built) == 1


@pytest.mark.parametrize("how", ["build", "adopt"])
def test_a_plan_that_is_there_stays_until_a_better_one_is(
    machine: Machine, made: Made, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(made.model).close()
    good = machine.plan().read_bytes()
    of_this_world(machine, made).family.wrong = 0.5
    if how == "adopt":
        assert made.adopt(capsys)[0] == 2
    else:
        assert command(capsys, "build", str(made.model), "--engine", RTX)[0] == 2
    machine.family.wrong = 0.0
    assert machine.plan().read_bytes() == good
    before = len(machine.built)
    opened(made.model).close()
    assert len(machine.built) == before


@pytest.mark.parametrize("words", [["--target", "sm89"], ["-o", "plan"]])
def test_target_and_output_go_together(
    machine: Machine, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = command(capsys, "build", "demo", "--engine", RTX, *words)
    said = "clipsight: --target SM and -o FILE go together: a plan for another GPU is written to a file"
    assert (status, out, err) == (2, [], [said])
    assert machine.built == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["demo", "--engine", RTX, "--target", "sm70", "-o", "plan"], 2, r"cannot build for sm70 here; it builds for .*sm89"),
        (
            ["demo", "--engine", "tensorrt", "--target", "sm89", "-o", "plan"],
            2,
            r"tensorrt is not installed \(tensorrt\); run: pip install tensorrt",
        ),
        (["absent", "--engine", RTX], 2, "no model folder 'absent'; give a folder with card.json"),
        (["demo", "--engine", "onnx"], 2, "invalid choice: 'onnx'.*; --help says more"),
        (["demo", "--engine", RTX, "--max-batch", "0"], 2, "'0' is not a whole number of at least 1; --help says more"),
        (["demo", "--engine", RTX, "--max-batch", "1025"], 2, "max_batch must be from 1 to 1024, not 1025"),
        (["demo", "--engine", RTX, "--target", "sm89", "-o", "no/plan"], 1, "no/plan.*; free space or give another folder"),
    ],
)
def test_a_mistake_at_build_is_one_line(
    trt: Any, words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if "--target" not in words:
        request.getfixturevalue("machine")
    elif RTX not in words:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    got, out, err = command(capsys, "build", *words)
    assert (got, out, len(err)) == (status, [], 1)
    assert re.search(said, err[0]), err[0]
    assert not (tmp_path / "plan").exists()


# Which is taken


def with_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT is installed too."""
    import tensorrt_rtx

    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_rtx)
    assert families.MODULES["tensorrt"] == "tensorrt_rtx"


def test_autos_order_where_there_is_a_gpu(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clipsight")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert available()[RTX] is None
    assert available()["tensorrt"] == 'pip install -e ".[tensorrt]"'
    with open_engine(model) as engine:
        assert (engine.name, engine.max_batch) == (RTX, 32)
    assert f"engine: {RTX} for g (the first that can run here, in the order tensorrt, {RTX}, onnx, openvino)" in lines(caplog)
    with_tensorrt(monkeypatch)
    with open_engine(model, max_batch=2) as engine:
        assert (engine.name, engine.max_batch) == ("tensorrt", 2)
        assert engine.encode(pictures(3)).shape == (3, 3)
    assert machine.built == [("fp16", 32), ("fp16", 2)]
    assert machine.world.launched > 0


def test_auto_goes_on_until_one_opens(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_tensorrt(monkeypatch)
    machine.family.wrong = 0.5
    with open_engine(model) as engine:
        assert engine.name == "onnx"
    first, second = (said for said in lines(caplog, logging.WARNING) if not said.startswith("compiling"))
    assert first.startswith("engine: tensorrt cannot open g (")
    assert second.startswith(f"engine: {RTX} cannot open g (")


def test_auto_without_a_gpu(model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "clipsight")
    monkeypatch.setattr(device, "driver", lambda: NO_DRIVER)
    with open_engine(model) as engine:
        assert engine.name == "onnx"
    assert lines(caplog) == [f"engine: onnx for g (the first that can run here, in the order tensorrt, {RTX}, onnx, openvino)"]


def test_auto_hints_at_tensorrt_where_there_is_a_gpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clipsight")
    monkeypatch.setattr(device, "driver", lambda: None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with open_engine(model) as engine:
        assert engine.name == "onnx"
    (said,) = lines(caplog)
    assert said.endswith("; TensorRT would use the NVIDIA GPU here: engines/NVIDIA.md says how to install it)")


def test_bf16_is_tensorrts_alone(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tensorrt(monkeypatch)
    for backend, name in (("tensorrt", "tensorrt"), (RTX, RTX), ("auto", "tensorrt")):
        with open_engine(model, backend, precision="bf16") as engine:
            assert engine.name == name
            assert isinstance(engine, engines.TensorRTEngine)
            assert engine.facts["precision"] == "bf16"
            assert engine.encode(pictures(1)).shape == (1, 3)
    assert machine.built == [("bf16", 32)] * 2
    machine.family.wrong = 0.5
    graph_of(model, 3.0)
    said = refused(BackendError, lambda: open_engine(model, precision="bf16"))  # no other could
    assert "the plan of g in bf16 is not the model" in said
    monkeypatch.setattr(device, "driver", lambda: NO_DRIVER)
    for backend in ("auto", "onnx", "openvino"):
        said = refused(BackendError, lambda b=backend: open_engine(model, b, precision="bf16"))  # type: ignore[misc]
        assert said.endswith(" does not run bf16; use --precision fp32 or fp16")
