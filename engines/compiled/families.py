"""TensorRT 8.6, 10 and 11, and TensorRT for RTX: one API with four dialects, told apart here and nowhere else.

What differs is asked of the module itself (is there a STRONGLY_TYPED flag?), not looked up by version number:

| | 8.6 | 10 | 11 | for RTX |
|---|---|---|---|---|
| where precision comes from | builder flags | the ONNX, or flags | the ONNX | the ONNX |
| explicit batch | a flag | always | always | always |
| one profile in several contexts | a preview feature | always | always | always |
| memory given by the user | `..._without_device_memory`, `device_memory =` | a strategy, `set_device_memory` | as 10 | as 10 |
| progress while building | no | yes | yes | yes |
| builds for another GPU | no | no | no | `set_compute_capability` |
| kernels compiled when a plan is opened | no | no | no | yes, kept in a runtime cache |
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import BackendError, ClipsightError

log = logging.getLogger("clipsight")

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class Family:
    """One installed runtime. name: the backend's. version: its own. trt: its module.

    Raises `ImportError` where it is not installed, `BackendError` for a release before 8.6.
    """

    def __init__(self, name: str, trt: Any = None) -> None:
        self.name = name
        self.trt: Any = trt or importlib.import_module(MODULES[name])
        self.version = str(self.trt.__version__)
        if not hasattr(self.trt.ICudaEngine, "num_io_tensors") or not hasattr(self.trt, "HardwareCompatibilityLevel"):
            raise BackendError(f"{name} {self.version} is too old; 8.6 is the first that will do: pip install -U {name}")
        self._network_flags = self.trt.NetworkDefinitionCreationFlag
        self.logger = _logger(self.trt)

    @property
    def strongly_typed(self) -> bool:
        """Precision is what the ONNX says, operator by operator; else it is a wish, told by flags."""
        return hasattr(self._network_flags, "STRONGLY_TYPED") or not hasattr(self.trt.BuilderFlag, "FP16")

    @property
    def targets(self) -> dict[str, Any]:
        """The GPUs it can build for where none is, "sm89" -> its ComputeCapability; empty where it builds for its own."""
        kinds = getattr(self.trt, "ComputeCapability", None)
        if not (kinds and hasattr(self.trt.IBuilderConfig, "set_compute_capability")):
            return {}
        return {name.lower(): getattr(kinds, name) for name in dir(kinds) if name.startswith("SM")}

    def builder(self) -> Any:
        """A builder, or `BackendError` where TensorRT finds no GPU to build on."""
        with self.failing("does not start"):
            return self.trt.Builder(self.logger)

    def network(self, builder: Any) -> Any:
        """An empty network: strongly typed where there is such a thing."""
        flag = getattr(self._network_flags, "STRONGLY_TYPED", None)
        if flag is None and not self.strongly_typed:
            flag = self._network_flags.EXPLICIT_BATCH
        return builder.create_network(0 if flag is None else 1 << int(flag))

    def config(self, builder: Any, precision: str, network: Any, target: str | None, progress: Any = None) -> Any:
        """A builder's config for `precision`; raises `BackendError` where this release cannot do what is asked."""
        trt = self.trt
        config = builder.create_builder_config()
        flags = trt.BuilderFlag
        if hasattr(flags, "TF32"):
            config.clear_flag(flags.TF32)  # 10 bits of mantissa are not float32
        # No cuBLAS and no cuDNN, as is 10's default: 8.6 would want both installed, and plans of it hold their handles.
        for name in ("CUBLAS", "CUBLAS_LT", "CUDNN"):
            source = getattr(trt.TacticSource, name, None) if hasattr(trt, "TacticSource") else None
            if source is not None:
                config.set_tactic_sources(config.get_tactic_sources() & ~(1 << int(source)))
        # Several contexts with one profile: always so from 10 on, and what 8.6 calls a preview.
        sharing = getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
        if sharing is not None:
            config.set_preview_feature(sharing, True)
        if progress is not None and hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = progress
        if target is not None:
            if target not in self.targets:
                known = f"it builds for {', '.join(self.targets)}" if self.targets else "only tensorrt-rtx can, build there"
                raise BackendError(f"{self.name} {self.version} cannot build for {target} here; {known}")
            config.num_compute_capabilities = 1
            config.set_compute_capability(self.targets[target], 0)
        if not self.strongly_typed and precision != "fp32":
            flag = getattr(flags, precision.upper(), None)
            if flag is None:
                raise BackendError(f"{self.name} {self.version} knows no {precision}; use --precision fp16, or TensorRT 10")
            config.set_flag(flag)
            # What adds up many terms or takes exponents stays in float32, as the fp16 file of a model folder has it.
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
            kept = [getattr(trt.LayerType, n) for n in ("NORMALIZATION", "SOFTMAX", "REDUCE") if hasattr(trt.LayerType, n)]
            for i in range(network.num_layers):
                layer = network.get_layer(i)
                if layer.type in kept and layer.get_output(0).dtype == trt.float32:
                    layer.precision = trt.float32
        return config

    @contextlib.contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """Where TensorRT says no by an exception or an error in its log: `BackendError`, with its last words."""
        self.logger.errors.clear()
        try:
            yield
        except (RuntimeError, TypeError, ValueError) as error:  # TypeError: pybind11's own where a factory gave nothing
            if isinstance(error, ClipsightError):
                raise
            raise self.error(what, str(error)) from error

    def error(self, what: str, why: str = "") -> BackendError:
        """What went wrong, with the first error that TensorRT logged since it was last asked for one."""
        said = (self.logger.errors or [why or "it does not say why"])[0]
        return BackendError(f"{self.name} {self.version}: {what} ({' '.join(said.split())[:300]}); use --engine onnx")

    def open(self, plan: bytes) -> Any:
        """Deserialize a plan in the context that is current. It is executable content: call it with what is trusted only."""
        with self.failing("the plan does not open"):
            runtime = self.trt.Runtime(self.logger)
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.error("the plan does not open")
        return engine

    def activations(self, engine: Any) -> int:
        """Bytes of device memory that a context of `engine` needs while it runs."""
        newer = hasattr(engine, "device_memory_size_v2")
        return int(engine.device_memory_size_v2 if newer else engine.device_memory_size)

    def context(self, engine: Any, memory: int, size: int, settings: Any) -> Any:
        """An execution context that computes in the `size` bytes at `memory`, which others may use between its runs."""
        with self.failing("no execution context"):
            if settings is not None:
                context = engine.create_execution_context(settings)
            elif hasattr(self.trt, "ExecutionContextAllocationStrategy"):
                context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            else:
                context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise self.error("no execution context")
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(memory, size)
        else:
            context.device_memory = memory
        return context

    def settings(self, engine: Any, kept: bytes | None) -> tuple[Any, Callable[[], bytes] | None]:
        """How contexts are made (None: nothing to set), and a function that gives what to keep for the next time.

        TensorRT for RTX compiles its kernels when a context is made; with its runtime cache of an earlier run, `kept`, that
        takes a moment instead of seconds. It looks itself whether the cache is of this GPU, driver and version.
        """
        if not hasattr(engine, "create_runtime_config"):
            return None, None
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache") or not hasattr(self.trt, "DynamicShapesKernelSpecializationStrategy"):
            return None, None
        config.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Kernels for the very shape, compiled before the first run: a graph would keep the general ones for ever.
        config.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        if kept and not cache.deserialize(kept):
            log.info("%s: its compiled kernels are of another driver or GPU; compiling them anew", self.name)
        config.set_runtime_cache(cache)
        return config, lambda: bytes(cache.serialize())


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is not known before it runs
        """Keeps TensorRT's errors for the one line that a user gets; the rest goes to the log at its lowest level."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            log.debug("%s: %s", trt.__name__, message)

    return Logger()
