"""Labels in, a bank out: of words through a model's text tower, of pictures through its image tower, or of both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine, Image, LabelError, ModelCard, ModelError, Vectors, open_text
from ..engines.pictures import pictures_in
from ..engines.registry import find_model
from ..engines.text import SIMPLE, TextEncoder
from .bank import LabelBank
from .words import Label, texts

log = logging.getLogger("clipsight")

_AT_ONCE = 4096  # texts handed to the text tower together, which sorts them by length


def bank_of_labels(
    labels: Sequence[Label],
    model: str | Path,
    templates: Sequence[str] = (SIMPLE,),
    *,
    known: LabelBank | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> LabelBank:
    """Encode labels with the text tower of `model`: the unit mean of the unit vectors of a label's texts.

    The mean over templates is OpenAI's way (Radford et al. 2021, 3.1.4). known: an earlier bank; what it holds of the same
    texts in the same space is taken from it. done: called with the number of labels that are ready.

    Raises `ModelError` where the model has no text tower.
    """
    folder = find_model(model)
    card = ModelCard.load(folder)
    if not (folder / "text.onnx").is_file():
        raise ModelError(f"{card.id} has no text tower, so it cannot take words; give a label bank (.safetensors)")
    prompts = [texts(label, templates) for label in labels]
    vectors = np.zeros((len(labels), card.dim), np.float32)
    fresh = list(range(len(labels)))
    if known is not None and (known.space, known.dim) == (card.space, card.dim) and known.prompts:
        row = {(name, said): i for i, (name, said) in enumerate(zip(known.names, known.prompts, strict=True))}
        for i, (label, said) in enumerate(zip(labels, prompts, strict=True)):
            if (j := row.get((label.name, said))) is not None:
                vectors[i] = known.vectors[j]
                fresh.remove(i)
    text = open_text(folder)
    if card.limits and (strange := _strange(text, labels)):
        log.warning("%s was never taught %s; what it names so is a guess", card.id, ", ".join(map(repr, strange)))
    done(len(labels) - len(fresh))
    for part in _parts(fresh, [len(prompts[i]) for i in fresh]):
        rows = text.encode([said for i in part for said in prompts[i]])
        start = 0
        for i in part:
            vectors[i] = rows[start : start + len(prompts[i])].mean(0)
            start += len(prompts[i])
        done(len(part))
    return LabelBank(
        names=tuple(label.name for label in labels),
        vectors=vectors,
        space=card.space,
        prompts=tuple(prompts),
        background=text.encode(card.background) if card.background else None,
        threshold=card.threshold,
        margin=card.margin,
        logit_scale=card.logit_scale,
        logit_bias=card.logit_bias,
        activation=card.activation,
    )


def _strange(text: TextEncoder, labels: Sequence[Label]) -> list[str]:
    """The words of labels that a small vocabulary has no token for, only their letters."""
    words = sorted({piece for label in labels for word in label.words for piece in word.split()})
    both = text.tokenize(words), text.tokenize([word.removesuffix("s") for word in words])
    return [word for word, *ids in zip(words, *both, strict=True) if min(map(len, ids)) > 3]  # start, the word, end


def _parts(indices: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Runs of indices whose sizes come to about `_AT_ONCE`."""
    part: list[int] = []
    total = 0
    for i, size in zip(indices, sizes, strict=True):
        part.append(i)
        total += size
        if total >= _AT_ONCE:
            yield part
            part, total = [], 0
    if part:
        yield part


def bank_of_pictures(folder: Path, engine: Engine, *, done: Callable[[int], None] = lambda _: None) -> LabelBank:
    """A folder with a folder of pictures for each label -> their bank: the unit mean of the vectors of a label's pictures.

    Nearest class mean (Mensink et al. 2013): for what words do not tell apart, as a shop's own goods. Raises `LabelError`
    where there are no such folders, `ModelError` for one without a picture.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise LabelError(f"{folder}: holds no folders; make one for each label, with pictures of it inside")
    rows = []
    for path in folders:
        rows.append(mean_of(engine, pictures_in(path)))
        done(1)
    card = engine.card
    return LabelBank(
        names=tuple(path.name for path in folders),
        vectors=np.stack(rows),
        space=card.space,
        logit_scale=card.logit_scale,
        logit_bias=card.logit_bias,
        activation=card.activation,
    )


def mean_of(engine: Engine, pictures: Sequence[Image]) -> NDArray[np.float32]:
    """Pictures -> the float32 unit mean of their unit vectors."""
    mean = encode(engine, pictures).mean(0)
    unit: NDArray[np.float32] = mean / np.linalg.norm(mean)
    return unit


def encode(engine: Engine, pictures: Sequence[Image]) -> Vectors:
    """Any number of pictures -> float32 n x dim unit rows, a few at a time."""
    size = engine.good_batch
    return np.concatenate([engine.encode(pictures[i : i + size]) for i in range(0, len(pictures), size)])
