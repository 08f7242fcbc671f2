"""Which runtimes there are and how a model is opened in one: `open_engine`, `open_text`, `available`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from .base import Engine
from .card import ModelCard, Resize
from .errors import BackendError, BackendMissing, ModelError
from .text import TextEncoder

log = logging.getLogger("clipsight")

Precision = Literal["auto", "fp32", "fp16"]

SHIPPED = Path(__file__).parent / "models"


class Backend(NamedTuple):
    """One row of strings, so that looking at the table imports no runtime."""

    module: str  # beside this one
    cls: str
    needs: str  # the package that must be installed
    install: str  # what to type where it is not
    weights: str  # the file it runs, in the model's folder


# auto takes the first row whose package is installed and whose file the folder has. The order is fixed: ONNX Runtime
# and OpenVINO are level on CPUs and ahead of torch (BENCHMARKS.md).
BACKENDS: dict[str, Backend] = {
    "onnx": Backend("onnx_engine", "OnnxEngine", "onnxruntime", "pip install onnxruntime", "image.onnx"),
    "openvino": Backend("openvino_engine", "OpenVinoEngine", "openvino", "pip install openvino", "image.onnx"),
    "torch": Backend("torch_engine", "TorchEngine", "torch", "pip install torch", "image.safetensors"),
}


def available() -> dict[str, str | None]:
    """Every backend by name, in auto's order, with None where it is installed or the line that installs it."""
    return {name: None if _installed(row.needs) else row.install for name, row in BACKENDS.items()}


def find_model(model: str | Path) -> Path:
    """The folder of a model given by name (one that is shipped) or by path; raises `ModelError` where there is none."""
    folder = Path(model)
    shipped = sorted(p.name for p in SHIPPED.glob("*") if (p / "card.json").is_file())
    if folder.is_dir() and ((folder / "card.json").is_file() or str(model) not in shipped):
        return folder
    if folder.is_file():
        raise ModelError(f"{folder}: a model is a folder with card.json and image.onnx; give the folder")
    if str(model) in shipped:
        return SHIPPED / str(model)
    raise ModelError(
        f"no model folder {str(model)!r}; give a folder with card.json and image.onnx, or one of: {', '.join(shipped)}"
    )


def open_engine(
    model: str | Path,
    backend: str = "auto",
    *,
    precision: Precision = "auto",
    device: int | None = None,
    threads: int | None = None,
    background: bool = False,
    fit: Resize | None = None,
) -> Engine:
    """Open the image encoder of `model`, a shipped model's name or a folder.

    backend: a name of `available()`, or "auto": the first that is installed and has its file in the folder; what it
    chose is logged. precision: "auto" is fp32 on a CPU; "fp16" takes image.fp16.onnx. device: index of a GPU; None is
    the CPU. threads: size of the runtime's pool, by default one per core. background: run it at lower priority than the
    rest of the program. fit: replaces the card's `resize`.

    Raises `ModelError` for the folder, `BackendMissing` with the install line for a backend that is not installed,
    `BackendError` for one that cannot open the model.
    """
    folder = find_model(model)
    card = ModelCard.load(folder)
    if fit is not None:
        card = dataclasses.replace(card, resize=fit)
    if precision not in get_args(Precision):
        raise BackendError(f"precision {precision!r} is not known; use one of {', '.join(get_args(Precision))}")
    name = _choose(folder, card) if backend == "auto" else backend
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}; use auto, {', '.join(BACKENDS)}")
    row = BACKENDS[name]
    if not _installed(row.needs):
        raise BackendMissing(f"{name} is not installed; run: {row.install}")
    if not (folder / row.weights).is_file():
        raise ModelError(f"{folder}: {row.weights}, which {name} runs, is not there; export the model with it")
    try:
        cls = getattr(importlib.import_module(f".{row.module}", __package__), row.cls)
        engine: Engine = cls(folder, card, precision=precision, device=device, threads=threads, background=background)
        return engine
    except ImportError as error:
        raise BackendMissing(
            f"{name} is installed but does not load ({error}); run: {row.install} --force-reinstall"
        ) from error


def open_text(model: str | Path) -> TextEncoder:
    """Open the text tower of `model` (text.onnx and tokenizer.json in its folder): strings in, unit vectors out.

    Raises `ModelError` where the folder has none, `BackendMissing` where tokenizers or ONNX Runtime is not installed.
    """
    folder = find_model(model)
    card = ModelCard.load(folder)
    for package in ("tokenizers", "onnxruntime"):
        if not _installed(package):
            raise BackendMissing(f"words need {package}, which is not installed; run: pip install {package}")
    return TextEncoder(folder, card)


def _choose(folder: Path, card: ModelCard) -> str:
    """The first usable backend in the table's order; raise where there is none, naming what would help."""
    fitting = {name: row for name, row in BACKENDS.items() if (folder / row.weights).is_file()}
    if not fitting:
        raise ModelError(
            f"{folder}: neither image.onnx nor image.safetensors is there; a model folder needs one beside card.json"
        )
    for name, row in fitting.items():
        if _installed(row.needs):
            log.info("engine: %s for %s (the first that is installed, in the order %s)", name, card.id, ", ".join(fitting))
            return name
    raise BackendMissing(f"no runtime for {card.id} is installed; run: {next(iter(fitting.values())).install}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
