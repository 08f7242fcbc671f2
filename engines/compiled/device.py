"""An NVIDIA GPU as the rest uses it: pycuda in the device's primary context, and CUDA graphs through cuda-python.

The primary context is the one that torch and every other user of the CUDA runtime share, so buffers, streams and kernels
live beside theirs in one process. It is made current for the length of a `with gpu.current():` block and no longer, in
whatever thread that block runs. pycuda frees an object in the context that is current, so its objects are let go inside such
a block too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..base import one_line
from ..errors import BackendError, BackendMissing

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: a stream that never waits for the legacy default stream, where others work

_contexts: dict[int, Any] = {}
_lock = threading.Lock()


@functools.cache
def driver() -> str | None:
    """None where an NVIDIA driver sees a GPU, else the reason in a few words. Needs no package."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return f"there is no NVIDIA driver here ({name} does not load); install one and check it: nvidia-smi"
    status, count = cuda.cuInit(0), ctypes.c_int()
    if status == 0:
        status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the NVIDIA driver does not start (CUDA error {status}); see what it says: nvidia-smi"
    if not count.value:
        return "the NVIDIA driver sees no GPU; see which there are: nvidia-smi; in a container add --gpus all"
    return None


class Gpu:
    """The GPU of that index.

    name: such as "NVIDIA H100 80GB HBM3". target: its compute capability, "sm90". driver: the CUDA version its driver
    brings, "13.0". Raises `BackendError` where there is no driver or no such device, `BackendMissing` where pycuda or
    cuda-python is not installed or does not load.
    """

    def __init__(self, index: int, *, blocking: bool = False) -> None:
        reason = driver()
        if reason:
            raise BackendError(reason)
        try:
            import pycuda.driver as cuda
            from cuda.bindings import driver as bindings
        except ImportError as error:
            raise BackendMissing(
                f"TensorRT is driven through pycuda and cuda-python ({error}); run: pip install pycuda cuda-bindings "
                "(pycuda is built from source: engines/NVIDIA.md says what that needs)"
            ) from error
        self.cuda: Any = cuda
        self._bindings: Any = bindings
        with self._told():
            cuda.init()
            if index not in range(cuda.Device.count()):
                raise BackendError(f"no CUDA device {index}; there are {cuda.Device.count()}, from 0: nvidia-smi -L")
            device = cuda.Device(index)
            self.index, self.name = index, device.name()
            self.target = "sm{}{}".format(*device.compute_capability())
            version = cuda.get_driver_version()
            self.driver = f"{version // 1000}.{version % 1000 // 10}"
            with _lock:  # one reference for the life of the process: releasing the last one would end torch's context too
                self._context = _contexts.setdefault(index, None) or device.retain_primary_context()
                _contexts[index] = self._context
        # A wait that sleeps leaves the core to the display and costs some 30 microseconds; one that spins does not.
        self._event_flags = cuda.event_flags.BLOCKING_SYNC if blocking else cuda.event_flags.DEFAULT

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """The primary context is current in this thread; errors of CUDA come out as `BackendError`."""
        with self._told():
            self._context.push()
            try:
                yield
            finally:
                self.cuda.Context.pop()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self.cuda.MemoryError as error:
            raise BackendError(f"the memory of {self.name} is exhausted ({self._memory()}); use a smaller max_batch") from error
        except self.cuda.LaunchError as error:
            raise BackendError(
                f"a kernel failed on {getattr(self, 'name', 'the GPU')} ({one_line(error)}), and CUDA is lost to this process; "
                "start the program again"
            ) from error
        except self.cuda.Error as error:
            raise BackendError(f"CUDA: {one_line(error)}; see what the driver says: nvidia-smi") from error

    def _memory(self) -> str:
        try:
            free, total = self.cuda.mem_get_info()
        except self.cuda.Error:
            return "how much is free cannot be asked"
        return f"{free >> 20} of {total >> 20} MiB are free"

    def stream(self) -> Any:
        """A stream of pycuda that waits for no other."""
        return self.cuda.Stream(NON_BLOCKING)

    def event(self, *, timed: bool = False) -> Any:
        """An event of pycuda; only a `timed` one has a time."""
        kind = self.cuda.event_flags
        return self.cuda.Event(self._event_flags if timed else self._event_flags | kind.DISABLE_TIMING)

    def capture(self, work: Callable[[], object], stream: Any) -> Graph:
        """What `work` enqueues on `stream`, not run but recorded, as a graph that can be launched again and again.

        Addresses and shapes are part of it. Only this thread is watched while it records (torch may go on allocating in
        others). Raises `BackendError` where something in `work` cannot be recorded.
        """
        b = self._bindings
        handle = b.CUstream(stream.handle)
        self._check(b.cuStreamBeginCapture(handle, b.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        try:
            work()
        except BaseException:
            _, graph = b.cuStreamEndCapture(handle)  # else the stream stays unusable
            if graph:
                b.cuGraphDestroy(graph)
            raise
        (graph,) = self._check(b.cuStreamEndCapture(handle))
        try:
            (executable,) = self._check(b.cuGraphInstantiate(graph, 0))
        finally:
            b.cuGraphDestroy(graph)
        return Graph(self, executable, handle)

    def _check(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        status, *rest = answer
        if status != self._bindings.CUresult.CUDA_SUCCESS:
            raise BackendError(f"CUDA: {status.name}; see what the driver says: nvidia-smi")
        return tuple(rest)


class Graph:
    """Recorded work, ready to be launched on the stream it was recorded on."""

    def __init__(self, gpu: Gpu, executable: Any, stream: Any) -> None:
        self._gpu, self._executable, self._stream = gpu, executable, stream

    def launch(self) -> None:
        """Enqueue the work."""
        self._gpu._check(self._gpu._bindings.cuGraphLaunch(self._executable, self._stream))

    def free(self) -> None:
        """Let go of it; it must not be running."""
        self._gpu._bindings.cuGraphExecDestroy(self._executable)
