"""CUDA without a GPU, as far as clipsight uses it: what pycuda.driver and cuda.bindings.driver do, over this machine's memory.

It is not a stand-in that always says yes. Work that is enqueued runs only when somebody waits for it, or (with a seed) at any
moment before that, so memory that is used again too early gives wrong answers, as on a GPU. Every call wants a current
context. A kernel, a copy or a forward that touches memory which was freed, or writes beside it, fails like an illegal
address, and everything after it fails too. Objects that go while no context is current are `complaints`, as pycuda prints
them. The kernels are prepare.cu itself, compiled for the processor.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.machinery
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsight.engines.compiled.nvrtc import SOURCE

_WRAPPER = """
#define HOST
struct Place { int x, y, z; };
static _Thread_local struct Place at;
#define AT(i) (at.i)
#define KERNEL static void
#include "%s"
#define GRID for (at.z = 0; at.z < gz; ++at.z) for (at.y = 0; at.y < gy; ++at.y) for (at.x = 0; at.x < gx; ++at.x)
void run_columns(int gx, int gy, int gz, const uint8* frames, int height, int width, const int* lo, const int* weights,
                 int taps, int out_width, uint8* mid)
{ GRID columns(frames, height, width, lo, weights, taps, out_width, mid); }
void run_rows(int gx, int gy, int gz, const uint8* mid, int height, int out_width, const int* lo, const int* weights,
              int taps, int out_height, int size, int top, int left, const float* gain_shift, float* pixel_values)
{ GRID rows(mid, height, out_width, lo, weights, taps, out_height, size, top, left, gain_shift, pixel_values); }
"""
NO_TIME = 2  # a flag of events
_GUARD = 256  # bytes on both sides of every allocation


@functools.cache
def host_kernels() -> ctypes.CDLL:
    """prepare.cu as a library of this processor, compiled by the C compiler that `pip install ziglang` brings."""
    folder = Path(tempfile.mkdtemp(prefix="clipsight-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "kernels.c").write_text(_WRAPPER % SOURCE.as_posix())
    library = folder / "kernels.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O2", "-ffp-contract=off", "-o", str(library)]
    env = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(folder / "global"), "ZIG_LOCAL_CACHE_DIR": str(folder / "local")}
    subprocess.run([*command, str(folder / "kernels.c")], check=True, env=env, capture_output=True, text=True)
    return ctypes.CDLL(str(library))


def when_gone(thing: object, work: Callable[..., None], *arguments: object) -> weakref.finalize[..., Any]:
    """Have `work` called when nobody holds `thing` any more; not at the end of Python, before clipsight has cleared up."""
    finalizer = weakref.finalize(thing, work, *arguments)
    finalizer.atexit = False
    return finalizer


class Error(Exception):
    """pycuda.driver.Error, and below its children."""


class LogicError(Error):
    pass


class ExhaustedError(Error):
    pass


class LaunchError(Error):
    """Kernels that fail otherwise than by an illegal address, which pycuda calls a LogicError."""


class IllegalAddressError(Exception):
    """What work meets, long before anybody is told."""


class Allocation:
    """Memory at a real address, with guards around it."""

    def __init__(self, world: World, size: int, kind: str) -> None:
        self.size, self.kind = size, kind
        self.whole = np.full(size + 2 * _GUARD, 0xA5, np.uint8)
        self.address = int(self.whole.ctypes.data) + _GUARD
        world.memory[self.address] = self

    @property
    def inside(self) -> NDArray[np.uint8]:
        return self.whole[_GUARD : _GUARD + self.size]

    def intact(self) -> bool:
        return bool((self.whole[:_GUARD] == 0xA5).all() and (self.whole[_GUARD + self.size :] == 0xA5).all())


class World:
    """One simulated machine: its memory, streams and contexts, and what went wrong.

    total: bytes of device memory. seed: None runs work as late as can be, a number at moments drawn from it.
    """

    def __init__(self, total: int = 1 << 33, seed: int | None = None, capability: tuple[int, int] = (8, 9)) -> None:
        self.total, self.capability = total, capability
        self.memory: dict[int, Allocation] = {}
        self.freed: list[Allocation] = []  # kept, so that their addresses are not given out again
        self.complaints: list[str] = []
        self.broken: str | None = None  # an illegal address: sticky, as in CUDA
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.current = threading.local()
        self.launched = self.recorded = 0  # graphs
        self.detached = 0
        self.executed: list[str] = []
        self._random = random.Random(seed) if seed is not None else None
        self._lock = threading.RLock()

    # --- contexts -------------------------------------------------------------------------------------------------

    def stack(self) -> list[Any]:
        if not hasattr(self.current, "stack"):
            self.current.stack = []
        stack: list[Any] = self.current.stack
        return stack

    def check(self, call: str) -> None:
        if not self.stack():
            raise LogicError(f"{call} failed: invalid device context")
        if self.broken:
            raise LogicError(f"{call} failed: an illegal memory access was encountered ({self.broken})")
        self.breathe()

    def gone(self, what: str) -> None:
        if not self.stack():
            self.complaints.append(f"{what} went while no context was current")

    # --- memory ---------------------------------------------------------------------------------------------------

    def used(self) -> int:
        return sum(a.size for a in self.memory.values() if a.kind == "device")

    def free(self, allocation: Allocation) -> None:
        with self._lock:
            del self.memory[allocation.address]
            if not allocation.intact():
                self.complaints.append(f"something was written beside {allocation.kind} memory of {allocation.size} bytes")
            allocation.whole[:] = 0xEE
            self.freed.append(allocation)

    def bytes_at(self, address: int, size: int) -> NDArray[np.uint8]:
        """Live memory; touching any other is what breaks a context."""
        for start, allocation in self.memory.items():
            if start <= address and address + size <= start + allocation.size:
                return allocation.inside[address - start : address - start + size]
        raise IllegalAddressError(f"{size} bytes at {address:#x}")

    # --- time -----------------------------------------------------------------------------------------------------

    def breathe(self) -> None:
        """Let some of the waiting work happen, where a seed says so."""
        with self._lock:
            if self._random:
                for stream in list(self.streams.values()):
                    for _ in range(self._random.randrange(4)):
                        if stream.work:
                            self.step(stream)

    def step(self, stream: Stream) -> None:
        name, work = stream.work.popleft()
        if self.broken:
            return
        try:
            work()
        except IllegalAddressError as error:
            self.broken = f"{name}: {error}"
        self.executed.append(name)

    def run_until(self, stream: Stream, done: Callable[[], bool]) -> None:
        with self._lock:
            while not done() and stream.work:
                self.step(stream)


class Stream:
    """pycuda.driver.Stream: a queue that nobody serves until somebody waits."""

    def __init__(self, world: World, flags: int = 0) -> None:
        world.check("cuStreamCreate")
        assert flags == 1, "a stream that waits for the legacy default stream waits for torch"
        self.world, self.work = world, deque[tuple[str, Callable[[], None]]]()
        self.recording: list[tuple[str, Callable[[], None]]] | None = None
        self.handle = id(self)
        world.streams[self.handle] = self
        when_gone(self, world.gone, "a stream")

    def put(self, name: str, work: Callable[[], None]) -> None:
        self.world.check(name)
        with self.world._lock:
            (self.work if self.recording is None else self.recording).append((name, work))

    def synchronize(self) -> None:
        self.world.check("cuStreamSynchronize")
        assert self.recording is None, "a stream that is recorded cannot be waited for"
        self.world.run_until(self, lambda: False)
        self.world.check("cuStreamSynchronize")

    def wait_for_event(self, event: Event) -> None:
        stream, mark = event.stream, event.mark

        def wait() -> None:
            if stream is not None:
                self.world.run_until(stream, lambda: mark.reached)

        self.put("wait", wait)


class Mark:
    def __init__(self) -> None:
        self.reached = False


class Event:
    """pycuda.driver.Event."""

    def __init__(self, world: World, flags: int = 0) -> None:
        world.check("cuEventCreate")
        self.world, self.flags = world, flags
        self.stream: Stream | None = None
        self.mark, self.at = Mark(), 0.0
        when_gone(self, world.gone, "an event")

    def record(self, stream: Stream) -> Event:
        self.stream, self.mark = stream, Mark()
        mark = self.mark

        def reach() -> None:
            mark.reached, self.at = True, time.perf_counter()

        stream.put("event", reach)
        return self

    def time_since(self, other: Event) -> float:
        assert not (self.flags | other.flags) & NO_TIME, "an event without timing"
        assert self.mark.reached, "it has not happened yet"
        assert other.mark.reached, "it has not happened yet"
        return (self.at - other.at) * 1e3

    def synchronize(self) -> Event:
        self.world.check("cuEventSynchronize")
        if self.stream is not None:
            mark = self.mark
            self.world.run_until(self.stream, lambda: mark.reached)
        self.world.check("cuEventSynchronize")
        return self


class DeviceAllocation:
    """Device memory; gone at once by `free`, or when nobody holds it."""

    def __init__(self, world: World, allocation: Allocation) -> None:
        self.world, self.allocation = world, allocation
        self.finalizer = when_gone(self, self._lost, world, allocation)

    @staticmethod
    def _lost(world: World, allocation: Allocation) -> None:
        world.gone(f"{allocation.kind} memory")
        world.free(allocation)

    def __int__(self) -> int:
        return self.allocation.address

    def free(self) -> None:
        if not self.world.stack():
            raise LogicError("freeing memory failed: invalid device context")
        if self.finalizer.detach():
            self.world.free(self.allocation)


class HostAllocation(DeviceAllocation):
    """What a pinned array's `base` is."""

    def __init__(self, world: World, allocation: Allocation, shape: tuple[int, ...], dtype: Any) -> None:
        super().__init__(world, allocation)
        typestr = np.dtype(dtype).str
        self.__array_interface__ = {"shape": shape, "typestr": typestr, "data": (allocation.address, False), "version": 3}


