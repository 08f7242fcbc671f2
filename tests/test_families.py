"""What differs between TensorRT 8.6, 10, 11 and TensorRT for RTX is asked of the module.

The real TensorRT for RTX is here. The others need a GPU to be installed at all, so small modules stand for them, which have
what the documentation of each release lists, as far as it matters, and nothing that it has not.
"""

from __future__ import annotations

import enum
import logging
import types
from collections.abc import Sequence
from typing import Any

import pytest
from test_building import TARGETS, Recorder, build, refused

from clipsight.engines import BackendError
from clipsight.engines.compiled.families import Family
from clipsight.engines.registry import SHIPPED


@pytest.fixture(scope="module")
def family(trt: Any) -> Family:
    return Family("tensorrt-rtx", trt)


def flags(name: str, *members: str) -> Any:
    return enum.IntEnum(name, list(members), start=0)


class Records:
    """A config: what is set and cleared. TF32 is on at first, as in TensorRT, and so is every source of tactics."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.on = {trt.BuilderFlag.TF32}
        self.sources: int = sum(1 << source for source in getattr(trt, "TacticSource", ()))
        self.previews: dict[Any, bool] = {}

    def set_flag(self, flag: Any) -> None:
        assert isinstance(flag, self.trt.BuilderFlag)
        self.on.add(flag)

    def clear_flag(self, flag: Any) -> None:
        assert isinstance(flag, self.trt.BuilderFlag)
        self.on.discard(flag)

    def get_tactic_sources(self) -> int:
        return self.sources

    def set_tactic_sources(self, sources: int) -> bool:
        self.sources = sources
        return True

    def set_preview_feature(self, feature: Any, on: bool) -> None:
        self.previews[feature] = on


class Layer:
    def __init__(self, kind: Any, dtype: str) -> None:
        self.type, self.dtype = kind, dtype
        self.precision: str | None = None

    def get_output(self, index: int) -> Any:
        assert index == 0
        return types.SimpleNamespace(dtype=self.dtype)


class Network:
    def __init__(self, layers: Sequence[Layer] = ()) -> None:
        self.layers = layers
        self.num_layers = len(layers)

    def get_layer(self, i: int) -> Layer:
        return self.layers[i]


def release(version: str) -> Any:
    """A module with what this release of TensorRT has, as far as it matters, and nothing that it has not."""
    major = int(version.partition(".")[0])
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.float32, trt.int32 = "float32", "int32"

    class Log:
        Severity = flags("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    trt.ILogger = Log
    trt.HardwareCompatibilityLevel = flags("HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS")
    trt.ICudaEngine = type("ICudaEngine", (), {"num_io_tensors": 0})
    trt.IBuilderConfig = type("IBuilderConfig", (), {})
    trt.LayerType = flags("LayerType", "CONVOLUTION", "MATRIX_MULTIPLY", "SOFTMAX", "REDUCE", "NORMALIZATION", "ELEMENTWISE")
    sources = ("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
    if major == 8:
        trt.BuilderFlag = flags("BuilderFlag", "FP16", "INT8", "DEBUG", "TF32", "OBEY_PRECISION_CONSTRAINTS", "FP8")
        trt.NetworkDefinitionCreationFlag = flags("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "EXPLICIT_PRECISION")
        trt.PreviewFeature = flags("PreviewFeature", "FASTER_DYNAMIC_SHAPES_0805", "PROFILE_SHARING_0806")
        trt.TacticSource = flags("TacticSource", *sources)
        return trt
    trt.IProgressMonitor = type("IProgressMonitor", (), {})
    trt.ExecutionContextAllocationStrategy = flags("Strategy", "STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED")
    if major == 10:
        trt.BuilderFlag = flags("BuilderFlag", "FP16", "BF16", "INT8", "DEBUG", "TF32", "OBEY_PRECISION_CONSTRAINTS", "FP8")
        trt.NetworkDefinitionCreationFlag = flags("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED")
        trt.PreviewFeature = flags("PreviewFeature", "PROFILE_SHARING_0806", "ALIASED_PLUGIN_IO_10_03")
        trt.TacticSource = flags("TacticSource", *sources)
    else:
        trt.BuilderFlag = flags("BuilderFlag", "DEBUG", "TF32", "REFIT")
        trt.NetworkDefinitionCreationFlag = flags("NetworkDefinitionCreationFlag", "PREFER_AOT_PYTHON_PLUGINS")
        trt.PreviewFeature = flags("PreviewFeature", "ALIASED_PLUGIN_IO_10_03")
        trt.TacticSource = flags("TacticSource", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
    return trt


def configured(trt: Any, precision: str, layers: Sequence[Layer] = (), target: str | None = None) -> tuple[int, Records]:
    """What a network and a config are made with: the network's flags, and the config."""
    asked: list[int] = []
    records = Records(trt)
    builder = types.SimpleNamespace(create_network=asked.append, create_builder_config=lambda: records)
    family = Family("tensorrt", trt)
    family.network(builder)
    assert family.config(builder, precision, Network(layers), target) is records
    return asked[0], records


