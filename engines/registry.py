"""Which runtimes there are and how a model is opened in one: `open_engine`, `open_text`, `available`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from .base import Engine, one_line
from .card import ModelCard, Resize
from .catalog import catalog
from .errors import BackendError, BackendMissing, ClipsightError, ModelError
from .text import TextEncoder

log = logging.getLogger("clipsight")

Precision = Literal["auto", "fp32", "fp16", "bf16"]

SHIPPED = Path(__file__).parent / "models"


class Backend(NamedTuple):
    """One row of strings, so that looking at the table imports no runtime."""

    module: str  # beside this one
    cls: str
    needs: str  # the packages that must be installed
    install: str  # what to type where they are not
    weights: str  # the file it runs, in the model's folder
    precisions: str = "fp32 fp16"
    nvidia: bool = False  # it runs on an NVIDIA GPU and nowhere else


def _on_nvidia(name: str) -> tuple[str, str, str, str, bool]:
    needs = f"{name.replace('-', '_')} pycuda cuda.bindings onnx onnxruntime"
    return needs, f'pip install -e ".[{name}]"', "image.onnx", "fp32 fp16 bf16", True


_OF_TORCH = ("torch", "pip install torch", "image.safetensors", "fp32 fp16 bf16")


# auto takes the first row whose packages are installed, whose file the folder has and, for the first two, whose GPU is
# there. The order is fixed: an NVIDIA GPU is far ahead of any CPU; ONNX Runtime and OpenVINO are level on CPUs and ahead of
# torch (BENCHMARKS.md).
BACKENDS: dict[str, Backend] = {
    "tensorrt": Backend("tensorrt_engine", "TensorRTEngine", *_on_nvidia("tensorrt")),
    "tensorrt-rtx": Backend("tensorrt_engine", "TensorRTForRTXEngine", *_on_nvidia("tensorrt-rtx")),
    "onnx": Backend("onnx_engine", "OnnxEngine", "onnxruntime", "pip install onnxruntime", "image.onnx"),
    "openvino": Backend("openvino_engine", "OpenVinoEngine", "openvino", "pip install openvino", "image.onnx"),
    "torch": Backend("torch_engine", "TorchEngine", *_OF_TORCH),
    "torch-script": Backend("torch_engine", "TorchScriptEngine", *_OF_TORCH),
    "torch-compile": Backend("torch_engine", "TorchCompileEngine", *_OF_TORCH),
}


def available() -> dict[str, str | None]:
    """Every backend by name, in auto's order, with None where it can run here or else what to do for it, in one line."""
    return {name: missing(row) for name, row in BACKENDS.items()}


def missing(row: Backend) -> str | None:
    """What to do so that a backend can run here; None where nothing is missing."""
    install = row.install if _lacking(row) else None
    no_gpu = _no_gpu() if row.nvidia else None
    return f"{no_gpu}; then run: {install}" if no_gpu and install else no_gpu or install


def find_model(model: str | Path) -> Path:
    """The folder of a model given by path or by name: one that is shipped, or one of the catalog, which is fetched once.

    Raises `ModelError` where there is none, or where it cannot be fetched.
    """
    folder, name = Path(model), str(model)
    shipped = shipped_models()
    known = [*shipped, *catalog()]
    if folder.is_dir() and ((folder / "card.json").is_file() or name not in known):
        return folder
    if folder.suffix == ".onnx" and folder.is_file():
        raise ModelError(f"{folder}: a model is a folder with card.json and image.onnx; give the folder")
    if folder.is_file():
        raise ModelError(f"{folder}: a model is a folder; make one: python -m clipsight.engines export {folder} -o FOLDER")
    if name in shipped:
        return SHIPPED / name
    if name in known or (":" in name and not folder.parent.name):
        from .obtaining import obtain

        return obtain(name)
    raise ModelError(f"no model folder {name!r}; give a folder with card.json and image.onnx, or one of: {', '.join(known)}")


