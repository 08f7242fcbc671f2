"""torch as the peer of a plan, in a process of its own: eager, compiled, and replayed as a CUDA graph, all in fp16.

In a process of its own because torch may need another Python than TensorRT, and so that neither disturbs the other's memory.
The parent writes a line of JSON for what it wants timed and reads a line with the answer, so both take turns round by round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import BackendError

VARIANTS = ("torch eager", "torch.compile", "torch + CUDA graph")
_PEAK = 8192  # edge of the square product that measures the peak: large enough to fill any GPU


class Peers:
    """torch running `image.safetensors` of `folder` on the GPU `device`, under the interpreter `python`.

    missing: why there is none, in one line; None where it runs. Use it in a `with` block. Raises `BackendError` for an
    interpreter that is none.
    """

    def __init__(self, folder: Path, device: int, python: str | None = None) -> None:
        command = [python or sys.executable, "-m", __name__, str(folder), str(device)]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        except OSError as error:
            raise BackendError(f"{command[0]}: cannot be run ({error.strerror}); give a Python that has torch") from error
        answer = self._read()
        self.missing: str | None = answer.get("error")
        self.name = str(answer.get("name", "torch"))

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"error": "the process of torch ended; see why: python -m clipsight.engines.torch_peers FOLDER DEVICE"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, what: str, batch: int, calls: int) -> float | str:
        """Milliseconds a forward of `batch` pictures takes, mean of `calls` in a row; or why there is no figure."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"what": what, "batch": batch, "calls": calls}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return "the process of torch ended"
        answer = self._read()
        return answer["ms"] if "ms" in answer else str(answer["error"])

    def peak(self) -> float | str:
        """TFLOP/s of a large fp16 matrix product, which no encoder can pass."""
        ms = self.ask("peak", 1, 20)
        return ms if isinstance(ms, str) else 2 * _PEAK**3 / ms / 1e9

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


def _serve(folder: Path, device: int) -> None:
    try:
        import torch

        from .card import ModelCard
        from .torch_engine import TorchEngine

        engine = TorchEngine(folder, ModelCard.load(folder), precision="fp16", device=device)
    except Exception as error:
        print(json.dumps({"error": str(error).splitlines()[0] if str(error) else type(error).__name__}), flush=True)
        return
    visual: Any = engine._visual
    size = engine.card.size
    made: dict[tuple[str, int], Callable[[], object]] = {}

    def make(what: str, batch: int) -> Callable[[], object]:
        if what == "peak":
            a = torch.randn(_PEAK, _PEAK, device=device, dtype=torch.float16)
            return lambda: a @ a
        pixels = torch.randn(batch, 3, size, size, device=device)
        if what == "torch eager":
            return lambda: visual(pixels)
        if what == "torch.compile":
            compiled: Any = torch.compile(visual, dynamic=False)
            return lambda: compiled(pixels)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for _ in range(3):
                visual(pixels)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            visual(pixels)
        return graph.replay

    print(json.dumps({"name": f"torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        key = wanted["what"], wanted["batch"]
        try:
            with torch.inference_mode():
                if key not in made:
                    for old in [k for k in made if k[1] != key[1]]:
                        del made[old]  # one batch size at a time: graphs hold their memory
                    made[key] = make(*key)
                    made[key]()
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
                begin.record()
                for _ in range(wanted["calls"]):
                    made[key]()
                end.record()
                torch.cuda.synchronize()
            answer: dict[str, Any] = {"ms": begin.elapsed_time(end) / wanted["calls"]}
        except Exception as error:
            answer = {"error": (str(error).splitlines() or [type(error).__name__])[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
