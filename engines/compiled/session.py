"""A plan at work: frames up, prepared and encoded on the GPU, vectors down; two batches in flight.

    copy stream      | frames of B go up |                 | frames of C go up |
    compute stream   | A: columns, rows, encoder, down     | B: columns, rows, encoder, down |

Two lanes take turns. A lane owns the buffers of one batch, so the frames of the next batch go up while the last one is still
at work. All computing is on one stream, one batch after the other: an encoder fills a GPU by itself, and so every execution
context can share one piece of memory for its activations.

What one (source size, batch) needs is a `Program`: buffers whose addresses never change, an execution context of that shape,
and the CUDA graph recorded over them. Each lane keeps the last few programs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import INPUT
from ..card import ModelCard
from ..errors import BackendError
from ..preparing import Image, prepare
from .device import Gpu, Graph, closed_at_exit
from .families import Family
from .kernels import Kernels, Region, gain_shift, region

log = logging.getLogger("clipsight")

_KEPT = 8  # programs a lane keeps: a folder of photographs has many sizes, a camera has one
Size = tuple[int, int]  # height, width
Outputs = dict[str, NDArray[Any]]
_stranded: list[Any] = []  # what sessions held on a GPU that was lost


class _Output(NamedTuple):
    """One output of the plan: its shape for one picture, and its type."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Memory:
    """Memory of the device and pinned memory of the host, freed together; all calls in a `current` block.

    Freed by name, not when nobody holds it any more: pycuda cannot free what is let go where its context is not current,
    and the traceback of an error holds things for as long as it likes.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._pieces: list[Any] = []

    def allocate(self, size: int) -> Any:
        """`size` bytes on the device."""
        with self._gpu.telling():  # now, while what is free is what it was
            self._pieces.append(self._gpu.cuda.mem_alloc(size))
        return self._pieces[-1]

    def put(self, values: NDArray[Any]) -> Any:
        """A copy of `values` on the device."""
        memory = self.allocate(values.nbytes)
        self._gpu.cuda.memcpy_htod(memory, values)
        return memory

    def pin(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array that the device can read and write while the host goes on."""
        with self._gpu.telling():
            array: NDArray[Any] = self._gpu.cuda.pagelocked_empty(shape, dtype)
        self._pieces.append(array.base)
        return array

    def free(self) -> None:
        """Free it all; harmless when repeated."""
        while self._pieces:
            self._pieces.pop().free()


class Session:
    """`plan` open on `gpu`. Deserializing a plan runs what is in it: see `plans`, which decides what is trusted.

    max_batch: pictures per `start`. kept: what an earlier run's `compiled()` gave. Raises `BackendError`.
    """

    def __init__(
        self, plan: bytes, family: Family, gpu: Gpu, card: ModelCard, max_batch: int, *, kept: bytes | None = None
    ) -> None:
        self.family, self.gpu, self.card = family, gpu, card
        self.lanes: list[Lane] = []
        self._turn = 0
        self._busy = threading.RLock()  # one thread at a time enqueues
        with gpu.current(), contextlib.ExitStack() as undo:
            self.memory = Memory(gpu)
            undo.callback(self._free)
            self.engine = family.open(plan)
            self.settings, self._compiled = family.settings(self.engine, kept)
            self.batches = self._profiles()
            self.least = self.batches[0][0]  # more than 1 where the graph takes one batch only
            self.max_batch = max(self.least, min(max_batch, self.batches[-1][2]))
            self.outputs = self._read_outputs()
            self.compute, self.copy = gpu.stream(), gpu.stream()
            self.kernels = Kernels(gpu.cuda)
            self.activations_size = family.activations(self.engine)
            self.activations = self.memory.allocate(max(self.activations_size, 256))
            self.scale = self.memory.put(gain_shift(card))
            self.lanes = [Lane(self), Lane(self)]
            self.lanes[0].program(None, self.least)  # what cannot work fails now, not at the first frame
            undo.pop_all()
        closed_at_exit(self)

    def _profiles(self) -> list[tuple[int, int, int]]:
        """(least, best, most) batch of each optimization profile."""
        shapes = (self.engine.get_tensor_profile_shape(INPUT, i) for i in range(self.engine.num_optimization_profiles))
        return [tuple(int(shape[0]) for shape in three) for three in shapes]  # type: ignore[misc]

    def _read_outputs(self) -> dict[str, _Output]:
        trt, engine = self.family.trt, self.engine
        outputs = {}
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
                shape = tuple(engine.get_tensor_shape(name))[1:]
                if min(shape, default=0) < 0:
                    raise BackendError(f"{self.family.name}: {name} has no fixed shape ({shape}); export the model anew")
                outputs[name] = _Output(shape, np.dtype(trt.nptype(engine.get_tensor_dtype(name))))
        return outputs

    def start(self, images: Sequence[Image]) -> Callable[[], Outputs]:
        """Enqueue the encoding of 1 to `max_batch` pictures; returns a function that waits for the outputs, by name.

        Waits only while both lanes are at work. Pictures of one size are prepared on the GPU, others here by `prepare`.
        """
        with self._busy, self.gpu.current():
            if not self.lanes:
                raise BackendError(f"{self.family.name}: the engine is closed; open it again")
            lane = self.lanes[self._turn]
            self._turn = (self._turn + 1) % len(self.lanes)
            return lane.start(images)

    def compiled(self) -> bytes | None:
        """What makes the next opening of this plan quick, where the runtime has such a thing."""
        with self._busy, self.gpu.current():
            return self._compiled() if self._compiled else None

    def close(self) -> None:
        """Wait for what is in flight, whose outputs stay to be had, and free everything."""
        with self._busy:
            for lane in self.lanes:
                lane.settle()
            if self.gpu.lost:  # nothing can be freed, and pycuda would say so of every piece
                _stranded.append(dict(vars(self)))
                self.lanes = []
                return
            try:
                with self.gpu.current():
                    self._free()
            except BackendError as error:
                log.debug("closing: %s", error)

    def _free(self) -> None:
        """In a `current` block: pycuda frees what is let go here in the context that is current."""
        for lane in self.lanes:
            lane.free()
        self.lanes = []
        self.settings = self._compiled = self.engine = None  # after the contexts, which the lanes held
        self.compute = self.copy = self.activations = self.scale = None
        self.kernels = None  # type: ignore[assignment]  # nothing is started any more
        self.memory.free()


