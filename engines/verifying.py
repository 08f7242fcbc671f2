"""A model folder in, proof out that it is still what it says: files, graphs beside torch, words beside real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .cache import hash_file
from .card import ModelCard
from .compiled.gate import compare, render
from .errors import ClipsightError, ModelError
from .preparing import Vectors
from .registry import BACKENDS, available, find_model, open_engine, open_text
from .text import prompt

PICTURES = 16
LEAST = {"fp32": 0.9999, "fp16": 0.999}  # centered cosine of another runtime; the exported graphs were held to more

# The first eight of 512 numbers of real vectors of OpenAI's ViT-B/16, "a photo of a bicycle" and so on, as far as fp16 has
# them: weights that give these are OpenAI's, and their tokens are read as they were in training.
REAL_WORDS = {
    "bicycle": (-0.0139, -0.032, 0.0428, 0.0326, -0.0077, 0.0326, 0.003, 0.0014),
    "bird": (0.0549, -0.0124, 0.0275, -0.023, -0.0111, 0.0519, -0.0025, -0.0149),
    "boat": (-0.029, -0.0379, 0.0416, -0.0135, -0.0417, 0.0464, 0.0138, -0.055),
    "bottle": (-0.0421, -0.0197, 0.0418, -0.0443, -0.0412, 0.0157, 0.004, -0.0569),
    "bus": (-0.0507, -0.0238, 0.0378, -0.0324, 0.0059, 0.0239, 0.0206, -0.0065),
    "car": (-0.0189, -0.0297, 0.0262, -0.0032, -0.0024, 0.0302, 0.0366, -0.0148),
    "cat": (0.0412, -0.0037, 0.0096, 0.0097, -0.0124, 0.0342, 0.0092, -0.0035),
    "chair": (0.0198, -0.0068, 0.0191, -0.0277, -0.0224, 0.0406, 0.0026, 0.0128),
    "cow": (0.0114, -0.0217, -0.014, -0.0082, -0.0089, 0.0364, -0.0037, 0.0071),
    "dog": (0.0282, -0.0117, 0.0112, 0.0063, 0.015, 0.0253, -0.0006, -0.0096),
    "horse": (0.0047, -0.0224, 0.024, -0.0117, -0.0276, 0.0539, 0.0052, -0.0063),
    "train": (-0.0564, -0.0275, 0.03, -0.0418, 0.0004, 0.0467, 0.0024, -0.0304),
}
REAL_SPACE = "ViT-B-16/openai"
NEAR = 0.002  # the published numbers are rounded to fp16, and were computed in it


def verify(model: str | Path, say: Callable[[str], None] = print) -> bool:
    """Check the folder of `model` and say what was found, a line each; whether all of it is as it should be.

    Its files against the hashes on the card, every graph in every runtime here against torch's towers (ONNX Runtime's where
    torch or its weights are not there), and, for OpenAI's ViT-B/16, words against numbers of real vectors.
    """
    folder = find_model(model)
    card = ModelCard.load(folder)
    fine = True

    def told(good: bool, line: str) -> None:
        nonlocal fine
        fine = fine and good
        say(f"{'ok    ' if good else 'WRONG '} {line}")

    files = card.notes.get("files", {})
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file():
            told(False, f"{name} is not there; export or fetch the model anew")
        elif hash_file(path) != sha256:
            told(False, f"{name} is not the file that was exported (sha256); export or fetch the model anew")
        else:
            told(True, f"{name} is the file that was exported")
    if not files:
        say("       the card names no hashes of its files: what they were cannot be known")
    _graphs(folder, card, told, say)
    if card.space == REAL_SPACE:
        away = real_words(lambda texts: open_text(folder).encode(texts))
        told(away <= NEAR, f"words: at most {away:.4f} away from real vectors of ViT-B/16 (at most {NEAR})")
    return fine


def _graphs(folder: Path, card: ModelCard, told: Callable[[bool, str], None], say: Callable[[str], None]) -> None:
    here = available()
    ways = [
        (backend, precision)
        for backend in ("torch", "onnx", "openvino")
        for precision in ("fp32", "fp16")
        if here[backend] is None
        and (folder / BACKENDS[backend].weights).is_file()
        and (precision == "fp32" or (backend == "onnx" and (folder / "image.fp16.onnx").is_file()))
    ]
    pictures, wanted, by = render(PICTURES), None, ""
    for backend, precision in ways:
        try:
            with open_engine(folder, backend, precision=precision) as engine:  # type: ignore[arg-type]
                given = np.concatenate([engine.encode([picture]) for picture in pictures])
        except ClipsightError as error:
            told(False, f"{backend} {precision}: {error}")
            continue
        if wanted is None:
            wanted, by = given, f"{backend} {precision}"
            continue
        figures = compare(wanted, given)
        told(
            figures.cosine >= LEAST[precision],
            f"{backend} {precision} beside {by}: centered cosine at least {figures.cosine:.6f} (at least {LEAST[precision]}), "
            f"the same label in {figures.agreement:.1%}",
        )
    if wanted is None:
        raise ModelError(f"{card.id}: no runtime here can run it, so there is nothing to compare; install onnxruntime")
    if len(ways) == 1:
        say(f"       {by} runs alone here; install torch, onnxruntime or openvino to compare")


def real_words(encode: Callable[[list[str]], Vectors]) -> float:
    """How far the first numbers of `encode`'s vectors lie from the real ones, at most."""
    vectors = encode([prompt(word) for word in REAL_WORDS])
    away = np.abs(vectors[:, :8] - np.array(list(REAL_WORDS.values()), np.float32)).max()
    return float(away)
