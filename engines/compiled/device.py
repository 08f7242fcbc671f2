"""An NVIDIA GPU as the rest uses it: pycuda in the device's primary context, and CUDA graphs through cuda-python.

The primary context is the one that torch and every other user of the CUDA runtime share, so buffers, streams and kernels
live beside theirs in one process. It is made current for the length of a `with gpu.current():` block and no longer, in
whatever thread that block runs. pycuda frees an object in the context that is current, so its objects are let go inside such
a block too.

What pycuda 2026.1 does that has to be minded here: it aborts the process where a thread is in a context when Python ends; the
destructor of a primary context calls cuCtxDetach, which is for others, while `detach` releases it; an illegal address is a
LogicError, not a LaunchError.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..base import one_line
from ..errors import BackendError, BackendMissing

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: a stream that never waits for the legacy default stream, where others work

# Words of errors after which a context is of no use any more, as CUDA spells them and as their names are spelled.
_FATAL = re.compile(
    "illegal (memory|address|instruction)|misaligned|launch (fail|timeout)|timed out|assert|uncorrectable|stack error|"
    "program counter|invalid pc|address space"
)
_SPARE = "end other programs on it, or use smaller pictures or a smaller max_batch"
_PATIENCE = 10.0  # seconds that threads in a context are given when Python ends

_state = threading.Condition()  # of what follows
_contexts: dict[int, Any] = {}  # by device
_lost: set[int] = set()  # devices whose context is of no use any more
_inside = 0  # threads in a `current` block
_ending = False
_open: weakref.WeakSet[Any] = weakref.WeakSet()  # what has to be closed before Python ends


def closed_at_exit(session: Any) -> None:
    """Have `session.close()` called when Python ends, if it still is there."""
    _open.add(session)


@atexit.register
def _end() -> None:
    global _ending
    for session in list(_open):
        session.close()
    with _state:
        _ending = True
        _state.wait_for(lambda: not _inside, _PATIENCE)
        for context in _contexts.values():
            context.detach()
        _contexts.clear()


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


def _driver_release() -> str | None:
    try:
        said = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Module\D*?(\d+\.\d+(?:\.\d+)?)", said)
    return found[1] if found else None


class Gpu:
    """The GPU of that index.

    name: such as "NVIDIA H100 80GB HBM3". target: its compute capability, "sm90". units: its multiprocessors. memory: bytes of
    it. driver: the driver's release, "580.65.06", or where that cannot be read the CUDA version it brings. exhausted: whether
    memory was ever short. Raises `BackendError` where there is no driver or no such device, `BackendMissing` where pycuda or
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
                f"TensorRT is driven through pycuda and cuda-python ({one_line(error)}); run: pip install pycuda cuda-bindings "
                "(pycuda is built from source: engines/NVIDIA.md says what that needs)"
            ) from error
        self.cuda: Any = cuda
        self._bindings: Any = bindings
        self.index, self.name = index, f"GPU {index}"
        self.exhausted = False
        with self.telling():
            cuda.init()
            if index not in range(cuda.Device.count()):
                raise BackendError(f"no CUDA device {index}; there are {cuda.Device.count()}, from 0: nvidia-smi -L")
            device = cuda.Device(index)
            self.name = device.name()
            self.target = "sm{}{}".format(*device.compute_capability())
            self.units, self.memory = int(device.multiprocessor_count), int(device.total_memory())
            version = cuda.get_driver_version()
            self.driver = _driver_release() or f"CUDA {version // 1000}.{version % 1000 // 10}"
            with _state:  # one reference for the life of the process
                if index not in _contexts:
                    _contexts[index] = device.retain_primary_context()
                self._context = _contexts[index]
        # A wait that sleeps leaves the core to the display and costs some 30 microseconds; one that spins does not.
        self._event_flags = cuda.event_flags.BLOCKING_SYNC if blocking else cuda.event_flags.DEFAULT

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """The primary context is current in this thread; errors of CUDA come out as `BackendError`."""
        global _inside
        with _state:
            if _ending:
                raise BackendError(f"{self.name}: the program is ending")
            _inside += 1
        try:
            with self.telling():
                self._context.push()
                try:
                    yield
                finally:
                    self.cuda.Context.pop()
        finally:
            with _state:
                _inside -= 1
                _state.notify_all()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Errors of CUDA come out as `BackendError`, in one line with what to do."""
        try:
            yield
        except self.cuda.MemoryError as error:
            self.exhausted = True
            raise BackendError(f"the memory of {self.name} is exhausted ({self._memory()}); {_SPARE}") from error
        except self.cuda.Error as error:
            raise self._error(one_line(error)) from error

    def _error(self, said: str) -> BackendError:
        if _FATAL.search(said.lower().replace("_", " ")):
            _lost.add(self.index)
            return BackendError(
                f"a kernel failed on {self.name} ({said}), and CUDA is lost to this process; start the program again"
            )
        return BackendError(f"CUDA: {said}; see what the driver says: nvidia-smi")

    @property
    def lost(self) -> bool:
        """A kernel has failed: until the process ends nothing can be done with this GPU, not even freeing."""
        return self.index in _lost

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
            with self.telling():
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
            raise self._error(status.name)
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
