"""TensorRT at work on the simulated CUDA: plans are built by the real TensorRT for RTX, and run by ONNX Runtime.

A plan cannot be deserialized without a driver. Here one that TensorRT built is recognized by its bytes, and the graph it was
built from computes in its place, over the addresses that the execution context was given.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import simulated_cuda
from simulated_cuda import World

from clipsight.engines import tensorrt_engine
from clipsight.engines.compiled import building, device, families
from clipsight.engines.compiled.families import Family

TARGET = "sm89"


class SimulatedFamily(Family):
    """The real family, but it builds for sm89 where it would build for the GPU at hand, and opens plans in `world`."""

    world: World
    graphs: ClassVar[dict[int, tuple[Path, int]]] = {}  # by hash of the plan's bytes: its ONNX, and pictures per forward
    wrong = 0.0  # added to every output: a plan that is not the model

    def config(self, builder: Any, precision: str, network: Any, target: str | None, progress: Any = None) -> Any:
        return super().config(builder, precision, network, target or TARGET, progress)

    def open(self, plan: bytes) -> Any:
        assert self.world.stack(), "a plan is opened in a context"
        if hash(plan) not in self.graphs:
            raise self.error("the plan does not open", "no plan of this world")
        return _Plan(self, *self.graphs[hash(plan)])


class _Plan:
    """ICudaEngine, as far as it is used."""

    def __init__(self, family: SimulatedFamily, graph: Path, most: int) -> None:
        self.family, self.world, trt = family, family.world, family.trt
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        fixed = self.session.get_inputs()[0].shape[0]
        self.profiles = [(fixed,) * 3] if isinstance(fixed, int) else building.profile(most)
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(self.profiles)
        self.device_memory_size_v2 = 4096
        self.output = trt.TensorIOMode.OUTPUT
        self.input = trt.TensorIOMode.INPUT
        self.by_name = {t.name: t for t in self.tensors}

    def get_tensor_name(self, i: int) -> str:
        return str(self.tensors[i].name)

    def get_tensor_mode(self, name: str) -> Any:
        return self.input if name == "pixel_values" else self.output

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.by_name[name].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        assert self.by_name[name].type == "tensor(float)"
        return self.family.trt.float32

    def get_tensor_profile_shape(self, name: str, i: int) -> list[tuple[int, ...]]:
        return [(n, *self.get_tensor_shape(name)[1:]) for n in self.profiles[i]]

    def create_execution_context(self, strategy: Any) -> _Context:
        assert strategy == self.family.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return _Context(self)


class _Context:
    """IExecutionContext: runs the graph over the addresses it was given, when its stream comes to it."""

    def __init__(self, plan: _Plan) -> None:
        self.plan, self.world = plan, plan.world
        self.addresses: dict[str, int] = {}
        self.memory = 0
        self.shape: tuple[int, ...] = ()
        self.profile = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size == self.plan.device_memory_size_v2
        self.memory = memory

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        self.profile = index
        return handle in self.world.streams

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.plan.profiles[self.profile]
        assert least <= shape[0] <= most, "outside of the profile"
        self.shape = shape
        return name == "pixel_values"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        assert set(self.addresses) == set(self.plan.by_name)

        def work() -> None:
            scratch = self.world.bytes_at(self.memory, self.plan.device_memory_size_v2)
            scratch[:] = 0  # whoever else computes here at the same time is disturbed
            size = int(np.prod(self.shape)) * 4
            pixels = self.world.bytes_at(self.addresses["pixel_values"], size).view(np.float32).reshape(self.shape)
            names = [t.name for t in self.plan.session.get_outputs()]
            for name, values in zip(names, self.plan.session.run(names, {"pixel_values": pixels}), strict=True):
                values = values + np.float32(self.plan.family.wrong) * np.abs(values).max()
                self.world.bytes_at(self.addresses[name], values.nbytes)[:] = values.reshape(-1).view(np.uint8)

        self.world.streams[handle].put("forward", work)
        return True


def install(
    monkeypatch: pytest.MonkeyPatch, world: World, cache: Path, *, refuses_capture: bool = False
) -> type[SimulatedFamily]:
    """Put the simulated machine in the place of the real one, for the length of a test; returns its family to turn."""

    class Here(SimulatedFamily):
        def __init__(self, name: str, trt: Any = None) -> None:
            import tensorrt_rtx

            super().__init__(name, trt or tensorrt_rtx)

    Here.world = world
    real = building.build

    def build(family: Any, folder: Path, card: Any, precision: str, max_batch: int, target: str | None = None) -> Any:
        built = real(family, folder, card, precision, max_batch, target)
        path = building.source(folder, precision, strongly_typed=True)
        Here.graphs[hash(built.data)] = path, max_batch
        return built

    pycuda = simulated_cuda._module("pycuda")
    driver = pycuda.driver = simulated_cuda.pycuda_driver(world)  # type: ignore[attr-defined]
    bindings = simulated_cuda._module("cuda.bindings")
    bindings.driver = simulated_cuda.cuda_bindings(world, refuses=refuses_capture)  # type: ignore[attr-defined]
    modules: dict[str, types.ModuleType] = {"pycuda": pycuda, "pycuda.driver": driver}
    modules |= {"cuda": simulated_cuda._module("cuda"), "cuda.bindings": bindings, "cuda.bindings.driver": bindings.driver}
    modules["cuda"].bindings = bindings  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device, "driver", lambda: None)
    monkeypatch.setattr(device, "_contexts", {})
    monkeypatch.setattr(device, "_lost", set())
    monkeypatch.setattr(tensorrt_engine, "Family", Here)
    monkeypatch.setattr(tensorrt_engine, "build", build)
    monkeypatch.setitem(families.MODULES, "tensorrt", "tensorrt_rtx")
    monkeypatch.setenv("CLIPSIGHT_CACHE", str(cache))
    return Here


__all__ = ["SimulatedFamily", "install"]
