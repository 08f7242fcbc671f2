"""Weights of true shape, with outliers as CLIP has them, saved as they are published: they give open_clip's vectors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip_reference import open_clip
from safetensors.torch import save_file

from clipsight.engines import ModelCard, open_engine, open_text, prepare
from clipsight.engines.compiled.gate import render
from clipsight.engines.export import centered_cosine
from clipsight.engines.obtaining import make_folder
from clipsight.engines.random_weights import random_model
from clipsight.engines.towers import find_arch

WORDS = [
    "a photo of a cat",
    "a diagram",
    "two dogs on a red couch in front of a window",
    "雨",
    "graffiti that says NO",
    "the sea",
]


def as_torchscript(model: Any, folder: Path) -> Path:
    size = model.visual.image_size[0]
    example = torch.zeros(1, 3, size, size), torch.ones(1, 77, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), folder / "weights.pt")  # type: ignore[no-untyped-call]
    return folder / "weights.pt"


def as_checkpoint(model: Any, folder: Path) -> Path:
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "weights.pt")
    return folder / "weights.pt"


def as_safetensors(model: Any, folder: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize(
    ("name", "saved"), [("ViT-B-16", as_torchscript), ("ViT-B-32", as_safetensors), ("RN50x4", as_checkpoint)]
)
def test_published_weights_become_a_folder_with_open_clips_vectors(name: str, saved: Any, tmp_path: Path) -> None:
    reference = open_clip().create_model(f"{name}-quickgelu", load_weights=False).eval()
    reference.load_state_dict(random_model(find_arch(name), 5).state_dict())
    figures = make_folder(saved(reference, tmp_path), tmp_path / "made", quick_gelu=True)
    assert set(figures) == {"image.onnx", "image.fp16.onnx", "text.onnx"}
    card = ModelCard.load(tmp_path / "made")
    assert {**find_arch(name), **card.arch} == card.arch
    images = render(8, 240, 320)
    with torch.inference_mode():
        pixels = torch.from_numpy(prepare(images, card))
        pictures = reference.encode_image(pixels, normalize=True).numpy()
        words = reference.encode_text(open_clip().get_tokenizer(name)(WORDS), normalize=True).numpy()
    assert centered_cosine(open_text(tmp_path / "made").encode(WORDS), words) >= 0.99999
    for backend, precision, least in (
        ("onnx", "fp32", 0.99999),
        ("torch", "fp32", 0.99999),
        ("openvino", "fp32", 0.9999),
        ("onnx", "fp16", 0.999),
    ):
        with open_engine(tmp_path / "made", backend, precision=precision) as engine:  # type: ignore[arg-type]
            vectors = np.concatenate([engine.encode([image]) for image in images])
        assert centered_cosine(vectors, pictures) >= least, (backend, precision)