class Function:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.format = world, name, ""

    def prepare(self, arg_types: str) -> Function:
        self.format = arg_types
        return self

    def prepared_async_call(self, grid: tuple[int, ...], block: tuple[int, ...], stream: Stream, *args: Any) -> None:
        assert len(grid) == len(block) == 3
        struct.pack(self.format, *args)  # what pycuda does with them: numbers of the wrong kind are refused
        extent = [g * b for g, b in zip(grid, block, strict=True)]
        values = [(ctypes.c_void_p if kind == "P" else ctypes.c_int)(a) for kind, a in zip(self.format, args, strict=True)]
        pointers = [a for kind, a in zip(self.format, args, strict=True) if kind == "P"]

        def work() -> None:
            for pointer in pointers:
                self.world.bytes_at(pointer, 1)
            getattr(host_kernels(), f"run_{self.name}")(*extent, *values)

        stream.put(self.name, work)


class Module:
    def __init__(self, world: World) -> None:
        self.world = world
        when_gone(self, world.gone, "a module")

    def get_function(self, name: str) -> Function:
        return Function(self.world, name)


class Context:
    """pycuda.driver.Context, the primary one."""

    def __init__(self, world: World) -> None:
        self.world = world

    def push(self) -> None:
        self.world.stack().append(self)

    def detach(self) -> None:
        self.world.detached += 1