class Lane:
    """The buffers of one batch in flight. pixels: float32 max_batch x 3 x S x S on the device."""

    def __init__(self, session: Session) -> None:
        self.session = session
        memory, n = session.memory, session.max_batch
        self.pixels = memory.allocate(n * 3 * session.card.size**2 * 4)
        self.outputs: dict[str, tuple[Any, NDArray[Any]]] = {}  # on the device, and pinned here
        for name, (shape, dtype) in session.outputs.items():
            pinned = memory.pin((n, *shape), dtype)
            self.outputs[name] = memory.allocate(pinned.nbytes), pinned
        self._up, self._done = session.gpu.event(), session.gpu.event()
        self._programs: OrderedDict[tuple[Size | None, int], Program] = OrderedDict()
        self._job: Job | None = None

    def program(self, size: Size | None, n: int) -> Program:
        """The program of `n` pictures of `size` (None: prepared by the host); the least recently used one makes room."""
        key = size, n
        if key in self._programs:
            self._programs.move_to_end(key)
        else:
            while len(self._programs) >= _KEPT:
                self._programs.popitem(last=False)[1].free()
            try:
                self._programs[key] = Program(self, size, n)
            except BackendError:
                if self.session.gpu.lost or not self._programs:
                    raise
                self.drop()  # large pictures: what was kept for others may be what is missing
                self._programs[key] = Program(self, size, n)
        return self._programs[key]

    def drop(self) -> None:
        """Free every program, in a `current` block, with nothing in flight."""
        for program in self._programs.values():
            program.free()
        self._programs.clear()

    def start(self, images: Sequence[Image]) -> Job:
        """See `Session.start`."""
        self.settle()  # the last batch's outputs are taken, and its buffers are free
        session = self.session
        sizes = {image.shape[:2] for image in images}
        size = sizes.pop() if len(sizes) == 1 else None
        # Up to the next power of two: seven images cost what eight do, and there are few programs instead of one for each.
        n = min(session.max_batch, 1 << (len(images) - 1).bit_length())
        program = self.program(size, max(n, session.least))
        program.fill(images)
        program.upload(session.copy)
        self._up.record(session.copy)
        session.compute.wait_for_event(self._up)
        program.run()
        self._done.record(session.compute)
        self._job = Job(session.gpu, self._done, self.outputs, len(images))
        return self._job

    def settle(self) -> None:
        """Wait for the batch in flight and keep its outputs, or its error, for whoever asks for them."""
        if self._job:
            self._job.settle()
            self._job = None

    def free(self) -> None:
        """In a `current` block."""
        self.drop()
        self._job = self._up = self._done = None
        self.outputs = {}


class Job:
    """Outputs that are on their way; call it to have them."""

    def __init__(self, gpu: Gpu, done: Any, outputs: dict[str, tuple[Any, NDArray[Any]]], n: int) -> None:
        self._gpu, self._done, self._pinned, self._n = gpu, done, outputs, n
        self._lock = threading.Lock()
        self._got: Outputs | BackendError | None = None

    def __call__(self) -> Outputs:
        """Wait, and return the outputs, the caller's own; raises `BackendError` where the GPU failed."""
        self.settle()
        if isinstance(self._got, BackendError):
            raise self._got
        assert self._got is not None
        return self._got

    def settle(self) -> None:
        """Wait for the GPU and copy the outputs, or keep the error."""
        with self._lock:
            if self._got is not None:
                return
            try:
                with self._gpu.current():
                    self._done.synchronize()
                self._got = {name: pinned[: self._n].copy() for name, (_, pinned) in self._pinned.items()}
            except BackendError as error:
                self._got = error
            self._done = self._pinned = None  # type: ignore[assignment]  # the lane's, and no longer this batch's


