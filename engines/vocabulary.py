"""CLIP's own vocabulary: its merges in, a `tokenizer.json` out, so that words have the tokens that CLIP was trained with.

`clip_bpe.txt.gz` holds the merges of OpenAI's CLIP as far as they are used: the first 48,895 lines, unchanged, of the file
bpe_simple_vocab_16e6.txt, which has 262,145. It is OpenAI's, under the MIT license:

    Copyright (c) 2021 OpenAI

    Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
    files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
    modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
    Software is furnished to do so, subject to the following conditions:

    The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
    Software.

    THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
    WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
    COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
    ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = Path(__file__).parent / "clip_bpe.txt.gz"
SPECIAL = ("<start_of_text>", "<end_of_text>")  # the last two ids; what the names mean inside a text is open_clip's way
_MERGES = 49152 - 256 - 2  # 49,152 was the size aimed at, and the 256 bytes that may end a word were not counted in

# What becomes tokens by itself, in this order of preference. open_clip does not look at case, and a text is lowercase by then.
# That leaves two characters: the long s is an s, and the iota that is written below a vowel (U+0345) belongs to no piece.
_MARKS = r"[^\s\p{L}\p{N}\x{345}]"
_PIECES = rf"'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|{_MARKS}+"
# A special token's name inside a text is one only where a piece begins, so not in "!<end_of_text>". No text has a capital by
# then, and so a capital in the place of the last character tells those that are one from those that are not.
_BEGUN = rf"(?:(?<!{_MARKS})|\G)<(?:start|end)_of_text\K>"


def shorten(original: bytes) -> bytes:
    """OpenAI's bpe_simple_vocab_16e6.txt -> the text of `clip_bpe.txt.gz`: the line that names its version, and the merges."""
    return b"".join(original.splitlines(keepends=True)[: 1 + _MERGES])


def read_merges() -> list[tuple[str, str]]:
    """The shipped merges, first learned first, in the alphabet of `byte_letters`; "</w>" ends a word."""
    lines = gzip.decompress(FILE.read_bytes()).decode().split("\n")[1 : 1 + _MERGES]
    return [(left, right) for left, right in map(str.split, lines)]


def byte_letters() -> list[str]:
    """One visible letter for each of the 256 bytes, in the order of their ids; a byte that is visible in Latin-1 is its own."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(i) for i in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def make_tokenizer(merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """CLIP's tokenizer from its merges: ids of the bytes, the bytes that end a word, the merges, start and end.

    It expects what `text.clean` gives. What is a letter or a digit is as in Unicode 16, where open_clip asks the tables of
    whatever `regex` is installed.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = byte_letters()
    names = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges), *SPECIAL]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(_BEGUN), "S")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True),  # that is: keep these and drop what is between
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # Normalized, or their names would be looked for before the text is.
    tokenizer.add_special_tokens([AddedToken(name, normalized=True) for name in SPECIAL])
    start, end = SPECIAL
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(name, vocabulary[name]) for name in SPECIAL]
    )
    return tokenizer


def write_tokenizer(folder: Path) -> Path:
    """Write CLIP's tokenizer.json into a model folder and return its path; raises `OSError` for a full disk."""
    path = folder / "tokenizer.json"
    path.write_text(make_tokenizer(read_merges()).to_str(), encoding="utf-8")
    return path