def layers_of(trt: Any) -> dict[str, Layer]:
    made = {name: Layer(getattr(trt.LayerType, name), "float32") for name in trt.LayerType.__members__}
    return {**made, "counting": Layer(trt.LayerType.REDUCE, "int32")}


@pytest.mark.parametrize(
    ("version", "flag", "typed"),
    [("8.6.1", "EXPLICIT_BATCH", False), ("10.3.0", "STRONGLY_TYPED", True), ("11.0.0", None, True)],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_where_precision_comes_from(version: str, flag: str | None, typed: bool, precision: str) -> None:
    trt = release(version)
    layers = layers_of(trt)
    asked, records = configured(trt, precision, list(layers.values()))
    assert Family("tensorrt", trt).strongly_typed == typed
    assert asked == (1 << trt.NetworkDefinitionCreationFlag[flag] if flag else 0)
    by_flags = precision == "fp16" and not typed
    assert {f.name for f in records.on} == ({"FP16", "OBEY_PRECISION_CONSTRAINTS"} if by_flags else set())  # TF32 is off
    pinned = {name for name, layer in layers.items() if layer.precision == "float32"}
    assert pinned == ({"SOFTMAX", "REDUCE", "NORMALIZATION"} if by_flags else set())
    assert all(layer.precision in (None, "float32") for layer in layers.values())


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.0.0"])
def test_no_cublas_no_cudnn_and_profiles_are_shared(version: str) -> None:
    trt = release(version)
    _, records = configured(trt, "fp32")
    left = {source.name for source in trt.TacticSource if records.sources & 1 << source}
    assert left == {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}
    assert {feature.name: on for feature, on in records.previews.items()} == (
        {} if version.startswith("11") else {"PROFILE_SHARING_0806": True}
    )


def test_a_release_that_has_neither_sources_nor_previews() -> None:
    trt = release("11.0.0")
    del trt.TacticSource, trt.PreviewFeature
    _, records = configured(trt, "fp16")
    assert not records.on


def test_a_precision_that_a_release_has_not() -> None:
    said = refused(BackendError, lambda: configured(release("8.6.1"), "bf16"))
    assert said == "tensorrt 8.6.1 knows no bf16; use --precision fp16, or TensorRT 10"
    assert not configured(release("10.3.0"), "bf16")[1].on  # the ONNX says it


@pytest.mark.parametrize("lacks", ["num_io_tensors", "HardwareCompatibilityLevel"])  # 8.4 and before; 8.5
def test_a_release_that_is_too_old(lacks: str) -> None:
    trt = release("8.5.3")
    if lacks == "num_io_tensors":
        trt.ICudaEngine = type("ICudaEngine", (), {"num_bindings": 0})
    else:
        del trt.HardwareCompatibilityLevel
    said = refused(BackendError, lambda: Family("tensorrt", trt))
    assert said == "tensorrt 8.5.3 is too old; 8.6 is the first that will do: pip install -U tensorrt"


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.0.0"])
def test_no_release_but_rtx_builds_for_another_gpu(version: str) -> None:
    trt = release(version)
    assert Family("tensorrt", trt).targets == {}
    said = refused(BackendError, lambda: configured(trt, "fp32", target="sm89"))
    assert said == f"tensorrt {version} cannot build for sm89 here; only tensorrt-rtx can, build there"


def test_a_target_that_is_not_known(family: Family) -> None:
    said = refused(BackendError, lambda: build(family, SHIPPED / "demo", "fp16", target="sm70"))
    head, _, known = said.partition("it builds for ")
    assert head == f"tensorrt-rtx {family.version} cannot build for sm70 here; "
    assert set(TARGETS) <= set(known.split(", ")) == set(family.targets)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_real_rtx_does_what_is_asked(trt: Any, precision: str) -> None:
    recorder = Recorder(trt)
    assert recorder.strongly_typed
    assert recorder.version == trt.__version__
    real = trt.Builder(recorder.logger)
    assert recorder.network(real).get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    build(recorder, SHIPPED / "demo", precision, target="sm86")
    (config,) = recorder.configs
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM86
    assert isinstance(config.progress_monitor, trt.IProgressMonitor)


def test_the_real_rtx_has_what_a_plan_is_run_with(trt: Any) -> None:
    """A plan cannot be opened without a driver, but that the names are there can be seen."""
    used = {
        "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_mode get_tensor_shape get_tensor_dtype "
        "num_optimization_profiles get_tensor_profile_shape device_memory_size_v2 create_execution_context "
        "create_runtime_config",
        "IExecutionContext": "set_device_memory set_optimization_profile_async set_input_shape set_tensor_address "
        "execute_async_v3",
        "IRuntimeConfig": "create_runtime_cache set_runtime_cache set_execution_context_allocation_strategy "
        "dynamic_shapes_kernel_specialization_strategy",
        "IRuntimeCache": "serialize deserialize",
        "Runtime": "deserialize_cuda_engine",
        "ExecutionContextAllocationStrategy": "USER_MANAGED",
        "DynamicShapesKernelSpecializationStrategy": "EAGER",
        "TensorIOMode": "INPUT OUTPUT",
    }
    absent = [f"{cls}.{name}" for cls, names in used.items() for name in names.split() if not hasattr(getattr(trt, cls), name)]
    assert absent == []


# Memory, and what is kept of an opening


class OldContext:
    """IExecutionContext of 8.6: memory is a property that can only be set."""

    __slots__ = ("given",)

    def __init__(self) -> None:
        self.given: Any = None

    def _take(self, memory: int) -> None:
        self.given = memory

    device_memory = property(None, _take)


class NewContext:
    __slots__ = ("given",)

    def set_device_memory(self, memory: int, size: int) -> None:
        self.given = memory, size


def test_memory_is_handed_over_in_8() -> None:
    class Engine:
        device_memory_size = 1000

        def create_execution_context_without_device_memory(self) -> OldContext:
            return OldContext()

    family, engine = Family("tensorrt", release("8.6.1")), Engine()
    assert family.activations(engine) == 1000
    assert family.settings(engine, b"of another release") == (None, None)
    assert family.context(engine, 0xABC, 1000, None).given == 0xABC


def test_memory_is_handed_over_in_10() -> None:
    trt = release("10.3.0")

    class Engine:
        device_memory_size, device_memory_size_v2 = 7, 1 << 33  # the old one does not hold it

        def create_execution_context(self, strategy: Any) -> NewContext:
            assert strategy is trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return NewContext()

        def create_runtime_config(self) -> Any:
            return types.SimpleNamespace()  # 10.9's has no runtime cache

    family, engine = Family("tensorrt", trt), Engine()
    assert family.activations(engine) == 1 << 33
    assert family.settings(engine, b"kept") == (None, None)
    assert family.context(engine, 0xABC, 1 << 33, None).given == (0xABC, 1 << 33)


class RuntimeConfig:
    """IRuntimeConfig of TensorRT for RTX."""

    def __init__(self) -> None:
        self.strategy = self.dynamic_shapes_kernel_specialization_strategy = self.cache = None
        self.loaded: list[bytes] = []
        self.fits = True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        def deserialize(kept: bytes) -> bool:
            self.loaded.append(kept)
            return self.fits

        return types.SimpleNamespace(deserialize=deserialize, serialize=lambda: bytearray(b"new"))

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


@pytest.mark.parametrize(("kept", "fits"), [(None, True), (b"kept", True), (b"kept", False)])
def test_rtx_keeps_the_kernels_it_compiled(kept: bytes | None, fits: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "clipsight")
    trt = release("10.3.0")
    trt.DynamicShapesKernelSpecializationStrategy = flags("Specialization", "LAZY", "EAGER", "NONE")
    config = RuntimeConfig()
    config.fits = fits
    made: list[Any] = []

    class Engine:
        def create_runtime_config(self) -> RuntimeConfig:
            return config

        def create_execution_context(self, settings: Any) -> NewContext:
            made.append(settings)
            return NewContext()

    family, engine = Family("tensorrt-rtx", trt), Engine()
    settings, compiled = family.settings(engine, kept)
    assert settings is config
    assert config.strategy is trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert config.dynamic_shapes_kernel_specialization_strategy is trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert config.cache is not None
    assert config.loaded == ([kept] if kept else [])
    assert compiled is not None
    assert compiled() == b"new"
    assert family.context(engine, 5, 6, settings).given == (5, 6)
    assert made == [config]
    wanted = [] if fits else ["tensorrt-rtx: its compiled kernels are of another driver or GPU; compiling them anew"]
    assert [record.getMessage() for record in caplog.records] == wanted


# What TensorRT says


def test_an_error_that_tensorrt_logs_comes_out_in_one_line() -> None:
    trt = release("10.3.0")
    family = Family("tensorrt", trt)
    severity = trt.ILogger.Severity
    log = family.logger.log

    def builder(logger: Any) -> None:
        log(severity.WARNING, "a warning")
        log(severity.ERROR, "[api.cpp:10] CUDA initialization failure\n with error:   35 ")
        log(severity.INTERNAL_ERROR, "and what followed from it")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Builder = builder
    said = refused(BackendError, family.builder)
    assert said == (
        "tensorrt 10.3.0: does not start ([api.cpp:10] CUDA initialization failure with error: 35); use --engine onnx"
    )

    class Silent:
        def __init__(self, logger: Any) -> None:
            assert logger is family.logger

        def deserialize_cuda_engine(self, _: bytes) -> None:
            return None

    trt.Runtime = Silent
    said = refused(BackendError, lambda: family.open(b""))  # errors of before are not its own
    assert said == "tensorrt 10.3.0: the plan does not open (it does not say why); use --engine onnx"

    class Long(Silent):
        def deserialize_cuda_engine(self, _: bytes) -> None:
            log(severity.ERROR, "x" * 5000)

    trt.Runtime = Long
    assert len(refused(BackendError, lambda: family.open(b""))) < 400
    engine = types.SimpleNamespace(create_execution_context=lambda _: None)
    said = refused(BackendError, lambda: family.context(engine, 0, 0, None))
    assert said.startswith("tensorrt 10.3.0: no execution context (")


def test_an_error_of_the_real_rtx(family: Family) -> None:
    said = refused(BackendError, lambda: family.open(b"this is no plan"))
    assert said.startswith(f"tensorrt-rtx {family.version}: the plan does not open (")
    assert "does not say why" not in said
    assert said.endswith("; use --engine onnx")
