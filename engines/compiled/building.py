"""A model folder in, the bytes of a TensorRT plan out."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from ..base import INPUT, OUTPUT, check_graph
from ..card import ModelCard
from ..errors import ModelError
from .autocast import autocast
from .families import Family

log = logging.getLogger("clipsight")

Half = Literal["fp16", "bf16"]
PRECISIONS = ("fp32", "fp16", "bf16")
MOST = 1024  # pictures per forward


class Built(NamedTuple):
    """A plan that nobody has run yet. seconds: what it took to build."""

    data: bytes
    seconds: float


def profile(max_batch: int) -> list[tuple[int, int, int]]:
    """Batch sizes (least, best for, most) of each optimization profile: one for a single picture, one for more."""
    return [(1, 1, 1)] if max_batch == 1 else [(1, 1, 1), (1, max_batch, max_batch)]


def source(folder: Path, precision: str, *, strongly_typed: bool) -> Path:
    """The ONNX file that a plan of `precision` is made from; raises `ModelError` where the folder has none."""
    names = ["image.onnx"]
    if strongly_typed and precision == "fp16":
        names.insert(0, "image.fp16.onnx")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder}: image.onnx is not there; a model folder needs it beside card.json")


def build(family: Family, folder: Path, card: ModelCard, precision: str, max_batch: int, target: str | None = None) -> Built:
    """Compile the model in `folder` for the GPU whose context is current, or for `target`, such as "sm89".

    Raises `ModelError` for a graph that TensorRT does not take or that is not what the card says, `BackendError` where
    the build fails.
    """
    path = source(folder, precision, strongly_typed=family.strongly_typed)
    begun = time.monotonic()
    builder = family.builder()
    network = family.network(builder)
    parser = family.trt.OnnxParser(network, family.logger)
    with family.failing(f"{path} is not taken"), _interruptible(None):
        if family.strongly_typed and precision != "fp32" and path.name == "image.onnx":
            parsed = parser.parse(autocast(path, cast(Half, precision)))
        else:
            parsed = parser.parse_from_file(str(path))
    if not parsed:
        said = [" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors)]
        reason = (said or ["no reason given"])[0][:300]
        what = f"{family.name} {family.version}: {path} is not taken ({reason})"
        raise ModelError(f"{what}; export the model anew or use --engine onnx")
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    shapes = {i.name: [d if d > 0 else None for d in i.shape] for i in inputs}
    fixed = check_graph(path, card, shapes, [o.name for o in outputs])
    embeds = next(list(o.shape) for o in outputs if o.name == OUTPUT)
    if len(embeds) != 2 or embeds[1] not in (-1, card.dim):
        raise ModelError(f"{path}: gives {OUTPUT} as {embeds}, the card says N x {card.dim}; correct 'dim' in card.json")
    if inputs[0].dtype != family.trt.float32:
        raise ModelError(f"{path}: {INPUT} is {inputs[0].dtype}, it must be float32; export the model anew")
    with _progress(family, f"{card.id} for {target or 'this GPU'}, {family.name} {family.version}, {precision}") as monitor:
        config = family.config(builder, precision, network, target, monitor)
        for least, best, most in [(fixed, fixed, fixed)] if fixed else profile(max_batch):
            shape = builder.create_optimization_profile()
            shape.set_shape(INPUT, *((n, 3, card.size, card.size) for n in (least, best, most)))
            config.add_optimization_profile(shape)
        with family.failing("the build failed"), _interruptible(monitor):
            plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise family.error("the build failed")
    seconds = time.monotonic() - begun
    log.info("compiled %s in %.0f s (%.0f MB)", card.id, seconds, plan.nbytes / 1e6)
    return Built(bytes(plan), seconds)


@contextmanager
def _progress(family: Family, what: str) -> Iterator[Any]:
    """Tell that something is being compiled, in a terminal with a clock and what it is at; yields what TensorRT tells it."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    log.warning("compiling %s; this is done once and may take minutes", what)  # in a host that shows warnings alone too
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    quiet = not console.is_terminal or log.getEffectiveLevel() > logging.INFO
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("compiling")
        yield _monitor(family.trt, lambda phase: progress.update(task, description=f"compiling: {phase}"))


@contextmanager
def _interruptible(monitor: Any) -> Iterator[None]:
    """Ctrl-C ends a build. TensorRT swallows what is raised in its callbacks, so it is asked to stop, and then it is raised."""
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield  # a program that has its own way with Ctrl-C keeps it
        return
    pressed = threading.Event()

    def stop(number: int, frame: object) -> None:
        del number, frame
        pressed.set()
        if monitor is not None:
            monitor.stopped = True

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed.is_set():
        raise KeyboardInterrupt


def _monitor(trt: Any, tell: Any) -> Any:
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is not known before it runs
        """Shows the phase that TensorRT is in. stopped: set it, and the build ends at the next step."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            del steps
            tell(phase if parent is None else f"{parent}, {phase}")

        def step_complete(self, phase: str, step: int) -> bool:
            del phase, step
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            del phase

    return Monitor()
