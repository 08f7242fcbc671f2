"""Words in, unit vectors out, without torch: `tokenizer.json` and `text.onnx` of a model folder."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .base import one_line
from .card import ModelCard
from .errors import BackendError, ModelError
from .preparing import Vectors

SIMPLE = "a photo of a {}"  # the one sentence, where no others are asked for
_BATCH = 64  # texts
_LONGER = 1.5  # how much longer the longest text of a batch may be than its shortest


def prompt(label: str) -> str:
    """A label as the text that is encoded for it: "a photo of a red star", also of "a red star"."""
    return fill(SIMPLE, label)


def fill(template: str, word: str) -> str:
    """Put a word into a template: "a red star" into "a photo of a {}." is "a photo of a red star."."""
    before, _, after = template.partition("{}")
    if before.lower().endswith(("a ", "an ", "the ", "my ", "one ")):
        for article in ("a ", "an ", "the "):
            word = word.removeprefix(article)
    return before + word + after


def clean(text: str, *, lower: bool = True) -> str:
    """A text as CLIP's own tokenizer cleans it: broken encodings mended, HTML's entities resolved, one space between words."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))  # twice, for "&amp;amp;"
    text = " ".join(text.split())
    return text.lower() if lower else text


class TextEncoder:
    """A text tower that is open: `input_ids` (int64 n x L) -> `text_embeds` (n x dim) inside.

    A graph that takes any length L gets no more than its texts have. Towers of this kind see nothing behind a token, so that
    what is left out changes nothing.
    """

    def __init__(self, folder: Path, card: ModelCard) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        for name in ("text.onnx", "tokenizer.json"):
            if not (folder / name).is_file():
                raise ModelError(f"{folder}: {name} is not there, so words cannot be encoded; give a label bank (.safetensors)")
        if not card.context_length:
            raise ModelError(f"{folder}/card.json: 'context_length' is needed for words; add it")
        self.card = card
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(str(folder / "text.onnx"), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{folder}: the text tower does not load ({one_line(error)})") from error
        # Cut so that the end token stays: what CLIP's own tokenizer does.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(card.context_length)
        # Where the tokenizer is for small letters, Python makes them: unlike its own rules, Python's know the final sigma.
        normalizer = self._tokenizer.normalizer
        self._lower = normalizer is not None and normalizer.normalize_str("A") == "a"
        shapes = {node.name: node.shape for node in self._session.get_inputs()}
        self._length = card.context_length if isinstance(shapes.get("input_ids", [0])[-1], int) else None
        self._lock = threading.Lock()

    def tokenize(self, strings: Sequence[str]) -> list[list[int]]:
        """The token ids of each text once it is clean, from the start token to the end token, at most context_length."""
        return [e.ids for e in self._tokenizer.encode_batch([clean(text, lower=self._lower) for text in strings])]

    def encode(self, strings: Sequence[str]) -> Vectors:
        """Encode texts to float32 n x dim unit rows, in their order; raises `BackendError` when the forward fails."""
        vectors = np.empty((len(strings), self.card.dim), np.float32)
        with self._lock:
            tokens = self.tokenize(strings)
            lengths = [self._length or len(ids) for ids in tokens]
            for batch in _batches(lengths):
                input_ids = np.zeros((len(batch), lengths[batch[-1]]), np.int64)  # zeros behind the end token, as in CLIP
                for row, i in zip(input_ids, batch, strict=True):
                    row[: len(tokens[i])] = tokens[i]
                try:
                    (embeds,) = self._session.run(["text_embeds"], {"input_ids": input_ids})
                except Exception as error:
                    raise BackendError(f"text tower of {self.card.id} failed: {one_line(error)}") from error
                if embeds.shape != (len(batch), self.card.dim):
                    raise BackendError(
                        f"text tower of {self.card.id}: text_embeds is {embeds.shape}, the card says "
                        f"{(len(batch), self.card.dim)}; correct 'dim' in card.json or export the model anew"
                    )
                vectors[batch] = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
        return vectors


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The indices of texts of these lengths in batches of about one length, the short ones first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or i - start == _BATCH or lengths[order[i]] > _LONGER * lengths[order[start]]:
            yield order[start:i]
            start = i
