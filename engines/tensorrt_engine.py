"""TensorRT and TensorRT for RTX: `image.onnx` compiled for the NVIDIA GPU at hand, fed through pycuda.

What is particular lies in `compiled`, a file for each: `families` (what differs between the releases), `building` (ONNX to
plan), `gate` (is it still the model?), `plans` (the cache), `device` (pycuda and cuda-python), `kernels` (preparation on the
GPU), `session` (a plan at work). Here they are put together.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from .base import Engine, one_line
from .card import ModelCard
from .compiled import gate, plans
from .compiled.building import MOST, PRECISIONS, build, profile, source
from .compiled.device import Gpu
from .compiled.families import Family
from .compiled.plans import Facts, PlanCache, PlanKey
from .compiled.session import Session
from .errors import BackendError
from .preparing import Image

log = logging.getLogger("clipsight")

RECIPE = 1  # counted up when plans made before have to be made anew, as they would be for another version of TensorRT
_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])")  # in protobuf: a text of 8 bytes, then one of so many
_REFUSED = "refused"  # the companion that says why there is no plan: the gate has refused it
_GOOD_BATCH = 16  # above it an encoder fills a GPU, and a video's names only come later
_COMPILED = "kernels"  # the companion of a plan that holds what TensorRT for RTX compiled when it was opened


class Making(NamedTuple):
    """How a plan is made. pictures: the user's own, for the gate. anew: though there is one. plan: adopted, not compiled."""

    pictures: Sequence[Image] = ()
    anew: bool = False
    plan: bytes | None = None


class TensorRTEngine(Engine):
    """An NVIDIA GPU, 0 unless `device` says otherwise.

    precision: "auto" is fp16. max_batch: pictures per forward, 32 unless named; the plan has one profile for a single
    picture and one up to this. background: a wait for the GPU sleeps instead of spinning. threads: nothing here has a pool.

    plan, facts: the plan's file and what its sidecar says: `seconds` to build it, and the gate's figures (`gate.Figures`).

    The first opening compiles the model, which takes from seconds to minutes, checks it against ONNX Runtime and keeps the
    plan in the user's cache; one that fails the check is not kept and raises `BackendError`.
    """

    name = "tensorrt"

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        *,
        precision: str = "auto",
        device: int | None = None,
        threads: int | None = None,
        background: bool = False,
        max_batch: int | None = None,
        making: Making = Making(),  # noqa: B008  it cannot be changed
    ) -> None:
        super().__init__(card)
        del threads
        self._folder, self._making = folder, making
        self.precision = "fp16" if precision == "auto" else precision
        if self.precision not in PRECISIONS:
            raise BackendError(f"{self.name}: precision {precision!r} is not known; use one of {', '.join(PRECISIONS)}")
        if max_batch is not None and not 1 <= max_batch <= MOST:
            raise BackendError(f"{self.name}: max_batch must be from 1 to {MOST}, not {max_batch}")
        self.max_batch = max_batch or self.max_batch
        self._session: Session | None = None
        self.family = Family(self.name)
        self.gpu = Gpu(device or 0, blocking=background)
        self._cache = PlanCache()
        # Cards of one name come with less memory or fewer units too, and TensorRT tunes for what it finds.
        device_name = f"{self.gpu.name} {self.gpu.target} {self.gpu.units} units {self.gpu.memory >> 20} MiB"
        self._key = key_of(self.family, folder, self.precision, self.max_batch, device_name, self.gpu.driver)
        try:
            if not making.anew and (refused := self._cache.attached(self._key, _REFUSED)):
                raise BackendError(f"{refused.decode()}; to try again: python -m clipsight.engines build")
            plan = self._cache.obtain(self._key, self._build, log.info, anew=making.anew)
            if self._session is None:  # it was in the cache
                try:
                    self._open(plan.data)
                except BackendError as error:
                    if self.gpu.lost or self.gpu.exhausted:
                        raise
                    log.warning("%s; compiling it anew", error)
                    plan = self._cache.obtain(self._key, self._build, log.info, anew=True)
            self.plan, self.facts = plan.path, plan.facts
            self._keep_compiled()
        except BaseException:
            self.close()
            raise

    def _build(self) -> tuple[bytes, Facts]:
        """A new plan, open in the session and through the gate; what is not right is not returned, so it is not kept."""
        facts: Facts = {"id": self.card.id, "max_batch": self.max_batch}
        if self._making.plan is None:
            with self.gpu.current():
                built = build(self.family, self._folder, self.card, self.precision, self.max_batch)
            plan, facts["seconds"] = built.data, round(built.seconds, 1)
        else:
            plan = self._making.plan
        self._open(plan, anew=True)
        log.info("comparing %s with ONNX Runtime on pictures", self.card.id)
        own = self._making.pictures
        try:
            figures = gate.check(self.encode, self._folder, self.card, self.precision, own, at_once=self.max_batch)
        except gate.Refused as error:
            if not self._making.anew:  # nobody asked for it, and else it would be compiled in vain at every start
                with contextlib.suppress(OSError):
                    self._cache.attach(self._key, _REFUSED, str(error).encode())
            raise
        self._cache.detach(self._key, _REFUSED)
        log.info("centered cosine at least %.5f, the same label in %.1f %%", figures.cosine, 100 * figures.agreement)
        return plan, {**facts, **figures._asdict()}

    def _open(self, plan: bytes, *, anew: bool = False) -> None:
        kept = None if anew else self._cache.attached(self._key, _COMPILED)  # those of another plan are of no use
        self._session = Session(plan, self.family, self.gpu, self.card, self.max_batch, kept=kept)
        self.max_batch = self._session.max_batch
        self.good_batch = min(_GOOD_BATCH, self.max_batch)

    def _keep_compiled(self) -> None:
        compiled = self._session.compiled() if self._session else None
        if compiled and compiled != self._cache.attached(self._key, _COMPILED):
            try:
                self._cache.attach(self._key, _COMPILED, compiled)
            except OSError as error:
                log.info("compiled kernels are not kept (%s)", one_line(error))

    def _start(self, images: Sequence[Image]) -> Callable[[], Mapping[str, NDArray[Any]]]:
        assert self._session is not None
        return self._session.start(images)

    def _run(self, images: Sequence[Image]) -> Mapping[str, NDArray[Any]]:
        return self._start(images)()

    def _release(self) -> None:
        if self._session:
            with contextlib.suppress(BackendError):
                self._keep_compiled()  # those of the batches that came later too
            self._session.close()
            self._session = None


