"""torch: runs `image.safetensors` through this project's own towers, eager, as TorchScript, or compiled."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import OUTPUT, HostPrepared, default_threads, one_line
from .card import ModelCard
from .errors import BackendError, ModelError


class TorchEngine(HostPrepared):
    """The CPU, or with `device` the CUDA GPU of that index; "auto" is fp32. fp16 is for a GPU; bf16 runs under autocast.

    threads: torch has no pool per model, only `torch.set_num_threads`. A number given here holds for the thread that opens
    the engine (with `background` the engine's own) and for every thread of the process that starts using torch later, the
    host program's too; a thread that has used torch before keeps what it had. None leaves torch's setting as it is (off
    Linux, where priority cannot help, a background engine takes one core less).
    """

    name = "torch"

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        *,
        precision: str = "auto",
        device: int | None = None,
        threads: int | None = None,
        background: bool = False,
    ) -> None:
        import torch

        super().__init__(card, background=background)
        try:
            if precision == "fp16" and device is None:
                raise BackendError(f"{self.name}: fp16 needs a CUDA GPU; add --device 0, or use --precision fp32")
            if device is not None and not torch.cuda.is_available():
                raise BackendError(f"torch: no CUDA for device {device}; leave --device out, or install torch with CUDA")
            if device is not None and device not in range(torch.cuda.device_count()):
                raise BackendError(f"torch: no CUDA device {device}; there are {torch.cuda.device_count()}, from 0")
            if threads is None and background and sys.platform != "linux":
                threads = default_threads(background)
            self._torch = torch
            self._device = torch.device("cpu" if device is None else f"cuda:{device}")
            self._bf16 = precision == "bf16"
            self._visual: Any = self._in_worker(lambda: self._ready(self._load(folder, precision == "fp16", threads)))
        except BaseException:
            self.close()  # ends the worker
            raise

    def _load(self, folder: Path, half: bool, threads: int | None) -> Any:
        """Runs in the worker where there is one: the threads that torch starts are its children, at its priority."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from .towers import load, shape_of, to_half

        if threads is not None:
            self._torch.set_num_threads(threads)
        path = folder / "image.safetensors"
        try:
            shape_of(self.card)
            arch = {key: value for key, value in self.card.arch.items() if key != "text_cfg"}
            visual = load(arch, load_file(path)).visual
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from None
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: does not load ({one_line(error)}); export the model anew") from error
        try:
            return (to_half(visual) if half else visual).to(self._device)
        except RuntimeError as error:
            raise BackendError(f"torch: {path} does not fit {self._device} ({one_line(error)})") from error

    def _ready(self, visual: Any) -> Any:
        """The tower in the form in which it is called."""
        return visual

    def _autocast(self) -> Any:
        return self._torch.autocast(self._device.type, self._torch.bfloat16, enabled=self._bf16)

    def _forward(self, pixel_values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        with self._torch.inference_mode(), self._autocast():
            pixels = self._torch.from_numpy(pixel_values).to(self._device)
            return {OUTPUT: self._visual(pixels).float().cpu().numpy()}

    def _release(self) -> None:
        self._visual = None
        super()._release()


class TorchScriptEngine(TorchEngine):
    """Traced and frozen: no Python between the operators."""

    name = "torch-script"

    def _ready(self, visual: Any) -> Any:
        torch, size = self._torch, self.card.size
        example = torch.zeros(2, 3, size, size, device=self._device)  # of one picture a batch of one would be taken for fixed
        with torch.inference_mode(), self._autocast(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would rather have its compiler used
            return torch.jit.freeze(torch.jit.trace(visual.eval(), example, check_trace=False))


class TorchCompileEngine(TorchEngine):
    """Compiled by torch.compile when it is opened, which takes half a minute; another number of pictures compiles once more."""

    name = "torch-compile"

    def _ready(self, visual: Any) -> Any:
        torch, size = self._torch, self.card.size
        try:
            with torch.inference_mode(), self._autocast(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says of parts of its own
                compiled = torch.compile(visual)
                compiled(torch.zeros(1, 3, size, size, device=self._device))
        except Exception as error:
            raise BackendError(
                f"{self.name}: torch.compile fails here ({one_line(error)}); it needs a C++ compiler; use --engine torch"
            ) from error
        return compiled