def pycuda_driver(world: World) -> types.ModuleType:
    """A module that answers as pycuda.driver does."""
    module = _module("pycuda.driver")
    started = []

    def init() -> None:
        started.append(True)

    class Device:
        def __init__(self, index: int) -> None:
            assert started
            assert index == 0

        @staticmethod
        def count() -> int:
            return 1

        multiprocessor_count = 84

        def name(self) -> str:
            return "Simulated GPU"

        def total_memory(self) -> int:
            return world.total

        def compute_capability(self) -> tuple[int, int]:
            return world.capability

        def retain_primary_context(self) -> Context:
            return Context(world)

    def pop() -> None:
        if not world.stack():
            raise LogicError("cannot pop context from empty stack")
        world.stack().pop()

    def mem_alloc(size: int) -> DeviceAllocation:
        world.check("cuMemAlloc")
        if size <= 0:
            raise LogicError("cuMemAlloc failed: invalid argument")
        if world.used() + size > world.total:
            raise ExhaustedError("cuMemAlloc failed: out of memory")
        return DeviceAllocation(world, Allocation(world, size, "device"))

    def pagelocked_empty(shape: Any, dtype: Any) -> NDArray[Any]:
        world.check("cuMemHostAlloc")
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        allocation = Allocation(world, size, "pinned")
        array: NDArray[Any] = np.asarray(HostAllocation(world, allocation, tuple(shape), dtype))
        return array

    def pinned(array: NDArray[Any]) -> None:
        world.bytes_at(array.ctypes.data, array.nbytes)  # else the copy would not be asynchronous at all
        assert array.flags.c_contiguous

    def memcpy_htod_async(target: Any, source: NDArray[Any], stream: Stream) -> None:
        pinned(source)

        def work() -> None:
            world.bytes_at(int(target), source.nbytes)[:] = source.reshape(-1).view(np.uint8)

        stream.put("up", work)

    def memcpy_dtoh_async(target: NDArray[Any], source: Any, stream: Stream) -> None:
        pinned(target)
        address, size = target.ctypes.data, target.nbytes

        def work() -> None:
            world.bytes_at(address, size)[:] = world.bytes_at(int(source), size)

        stream.put("down", work)

    def memcpy_dtod_async(target: Any, source: Any, size: int, stream: Stream) -> None:
        def work() -> None:
            world.bytes_at(int(target), size)[:] = world.bytes_at(int(source), size)

        stream.put("over", work)

    def memcpy_htod(target: Any, source: NDArray[Any]) -> None:
        world.check("cuMemcpyHtoD")
        world.bytes_at(int(target), source.nbytes)[:] = source.reshape(-1).view(np.uint8)

    def module_from_buffer(buffer: bytes) -> Any:
        world.check("cuModuleLoadDataEx")
        assert buffer.startswith(b"//\n// Generated by NVIDIA NVVM Compiler")
        return Module(world)

    vars(module).update(
        Error=Error, LogicError=LogicError, MemoryError=ExhaustedError, LaunchError=LaunchError, RuntimeError=Error,
        init=init, Device=Device, Context=types.SimpleNamespace(pop=pop), get_driver_version=lambda: 12040,
        mem_get_info=lambda: (world.total - world.used(), world.total),
        event_flags=types.SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=NO_TIME),
        Stream=lambda flags=0: Stream(world, flags), Event=lambda flags=0: Event(world, flags),
        mem_alloc=mem_alloc, pagelocked_empty=pagelocked_empty, memcpy_htod=memcpy_htod,
        memcpy_htod_async=memcpy_htod_async, memcpy_dtod_async=memcpy_dtod_async,
        memcpy_dtoh_async=memcpy_dtoh_async, module_from_buffer=module_from_buffer,
    )  # fmt: skip
    return module


