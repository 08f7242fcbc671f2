"""A list's name, a words file, words with commas or a bank in; a `LabelBank` out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..engines import LabelError, ModelCard, ModelError, open_text
from ..engines.registry import find_model
from ..engines.text import prompt
from .bank import LabelBank

SHIPPED = Path(__file__).parent / "banks"


def open_bank(labels: str | Path | LabelBank, model: str | Path) -> LabelBank:
    """Open labels for `model` (a shipped model's name or a folder).

    labels: a bank or its .safetensors file; the name of a shipped list; a text file with a label on each line (empty lines
    and lines that begin with # are passed over); or words with commas between. Words go through the model's text tower.

    Raises `LabelError` for labels that cannot be used, `ModelError` for words where the model has no text tower.
    """
    if isinstance(labels, LabelBank):
        return labels
    text = str(labels)
    if ("," in text or (" " in text and not Path(text).suffix)) and not is_file(text):
        return bank_of_words(_clean(text.split(","), "the list of words"), model)
    path = Path(text)
    if path.suffix == ".safetensors":
        return LabelBank.load(path)
    if (SHIPPED / f"{text}.safetensors").is_file():
        return LabelBank.load(SHIPPED / f"{text}.safetensors")
    if path.is_file():
        return bank_of_words(read_words(path), model)
    if path.suffix or len(path.parts) > 1:
        raise LabelError(f"{path}: no such file")
    lists = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors")))
    raise LabelError(
        f"no label list {text!r}; give a bank (.safetensors), a text file, words with commas (one word: {text + ','!r}), "
        f"or one of: {lists}"
    )


def is_file(text: str) -> bool:
    """Whether this names a file; a list of words may be longer than any name."""
    try:
        return Path(text).is_file()
    except OSError:
        return False


def read_words(path: Path) -> list[str]:
    """The labels of a text file, one a line; raises `LabelError` where there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: not readable as UTF-8 text ({error})") from error
    return _clean((line for line in lines if not line.lstrip().startswith("#")), str(path))


def bank_of_words(words: list[str], model: str | Path) -> LabelBank:
    """Encode each word's `prompt` with the model's text tower, and the card's background texts as they are."""
    folder = find_model(model)
    card = ModelCard.load(folder)
    if not (folder / "text.onnx").is_file():
        raise ModelError(f"{card.id} has no text tower, so it cannot take words; give a label bank (.safetensors)")
    prompts = [prompt(word) for word in words]
    text = open_text(folder)
    return LabelBank(
        names=tuple(words),
        vectors=text.encode(prompts),
        space=card.space,
        prompts=tuple((p,) for p in prompts),
        background=text.encode(card.background) if card.background else None,
        threshold=card.threshold,
        margin=card.margin,
        logit_scale=card.logit_scale,
        logit_bias=card.logit_bias,
        activation=card.activation,
    )


def _clean(words: Iterable[str], where: str) -> list[str]:
    """Strip; drop empties and repetitions; raise where nothing is left."""
    kept = list(dict.fromkeys(stripped for word in words if (stripped := word.strip())))
    if not kept:
        raise LabelError(f"{where}: holds no labels; write one a line")
    return kept
