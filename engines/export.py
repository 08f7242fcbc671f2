"""Towers in, a model folder out, every graph in it checked against torch before it is kept.

The graphs come from torch's TorchScript exporter. Measured on ViT-B/16 (2 cores, batch 1, ONNX Runtime 1.32, torch 2.13)
the exporter based on torch.export is level at run time (192 ms against 194), takes three times as long (11 s against 4),
needs onnxscript, and has opset 18 as its lowest: asked for 17 it converted down and left a file that ONNX Runtime refused.
Opset 17 is wanted because it is the first with LayerNormalization as one operator, which keeps its float32 inside an fp16
network, and the last that TensorRT 8.6 parses. The file's IR version, 8, is read by every ONNX Runtime since 1.13.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .base import INPUT, OUTPUT, one_line
from .cache import hash_file
from .card import ModelCard
from .errors import ModelError
from .resnet import ModifiedResNet
from .towers import CLIP, VisionTransformer, cast, shape_of, to_half

OPSET = 17
PATCHES, TEXT_INPUT, TEXT_OUTPUT = "patch_embeds", "input_ids", "text_embeds"
IMAGE_FILES = {"fp32": "image.onnx", "fp16": "image.fp16.onnx"}
LEAST = {"fp32": 0.99999, "fp16": 0.999}  # centered cosine to torch's float32 towers
_CHECKED = 8  # inputs per check
_PROTOBUF = 2**31  # bytes that one ONNX file without external data can hold


def export(
    model: CLIP,
    folder: str | Path,
    card: ModelCard,
    precisions: Sequence[str] = ("fp32", "fp16"),
    *,
    patches: bool = False,
) -> dict[str, float]:
    """Write `model` as a model folder and return each graph's smallest centered cosine to torch, by file name.

    Files: card.json with these figures and the files' hashes in its notes; image.onnx and image.fp16.onnx as `precisions`
    says (both take and give float32); text.onnx where the model has a text tower; image.safetensors, the state dict of the
    image tower under OpenAI's names, `visual.` included. patches: the image graphs also give `patch_embeds`.

    Nothing is put into the folder before everything is written and checked. Raises `ModelError` for a card of another
    shape, a folder that cannot be used, and a graph whose answers are not torch's; `OSError` for a full disk.
    """
    shape = shape_of(card)
    if shape != model.shape:
        raise ModelError(f"card: its arch is not the model's, which is {model.shape}; correct the card")
    unknown = [p for p in precisions if p not in IMAGE_FILES]
    if unknown or not precisions:
        raise ModelError(f"precisions {list(precisions)!r} cannot be exported; use some of {', '.join(IMAGE_FILES)}")
    names = [IMAGE_FILES[p] for p in precisions] + ["image.safetensors"] + (["text.onnx"] if shape.text else [])
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)  # the caller may be training it
    return _into(Path(folder), names, card, lambda scratch: _write(model, scratch, precisions, patches))


def export_other(model: Any, folder: str | Path, card: ModelCard, vocab_size: int) -> dict[str, float]:
    """Write a model whose towers are not ours, such as open_clip's SigLIP: what `export` does, in float32, of its own forward.

    model: has encode_image(pixel_values) and encode_text(input_ids), and is in eval mode. Texts have the card's context_length:
    such a tower may look at what stands behind the end. There is no image.safetensors, so the torch backend cannot run it.
    """
    graphs = {"image.onnx": (_Own(model.encode_image, model), INPUT, OUTPUT, random_pictures(_CHECKED, card.size))}
    if card.context_length:
        ids = random_ids(_CHECKED, card.context_length, vocab_size)
        graphs["text.onnx"] = (_Own(model.encode_text, model), TEXT_INPUT, TEXT_OUTPUT, ids)

    def write(scratch: Path) -> dict[str, float]:
        figures = {}
        for name, (graph, takes, gives, inputs) in graphs.items():
            _write_graph(graph, inputs[:2], scratch / name, takes, [gives])
            figures[name] = _check(scratch / name, graph, inputs, LEAST["fp32"])
        return figures

    return _into(Path(folder), list(graphs), card, write)


def _into(folder: Path, names: Sequence[str], card: ModelCard, write: Callable[[Path], dict[str, float]]) -> dict[str, float]:
    """Let `write` make the files `names` aside, and put them and the card into `folder` when all of it went well."""
    made = _make(folder, names)
    try:
        # Beside the files it will replace, so that os.replace stays on one file system.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            figures = write(Path(scratch))
            files = {name: hash_file(Path(scratch, name)) for name in names}
            notes = {**card.notes, "centered_cosine_to_torch": figures, "files": files}
            dataclasses.replace(card, notes=notes).save(scratch)
            for name in [*names, "card.json"]:  # the card last: a folder without one is no model
                os.replace(Path(scratch, name), folder / name)
    except BaseException:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise
    return figures


def centered_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The smallest cosine between rows of two n x dim arrays after each array's mean row is taken away.

    Embeddings of one model share a large common part, so plain cosines say 0.99 of pictures that have nothing in common.
    """
    a, b = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (a, b))
    with np.errstate(all="ignore"):  # infinite values make a NaN, which fails every check
        a, b = a - a.mean(0), b - b.mean(0)
        return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def random_pictures(n: int, size: int, seed: int = 0) -> Tensor:
    """Smooth and rough colored blobs, normalized as a CLIP input is: float32 n x 3 x size x size.

    Plain noise would not do: all of it looks alike to a CLIP, and what is left of it around the mean is rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.zeros(n, 3, size, size)
    for cells in (1, 3, 9, 27):
        grid = torch.randn(n, 3, cells, cells, generator=generator)
        pictures += F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
    return (0.8 * pictures).clamp(-2, 2.5)


def random_ids(n: int, length: int, vocab_size: int, seed: int = 0) -> Tensor:
    """Texts of several lengths, the end token (the highest id) behind each and zeros after it: int64 n x length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocab_size - 1, (n, length), generator=generator)
    ends = torch.randint(1, length, (n, 1), generator=generator)
    places = torch.arange(length)
    return ids.masked_fill(places > ends, 0).masked_fill(places == ends, vocab_size - 1)


