"""Sentences in, a `tokenizer.json` out: byte pairs learned from the world's own sentences, so that any text has tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .words import corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST = 640  # tokens; 256 of them are the bytes


def make_tokenizer() -> Tokenizer:
    """The tokenizer of this world; start and end tokens are the last two, as in CLIP. The same on every run."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_MOST - 2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(["<start>", "<end>"])
    start, end = tokenizer.token_to_id("<start>"), tokenizer.token_to_id("<end>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    return tokenizer