def shipped_models() -> list[str]:
    """The names of the models that come with clipsight."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/card.json"))


def open_engine(
    model: str | Path,
    backend: str = "auto",
    *,
    precision: Precision = "auto",
    device: int | None = None,
    threads: int | None = None,
    background: bool = False,
    fit: Resize | None = None,
    max_batch: int | None = None,
) -> Engine:
    """Open the image encoder of `model`, a shipped model's name or a folder.

    backend: a name of `available()`, or "auto": the first that can run here and has its file in the folder; what it
    chose is logged. precision: "auto" is fp32 on a CPU and fp16 in TensorRT; "fp16" takes image.fp16.onnx; "bf16" is
    TensorRT's alone. device: index of a GPU; None is the CPU, and GPU 0 for TensorRT. threads: size of the runtime's pool, by
    default one per core. background: run it at lower priority than the rest of the program. fit: replaces the card's
    `resize`. max_batch: pictures per forward, by default 32; TensorRT compiles the model for it.

    Raises `ModelError` for the folder, `BackendMissing` with the install line for a backend that is not installed,
    `BackendError` for one that cannot open the model.
    """
    folder = find_model(model)
    card = ModelCard.load(folder)
    if fit is not None:
        card = dataclasses.replace(card, resize=fit)
    if precision not in get_args(Precision):
        raise BackendError(f"precision {precision!r} is not known; use one of {', '.join(get_args(Precision))}")
    if max_batch is not None and max_batch < 1:
        raise BackendError(f"max_batch must be at least 1, not {max_batch}")
    settings = {"precision": precision, "device": device, "threads": threads, "background": background}
    if backend != "auto":
        return _open(backend, folder, card, settings, max_batch)
    *first, last = _choose(folder, card, precision)
    for name in first:
        try:
            return _open(name, folder, card, settings, max_batch)
        except ClipsightError as error:
            log.warning("engine: %s cannot open %s (%s); taking the next", name, card.id, error)
    return _open(last, folder, card, settings, max_batch)


def _open(name: str, folder: Path, card: ModelCard, settings: Mapping[str, Any], max_batch: int | None) -> Engine:
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}; use auto, {', '.join(BACKENDS)}")
    row = BACKENDS[name]
    needed(name)
    if settings["precision"] not in ("auto", *row.precisions.split()):
        raise BackendError(
            f"{name} does not run {settings['precision']}; use --precision {' or '.join(row.precisions.split())}"
        )
    if not (folder / row.weights).is_file():
        raise ModelError(f"{folder}: {row.weights}, which {name} runs, is not there; export the model with it")
    try:
        cls = getattr(importlib.import_module(f".{row.module}", __package__), row.cls)
        if row.nvidia:  # what is compiled is compiled for it
            return cls(folder, card, **settings, max_batch=max_batch)  # type: ignore[no-any-return]
        engine: Engine = cls(folder, card, **settings)
    except (ImportError, OSError) as error:
        if isinstance(error, ClipsightError):
            raise
        raise BackendMissing(
            f"{name} is installed but does not load ({one_line(error)}); run: {row.install} --force-reinstall"
        ) from error
    engine.max_batch = min(engine.max_batch, max_batch or engine.max_batch)
    return engine


def open_text(model: str | Path) -> TextEncoder:
    """Open the text tower of `model` (text.onnx and tokenizer.json in its folder): strings in, unit vectors out.

    Raises `ModelError` where the folder has none, `BackendMissing` where tokenizers, ftfy or ONNX Runtime is not installed.
    """
    folder = find_model(model)
    card = ModelCard.load(folder)
    for package in ("tokenizers", "ftfy", "onnxruntime"):
        if not _installed(package):
            raise BackendMissing(f"words need {package}, which is not installed; run: pip install {package}")
    return TextEncoder(folder, card)


def needed(name: str, *, nvidia: bool = True) -> None:
    """Raise where a backend cannot run here, with what to do. nvidia: whether its GPU is needed, and what drives it."""
    row = BACKENDS[name]
    lacking = _lacking(row) if nvidia else _lacking(row, without=("pycuda", "cuda.bindings", "onnxruntime"))
    if nvidia and row.nvidia and _no_gpu():  # first: without a GPU there is no use in installing anything
        raise (BackendMissing if lacking else BackendError)(f"{name}: {missing(row)}")
    if lacking:
        # Only what is lacking where there is no GPU: pycuda, which the extra brings, does not even build there.
        install = row.install if nvidia else f"pip install {' '.join(p.replace('_', '-') for p in lacking)}"
        raise BackendMissing(f"{name} is not installed ({', '.join(lacking)}); run: {install}")


def _choose(folder: Path, card: ModelCard, precision: str) -> list[str]:
    """The backends to try, in this order: those for an NVIDIA GPU that can run here, and the first other one.

    Raises where there is none, naming what would help.
    """
    fitting = {name: row for name, row in BACKENDS.items() if (folder / row.weights).is_file()}
    if not fitting:
        raise ModelError(
            f"{folder}: neither image.onnx nor image.safetensors is there; a model folder needs one beside card.json"
        )
    able = [name for name, row in fitting.items() if not missing(row)]
    if not able:
        cheapest = next(row for row in fitting.values() if not row.nvidia)
        raise BackendMissing(f"no runtime for {card.id} is installed; run: {cheapest.install}")
    able = [name for name in able if precision in ("auto", *BACKENDS[name].precisions.split())] or able[-1:]
    others = [name for name in able if not BACKENDS[name].nvidia]
    chosen = [name for name in able if BACKENDS[name].nvidia] + others[:1]
    order = ", ".join(fitting)
    hint = ""
    if not BACKENDS[chosen[0]].nvidia and not _no_gpu():
        hint = "; TensorRT would use the NVIDIA GPU here: engines/NVIDIA.md says how to install it"
    log.info("engine: %s for %s (the first that can run here, in the order %s%s)", chosen[0], card.id, order, hint)
    return chosen


def _lacking(row: Backend, without: Sequence[str] = ()) -> list[str]:
    return [package for package in row.needs.split() if package not in without and not _installed(package)]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of cuda.bindings, where there is no cuda at all
        return False


def _no_gpu() -> str | None:
    from .compiled.device import driver

    return driver()
