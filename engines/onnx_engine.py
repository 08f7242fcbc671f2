"""ONNX Runtime: runs `image.onnx` of any model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import INPUT, HostPrepared, check_graph, default_threads, graph_file, one_line
from .card import ModelCard
from .errors import BackendError


class OnnxEngine(HostPrepared):
    """The CPU, or with `device` the CUDA provider of onnxruntime-gpu."""

    name = "onnx"

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
        import onnxruntime

        super().__init__(card, background=background)
        path = graph_file(folder, precision)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about graph rewrites; its errors are raised
        options.intra_op_num_threads = threads or default_threads(background)
        # Threads that spin between calls take the cores from the display and gain nothing at camera rates.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if background else "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        provider: Any = "CPUExecutionProvider"
        if device is not None:
            provider = ("CUDAExecutionProvider", {"device_id": device})
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise BackendError(
                    "onnx: this onnxruntime has no CUDA; run: pip uninstall onnxruntime && pip install onnxruntime-gpu"
                )
        try:
            self._session: Any = self._in_worker(lambda: onnxruntime.InferenceSession(str(path), options, providers=[provider]))
        except Exception as error:
            self.close()
            raise BackendError(f"onnx: {path} does not load ({one_line(error)})") from error
        if device is not None and self._session.get_providers()[0] != "CUDAExecutionProvider":
            self.close()  # ONNX Runtime falls back to the CPU with no more than a log line
            raise BackendError(f"onnx: CUDA device {device} cannot be used; see what: nvidia-smi; or leave --device out")
        inputs = {i.name: i.shape for i in self._session.get_inputs()}
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._fixed_batch = check_graph(path, card, inputs, self._outputs)
        self.max_batch = self._fixed_batch or self.max_batch

    def _forward(self, pixel_values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, {INPUT: pixel_values}), strict=True))

    def _release(self) -> None:
        self._session = None
        super()._release()