class _ImageGraph(nn.Module):
    """The image tower with float32 at both ends, whatever its weights are."""

    def __init__(self, visual: VisionTransformer | ModifiedResNet, patches: bool) -> None:
        super().__init__()
        self.visual, self.patches = visual, patches

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.visual(pixel_values, True) if self.patches else (self.visual(pixel_values),)
        return tuple(cast(t, torch.float32) for t in outputs)


class _TextGraph(nn.Module):
    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        return (self.model.encode_text(input_ids),)


class _Own(nn.Module):
    """A method of a model as a graph."""

    def __init__(self, method: Callable[[Tensor], Tensor], model: nn.Module) -> None:
        super().__init__()
        self.method, self.model = method, model  # the model, so that its weights are found

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.method(inputs),)


def _make(folder: Path, names: Sequence[str]) -> bool:
    """Create `folder` and say whether it is new; refuse one where files of an earlier export would stay beside new weights."""
    stale = [n for n in (*IMAGE_FILES.values(), "text.onnx") if n not in names and (folder / n).exists()]
    if stale:
        raise ModelError(f"{folder}: {stale[0]} of another export is there; remove it or give another folder")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be made ({error.strerror}); give another folder") from None
    return made


def _write(model: CLIP, folder: Path, precisions: Sequence[str], patches: bool) -> dict[str, float]:
    """Write and check everything but the card; return the figures by file name."""
    visual, shape = model.visual, model.shape
    if isinstance(visual, ModifiedResNet):
        visual = copy.deepcopy(visual)
        visual.fold()  # torch's exporter does it too, and leaves the module that it was given with other weights
    image = _ImageGraph(visual, patches)
    pictures = random_pictures(_CHECKED, shape.vision.image_size)
    outputs = [OUTPUT, PATCHES] if patches else [OUTPUT]
    figures: dict[str, float] = {}
    for precision in precisions:
        graph, path = image, folder / IMAGE_FILES[precision]
        if precision == "fp16":
            graph = _ImageGraph(to_half(copy.deepcopy(model.visual)), patches)
            _check_range(graph, pictures[:2], path.name)
        _write_graph(graph, pictures[:2], path, INPUT, outputs)
        figures[path.name] = _check(path, image, pictures, LEAST[precision])
    if shape.text:
        ids = random_ids(_CHECKED, shape.text.context_length, shape.text.vocab_size)
        text, path = _TextGraph(model), folder / "text.onnx"
        _write_graph(text, ids[:2], path, TEXT_INPUT, [TEXT_OUTPUT])
        few = random_ids(_CHECKED, max(2, shape.text.context_length // 3), shape.text.vocab_size)  # most texts are short
        figures[path.name] = min(_check(path, text, x, LEAST["fp32"]) for x in (ids, few))
    # Not save_file: that leaves a file which only its owner may read.
    tensors = {f"visual.{name}": tensor.contiguous() for name, tensor in model.visual.state_dict().items()}
    Path(folder, "image.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    return figures


def _write_graph(graph: nn.Module, example: Tensor, path: Path, takes: str, gives: Sequence[str]) -> None:
    dynamic = {name: {0: "batch"} for name in [takes, *gives]}
    if isinstance(graph, _TextGraph):
        dynamic[takes][1] = "length"
    size = sum(t.numel() * t.element_size() for t in graph.state_dict().values())
    if size >= _PROTOBUF:
        raise ModelError(
            f"{path.name}: {size / 2**30:.1f} GiB of weights, an ONNX file holds 2; export fp16 alone, or a smaller model"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and what it says of tracing
        torch.onnx.export(
            graph,
            (example,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[takes],
            output_names=list(gives),
            dynamic_axes=dynamic,
        )


def _check(path: Path, graph: nn.Module, inputs: Tensor, least: float) -> float:
    """Hold ONNX Runtime's answers to `path` against torch's own; return the smallest centered cosine."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with torch.inference_mode():
        wanted = [t.numpy() for t in graph(inputs)]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        given = session.run(names, {session.get_inputs()[0].name: inputs.numpy()})
    except Exception as error:
        raise ModelError(f"{path.name}: ONNX Runtime does not run it ({one_line(error)}); nothing was kept") from error
    figures = [centered_cosine(a, b) for a, b in zip(given, wanted, strict=True)]
    for name, figure in zip(names, figures, strict=True):
        if not figure >= least:  # NaN too
            raise ModelError(
                f"{path.name}: {name} differs from torch's, centered cosine {figure:.6f} where {least} is the least; "
                "nothing was kept; check the weights"
            )
    return min(figures)


def _check_range(graph: nn.Module, inputs: Tensor, name: str) -> None:
    """Raise where float16 overflows. ONNX Runtime's CPU computes parts of an fp16 graph in float32 and would not see it."""
    with torch.inference_mode():
        if not all(t.isfinite().all() for t in graph(inputs)):
            raise ModelError(f"{name}: these weights overflow float16; nothing was kept; export fp32 alone")