def cuda_bindings(world: World, *, refuses: bool = False) -> types.ModuleType:
    """A module that answers as cuda.bindings.driver does. refuses: nothing can be recorded."""
    module = _module("cuda.bindings.driver")

    class Status:
        def __init__(self, name: str) -> None:
            self.name = name

    ok, bad = Status("CUDA_SUCCESS"), Status("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def begin(handle: Stream, mode: str) -> tuple[Status]:
        world.check("cuStreamBeginCapture")
        assert mode == "thread local"
        if refuses:
            return (bad,)
        handle.recording = []
        return (ok,)

    def end(handle: Stream) -> tuple[Status, Any]:
        work, handle.recording = handle.recording, None
        world.recorded += 1
        return ok, work

    def launch(executable: list[tuple[str, Callable[[], None]]], handle: Stream) -> tuple[Status]:
        world.launched += 1
        for name, work in executable:
            handle.put(name, work)
        return (ok,)

    def done(*_: object) -> tuple[Status]:
        return (ok,)

    def instantiate(graph: Any, flags: int) -> tuple[Status, Any]:
        assert flags == 0
        return ok, list(graph)

    vars(module).update(
        CUresult=types.SimpleNamespace(CUDA_SUCCESS=ok), CUstream=lambda handle: world.streams[handle],
        CUstreamCaptureMode=types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local"),
        cuStreamBeginCapture=begin, cuStreamEndCapture=end, cuGraphInstantiate=instantiate,
        cuGraphDestroy=done, cuGraphLaunch=launch, cuGraphExecDestroy=done,
    )  # fmt: skip
    return module


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module