class Program:
    """`n` pictures of `size` from pinned memory to the outputs; with `size` None, n prepared pictures.

    Made with one run, because TensorRT does the rest of its setting up in the first, and then recorded as a CUDA graph.
    staging: pinned, uint8 n x height x width x 3 or float32 n x 3 x S x S.
    """

    def __init__(self, lane: Lane, size: Size | None, n: int) -> None:
        self._lane, self._n = lane, n
        session = lane.session
        self._session, card = session, session.card
        self._part: Region | None = None
        self._memory = memory = Memory(session.gpu)
        self._context: Any = None
        self._graph: Graph | None = None
        try:
            if size is None:
                self.staging = memory.pin((n, 3, card.size, card.size), np.float32)
                self._target = lane.pixels
            else:
                self._part = part = region(*size, card.size, card.resize, card.filter)
                self.staging = memory.pin((n, part.height, part.width, 3), np.uint8)
                self._target = memory.allocate(self.staging.nbytes)
                self._mid = memory.allocate(n * part.height * len(part.columns.lo) * 3)
                self._tables = [memory.put(values) for table in (part.columns, part.rows) for values in table]
            self._context = self._make_context()
            self._record()
        except BaseException:
            self.free()
            raise

    def _make_context(self) -> Any:
        session, lane, n = self._session, self._lane, self._n
        family, card = session.family, session.card
        context = family.context(session.engine, int(session.activations), session.activations_size, session.settings)
        fitting = [i for i, (least, _, most) in enumerate(session.batches) if least <= n <= most]
        if not fitting:
            raise BackendError(f"{family.name}: the plan takes no batch of {n}; build it anew with --max-batch {n}")
        with family.failing("the plan is not set up"):
            taken = [context.set_optimization_profile_async(fitting[0], session.compute.handle)]
            session.compute.synchronize()
            taken.append(context.set_input_shape(INPUT, (n, 3, card.size, card.size)))
            taken.append(context.set_tensor_address(INPUT, int(lane.pixels)))
            taken += [context.set_tensor_address(name, int(memory)) for name, (memory, _) in lane.outputs.items()]
            if not all(taken):
                raise family.error("the plan is not set up")
        return context

    def _record(self) -> None:
        session = self._session
        self.staging.fill(0)
        self.upload(session.compute)
        self.enqueue()
        session.compute.synchronize()
        try:
            self._graph = session.gpu.capture(self.enqueue, session.compute)
        except BackendError as error:
            log.info("%s: not recorded as a CUDA graph, so each step is started by itself (%s)", session.family.name, error)

    def fill(self, images: Sequence[Image]) -> None:
        """Copy the pictures, or what of them the model sees, into pinned memory; fewer than `n` leave the rest as it was."""
        part = self._part
        if part is None:
            np.copyto(self.staging[: len(images)], prepare(images, self._session.card))
        else:
            for target, image in zip(self.staging[: len(images)], images, strict=True):
                np.copyto(target, image[part.y0 : part.y1, part.x0 : part.x1])

    def upload(self, stream: Any) -> None:
        """Enqueue the way up."""
        self._session.gpu.cuda.memcpy_htod_async(self._target, self.staging, stream)

    def run(self) -> None:
        """Enqueue all that comes after the way up, on the compute stream: by the graph where there is one."""
        if self._graph:
            self._graph.launch()
        else:
            self.enqueue()

    def enqueue(self) -> None:
        """The same, step by step."""
        self.prepare()
        self.forward()
        self.download()

    def prepare(self) -> None:
        """Enqueue frames -> pixel values."""
        part, session, lane = self._part, self._session, self._lane
        if part is not None:
            lo_x, weights_x, lo_y, weights_y = map(int, self._tables)
            mid, kernels, stream = int(self._mid), session.kernels, session.compute
            kernels.columns(stream, int(self._target), part, lo_x, weights_x, mid, self._n)
            size, scale = session.card.size, int(session.scale)
            kernels.rows(stream, mid, part, lo_y, weights_y, size, scale, int(lane.pixels), self._n)

    def forward(self) -> None:
        """Enqueue pixel values -> outputs."""
        family = self._session.family
        with family.failing("the forward failed"):
            if not self._context.execute_async_v3(self._session.compute.handle):
                raise family.error("the forward failed")

    def download(self) -> None:
        """Enqueue the way down of all outputs, into pinned memory."""
        cuda, stream = self._session.gpu.cuda, self._session.compute
        for memory, pinned in self._lane.outputs.values():
            cuda.memcpy_dtoh_async(pinned[: self._n], memory, stream)

    def free(self) -> None:
        """In a `current` block, with nothing of it running."""
        if self._graph:
            self._graph.free()
        self._graph = self._context = None
        self._memory.free()
