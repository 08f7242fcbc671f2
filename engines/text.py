"""Words in, unit vectors out, without torch: `tokenizer.json` and `text.onnx` of a model folder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .card import ModelCard
from .errors import BackendError, ModelError
from .preparing import Vectors

_BATCH = 64


def prompt(label: str) -> str:
    """A label as the text that is encoded for it: "a photo of a red star", also of "a red star"."""
    for article in ("a ", "an ", "the "):
        label = label.removeprefix(article)
    return f"a photo of a {label}"


class TextEncoder:
    """A text tower that is open: `input_ids` (int64 n x context_length) -> `text_embeds` (n x dim) inside."""

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
            raise ModelError(f"{folder}: the text tower does not load ({str(error).splitlines()[0]})") from error
        # Zeros after the end token, and cut so that the end token stays: what CLIP's own tokenizer does.
        self._tokenizer.enable_truncation(card.context_length)
        self._tokenizer.enable_padding(length=card.context_length, pad_id=0)
        self._lock = threading.Lock()

    def encode(self, strings: Sequence[str]) -> Vectors:
        """Encode texts to float32 n x dim unit rows; raises `BackendError` when the forward fails."""
        parts = [np.empty((0, self.card.dim), np.float32)]
        with self._lock:
            for i in range(0, len(strings), _BATCH):
                encoded = self._tokenizer.encode_batch(list(strings[i : i + _BATCH]))
                ids = np.array([e.ids for e in encoded], np.int64)  # n x context_length
                try:
                    (embeds,) = self._session.run(["text_embeds"], {"input_ids": ids})
                except Exception as error:
                    raise BackendError(f"text tower of {self.card.id} failed: {str(error).splitlines()[0]}") from error
                parts.append(embeds / np.linalg.norm(embeds, axis=1, keepdims=True))
        return np.concatenate(parts)
