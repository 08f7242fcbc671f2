"""A list's name, a words file, words with commas or a bank in; a `LabelBank` out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..engines import LabelError, ModelCard
from ..engines.cache import cache_folder, make_private
from ..engines.registry import find_model
from .bank import LabelBank
from .building import bank_of_labels
from .words import Label, Listed, parse, read_list, shipped_lists

SHIPPED = Path(__file__).parent / "banks"
_WORTH_KEEPING = 32  # labels


def open_bank(labels: str | Path | LabelBank, model: str | Path) -> LabelBank:
    """Open labels for `model` (a model's name or a folder).

    labels: a bank or its .safetensors file; the name of a shipped list or bank; a text file with a label on each line (see
    `words`); or words with commas between. Words go through the model's text tower, in one plain sentence each.

    Raises `LabelError` for labels that cannot be used, `ModelError` for words where the model has no text tower.
    """
    if isinstance(labels, LabelBank):
        return labels
    path = Path(labels)
    if path.suffix == ".safetensors":
        return LabelBank.load(path)
    if str(labels) in _shipped_banks():
        return LabelBank.load(SHIPPED / f"{labels}.safetensors")
    return _kept(listed(labels).labels, model)


def _kept(labels: Sequence[Label], model: str | Path) -> LabelBank:
    """The bank of labels, from the user's cache where it was made before: hundreds of texts take seconds."""
    if len(labels) < _WORTH_KEEPING:
        return bank_of_labels(labels, model)
    card = ModelCard.load(find_model(model))
    facts = [card.space, card.background, card.threshold, card.margin, card.logit_scale, card.logit_bias, card.activation]
    key = hashlib.sha256(json.dumps([facts, labels], ensure_ascii=False).encode()).hexdigest()[:24]
    path = cache_folder("banks") / f"{key}.safetensors"
    if path.is_file():
        with suppress(LabelError):  # damaged: made anew
            return LabelBank.load(path)
    bank = bank_of_labels(labels, model)
    with suppress(OSError, LabelError):  # a cache that cannot be written costs seconds, nothing else
        make_private(path.parent)
        bank.save(path)
    return bank


def listed(labels: str | Path) -> Listed:
    """The labels of a shipped list, a text file, or words with commas; raises `LabelError` where they are none of these."""
    text = str(labels)
    if ("," in text or (" " in text and not Path(text).suffix)) and not is_file(text):
        return parse(text.split(","), "the list of words")
    if text in shipped_lists() or is_file(text):
        return read_list(labels)
    if Path(text).suffix or len(Path(text).parts) > 1:
        raise LabelError(f"{text}: no such file")
    known = ", ".join(sorted({*shipped_lists(), *_shipped_banks()}))
    raise LabelError(
        f"no label list {text!r}; give a bank (.safetensors), a text file, words with commas (one word: {text + ','!r}), "
        f"or one of: {known}"
    )


def _shipped_banks() -> list[str]:
    return [path.stem for path in SHIPPED.glob("*.safetensors")]


def is_file(text: str) -> bool:
    """Whether this names a file; a list of words may be longer than any name."""
    try:
        return Path(text).is_file()
    except OSError:
        return False