class TensorRTForRTXEngine(TensorRTEngine):
    """The TensorRT of GeForce and RTX cards, from Turing on."""

    name = "tensorrt-rtx"


ENGINES = {cls.name: cls for cls in (TensorRTEngine, TensorRTForRTXEngine)}


def key_of(family: Family, folder: Path, precision: str, max_batch: int, device: str, driver: str) -> PlanKey:
    """What a plan of the model in `folder` depends on."""
    path = source(folder, precision, strongly_typed=family.strongly_typed)
    model = "+".join([plans.hash_file(path), *map(plans.hash_file, _external(path))])
    batches = ",".join(str(most) for _, _, most in profile(max_batch))
    return PlanKey(model, family.name, family.version, device, driver, precision, f"{batches} recipe {RECIPE}")


def _external(graph: Path) -> list[Path]:
    """Files that hold weights of `graph` outside of it: those that it names, as ONNX does, under the key "location"."""
    if not graph.stat().st_size:
        return []
    with open(graph, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = {content[found.end() : found.end() + found[1][0]] for found in _LOCATION.finditer(content)}
    return sorted(graph.parent / os.fsdecode(name) for name in names)


def build_elsewhere(
    name: str, folder: Path, card: ModelCard, precision: str, max_batch: int, target: str, output: Path
) -> Facts:
    """Compile for the GPU `target` ("sm89"), which need not be here, and write the plan and its sidecar; returns that.

    Nobody has run it: `adopt` holds it to the gate where it can run. Raises `BackendError` for a target or a runtime that
    cannot, `OSError` where the files cannot be written.
    """
    family = Family(name)
    built = build(family, folder, card, precision, max_batch, target)
    key = key_of(family, folder, precision, max_batch, target, "")
    facts = {**vars(key), "id": card.id, "max_batch": max_batch, "seconds": round(built.seconds, 1)}
    return plans.write_plan(output, built.data, facts)


def adopt(path: Path, sha256: str, folder: Path, card: ModelCard, *, device: int | None = None) -> TensorRTEngine:
    """Take a plan made by `build_elsewhere` into the cache: the one with this sha256, once it is through the gate.

    It is run for that, so give the sha256 of a plan whose maker you trust. Raises `BackendError` where the plan is
    another, is not of this model, GPU or release, or does not pass.
    """
    from .registry import needed  # it knows this module, by name alone

    data, facts = plans.check_adoptable(path, sha256)
    # A sidecar is JSON of anyone's: what stands for the name need not even be a key, so it is looked for in a list.
    name, precision, max_batch = facts.get("runtime"), facts.get("precision"), facts.get("max_batch")
    if name not in [*ENGINES] or precision not in PRECISIONS or not isinstance(max_batch, int):
        raise BackendError(f"{path}.json: does not say what the plan is; fetch it again together with the plan")
    needed(name)
    family = Family(name)
    gpu = Gpu(device or 0)
    wanted = key_of(family, folder, precision, max_batch, gpu.target, "")
    for field, value in vars(wanted).items():
        if facts.get(field) != value:
            raise BackendError(
                f"{path}: is for {field} {facts.get(field)!r}, here it is {value!r}; build it anew for this one: "
                f"python -m clipsight.engines build MODEL --engine {name} --target {gpu.target} -o PLAN"
            )
    making = Making(anew=True, plan=data)
    return ENGINES[name](folder, card, precision=precision, device=device, max_batch=max_batch, making=making)
