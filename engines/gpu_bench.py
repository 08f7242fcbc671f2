"""How fast is a plan on this GPU, stage by stage, beside torch, and how many cameras does it serve?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .bench import noise
from .card import ModelCard
from .compiled.session import Program, Session
from .preparing import Image
from .tensorrt_engine import TensorRTEngine
from .torch_peers import VARIANTS, Peers

CAMERA, RATE = (1280, 720), 30  # what counts as a camera
_COPIED = 1 << 28  # bytes; far more than any cache holds
_COMPARED = (1, 8, 32, 256)  # batches that torch is timed at: it compiles for each, which takes a minute

Say = Callable[[str], None]


def bench(engine: TensorRTEngine, peers: Peers, *, rounds: int, calls: int, say: Say = print) -> None:
    """Print tables for batches 1, 2, 4 ... `engine.max_batch`: the stages, the whole, throughput beside torch, cameras.

    Times are of device events unless they are called wall. In each of `rounds` rounds every contender of a batch size has
    its turn of `calls` calls, so that a clock that drifts drifts for all. Raises what the engine raises.
    """
    session = engine._session
    assert session is not None
    gpu, card = session.gpu, session.card
    say(
        f"{card.id} on {gpu.name} ({gpu.target}, driver {gpu.driver}), {engine.family.name} {engine.family.version}, "
        f"{engine.precision}"
    )
    say(f"plan: {engine.facts['size'] / 1e6:.0f} MB, built in {engine.facts.get('seconds', '?')} s; {_gate(engine.facts)}")
    batches = [n for n in (2**i for i in range(11)) if session.least <= n <= engine.max_batch]
    stages = _stages(engine, session, batches, rounds, calls, say)
    bandwidth = _bandwidth(session)
    rates = _throughput(session, peers, batches, rounds, calls, say)
    _limits(engine, card, peers, bandwidth, rates, stages, say)
    _cameras(engine, batches, stages, rounds, calls, say)


def _gate(facts: Any) -> str:
    return f"gate: centered cosine {facts['cosine']:.5f}, label agreement {facts['agreement']:.1%}"


def _stages(
    engine: TensorRTEngine, session: Session, batches: Sequence[int], rounds: int, calls: int, say: Say
) -> dict[int, dict[str, float]]:
    """Print and return p50 milliseconds of each stage by batch; "wall" is `encode`, frame in, vector out."""
    say("")
    say(f"frames of {CAMERA[0]}x{CAMERA[1]} in host memory -> unit vectors, milliseconds a batch, p50 / p95 / p99")
    names = ("fill", "upload", "prepare", "forward", "graph", "wall")
    say(f"{'batch':>5} " + "".join(f"{name:>26}" for name in names))
    found: dict[int, dict[str, float]] = {}
    for n in batches:
        images = _frames(n)
        times: dict[str, list[float]] = {name: [] for name in names}
        with session.gpu.current():
            program = session.lanes[0].program((CAMERA[1], CAMERA[0]), n)
        engine.encode(images)
        for _ in range(rounds):
            with session.gpu.current():
                times["fill"] += _walls(lambda p=program, i=images: p.fill(i), calls)  # type: ignore[misc]
                compute = session.compute
                times["upload"] += _events(session, lambda p=program, s=compute: p.upload(s), calls)  # type: ignore[misc]
                times["prepare"] += _events(session, program.prepare, calls)
                times["forward"] += _events(session, program.forward, calls)
                times["graph"] += _events(session, program.run, calls)
            times["wall"] += _walls(lambda i=images: engine.encode(i), calls)  # type: ignore[misc]
        found[n] = {name: float(np.median(ms)) for name, ms in times.items()}
        cells = ("{:.3f} / {:.3f} / {:.3f}".format(*np.percentile(times[name], (50, 95, 99))) for name in names)
        say(f"{n:>5} " + "".join(f" {cell:>25}" for cell in cells))
    say("fill: into pinned memory, on the host. graph: prepare, forward, download as replayed. wall: the whole call.")
    return found


def _throughput(session: Session, peers: Peers, batches: Sequence[int], rounds: int, calls: int, say: Say) -> dict[int, float]:
    """Print images a second on prepared batches on the device, beside torch; return the plan's by batch."""
    say("")
    say(f"prepared batches on the device, forward and download, {rounds} rounds of {calls} in turn; images/s (x: ours is)")
    if peers.missing:
        say(f"torch is left out: {peers.missing}")
    names = () if peers.missing else VARIANTS
    say(f"{'batch':>5} {session.family.name:>14}" + "".join(f"{name:>28}" for name in names))
    rates: dict[int, float] = {}
    for n in batches:
        contenders = names if n in _COMPARED else ()
        ours: list[float] = []
        theirs: dict[str, list[float]] = {name: [] for name in contenders}
        said: dict[str, str] = {}
        with session.gpu.current():
            program = session.lanes[0].program(None, n)
        for _ in range(rounds):
            with session.gpu.current():
                ours.append(_in_a_row(session, program, calls))
            for name in contenders:
                if name not in said:
                    answer = peers.ask(name, n, calls)
                    if isinstance(answer, str):
                        said[name] = answer
                    else:
                        theirs[name].append(answer)
        rates[n] = 1e3 * n / float(np.median(ours))
        row = f"{n:>5} {rates[n]:>14,.0f}"
        for name in contenders:
            if name in said:
                row += f"{'none':>28}"
            else:
                rate = 1e3 * n / float(np.median(theirs[name]))
                row += f"{f'{rate:,.0f} (x{rates[n] / rate:.2f})':>28}"
        say(row)
        for name, why in said.items():
            say(f"      {name}: {why}")
    return rates


