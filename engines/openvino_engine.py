"""OpenVINO: runs `image.onnx` of any model folder on Intel and other CPUs, and on Intel GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import INPUT, HostPrepared, check_graph, default_threads, graph_file, one_line
from .card import ModelCard
from .errors import BackendError


class OpenVinoEngine(HostPrepared):
    """The CPU, or with `device` the Intel GPU of that index.

    OpenVINO's threads belong to the process: those that an engine or the host started before keep their priority, so
    `background` holds in full only for the first.
    """

    name = "openvino"

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
        import openvino

        super().__init__(card, background=background)
        path = graph_file(folder, precision)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device is None:
            settings["INFERENCE_NUM_THREADS"] = threads or default_threads(background)
            settings["INFERENCE_PRECISION_HINT"] = "f32"  # else CPUs with bf16 units round to 8 bits unasked
        target = "CPU" if device is None else f"GPU.{device}"

        def load() -> tuple[Any, Any]:
            core = openvino.Core()
            model = core.read_model(str(path))
            return model, core.compile_model(model, target, settings)

        try:
            model, compiled = self._in_worker(load)
        except Exception as error:
            self.close()
            raise BackendError(f"openvino: {path} does not load on {target} ({one_line(error)})") from error
        inputs = {
            p.get_any_name(): [d.get_length() if d.is_static else None for d in p.get_partial_shape()] for p in model.inputs
        }
        self._outputs = [p.get_any_name() for p in model.outputs]
        self._fixed_batch = check_graph(path, card, inputs, self._outputs)
        self.max_batch = self._fixed_batch or self.max_batch
        self._request: Any = self._in_worker(compiled.create_infer_request)

    def _forward(self, pixel_values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self._request.infer({INPUT: pixel_values}, share_inputs=True)
        # copies: the request's own memory is overwritten by the next call
        return {name: np.array(self._request.get_tensor(name).data) for name in self._outputs}

    def _release(self) -> None:
        self._request = None
        super()._release()