def _limits(
    engine: TensorRTEngine,
    card: ModelCard,
    peers: Peers,
    bandwidth: float,
    rates: dict[int, float],
    stages: dict[int, dict[str, float]],
    say: Say,
) -> None:
    """Print the best rate as a share of a matrix product's, and batch 1 beside the time its weights take to be read."""
    say("")
    best = max(rates, key=lambda n: rates[n])
    flop = flop_of(card)
    peak = "torch is missing" if peers.missing else peers.peak()
    if flop is None:
        say(f"best batch {best}: {rates[best]:,.0f} images/s; what one costs is not known: the card has no arch")
    elif isinstance(peak, str):
        say(f"best batch {best}: {rates[best]:,.0f} images/s, {rates[best] * flop / 1e12:.0f} TFLOP/s; no peak ({peak})")
    else:
        share = rates[best] * flop / 1e12 / peak
        say(
            f"best batch {best}: {rates[best]:,.0f}/s x {flop / 1e9:.1f} GFLOP = {rates[best] * flop / 1e12:.0f} TFLOP/s: "
            f"{share:.0%} of the {peak:.0f} TFLOP/s of an fp16 product here"
        )
    one = min(stages)
    # The plan holds the weights and little else, twice where its two profiles want them laid out in two ways.
    floor = engine.facts["size"] / bandwidth * 1e3
    say(
        f"batch {one}: forward {stages[one]['forward']:.3f} ms; reading the plan's {engine.facts['size'] / 1e6:.0f} MB at the "
        f"{bandwidth / 1e12:.2f} TB/s measured here takes {floor:.3f} ms: x{stages[one]['forward'] / floor:.1f} of that floor"
    )


def _cameras(
    engine: TensorRTEngine, batches: Sequence[int], stages: dict[int, dict[str, float]], rounds: int, calls: int, say: Say
) -> None:
    """Print how many cameras are named in real time, measured over the whole call, and which stage is the slowest."""
    rates = {}
    for n in batches:
        images = _frames(n)
        engine.encode(images)
        seconds = []
        for _ in range(rounds):
            begun, waiting = time.perf_counter(), engine.submit(images)
            for _ in range(calls):
                following = engine.submit(images)
                waiting.result()
                waiting = following
            waiting.result()
            seconds.append((time.perf_counter() - begun) / (calls + 1))
        rates[n] = n / float(np.median(seconds))
    best = max(rates, key=lambda n: rates[n])
    each = {name: stages[best][name] / best for name in ("fill", "upload")}
    each["compute (prepare and forward)"] = (stages[best]["prepare"] + stages[best]["forward"]) / best
    slowest = max(each, key=lambda name: each[name])
    say("")
    say(
        f"cameras: {rates[best]:,.0f} frames/s of {CAMERA[0]}x{CAMERA[1]} from host memory, batch {best}, two in flight: "
        f"{int(rates[best] / RATE)} cameras at {RATE} fps in real time"
    )
    say(f"what limits: {slowest}, " + ", ".join(f"{name} {ms * 1e3:.0f} us" for name, ms in each.items()) + " a frame")


def _frames(n: int) -> list[Image]:
    """`n` frames of a camera in memory of their own: one and the same would stay in the processor's cache."""
    frame = noise(*CAMERA)
    return [np.roll(frame, i, axis=0) for i in range(n)]


def flop_of(card: ModelCard) -> float | None:
    """Floating-point operations of one picture (a multiply and an add are two), for a ViT whose arch the card has.

    A block: 24 L d^2 for its four products, 4 L^2 d for attention, with L tokens of width d; patches and projection beside.
    """
    vision = card.arch.get("vision_cfg")
    if not vision:
        return None
    d, patch = vision["width"], vision["patch_size"]
    tokens = (card.size // patch) ** 2 + 1
    blocks = vision["layers"] * (24 * tokens * d**2 + 4 * tokens**2 * d)
    return float(blocks + 2 * (tokens - 1) * 3 * patch**2 * d + 2 * d * card.dim)


def _bandwidth(session: Session) -> float:
    """Bytes a second that device memory reads and writes: a copy inside it moves each byte twice."""
    cuda = session.gpu.cuda
    with session.gpu.current():
        a, b = cuda.mem_alloc(_COPIED), cuda.mem_alloc(_COPIED)
        ms = _events(session, lambda: cuda.memcpy_dtod_async(a, b, _COPIED, session.compute), 10)
        a.free()
        b.free()
    return 2 * _COPIED / (float(np.median(ms)) / 1e3)


def _in_a_row(session: Session, program: Program, calls: int) -> float:
    """Milliseconds a run takes, mean of `calls` in a row."""

    def work() -> None:
        for _ in range(calls):
            program.run()

    return _events(session, work, 1)[0] / calls


def _events(session: Session, work: Callable[[], object], calls: int) -> list[float]:
    """Milliseconds of each call by the device's clock, in a `current` block."""
    pairs = [(session.gpu.event(timed=True), session.gpu.event(timed=True)) for _ in range(calls)]
    for begin, end in pairs:
        begin.record(session.compute)
        work()
        end.record(session.compute)
    session.compute.synchronize()
    return [float(end.time_since(begin)) for begin, end in pairs]


def _walls(work: Callable[[], object], calls: int) -> list[float]:
    """Milliseconds of each call by the wall's clock."""
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        work()
        times.append((time.perf_counter() - begun) * 1e3)
    return times
