"""Text in, an antialiased alpha mask out, in any script that a font on this computer has.

OpenCV 5 brings a font of its own (Latin, Greek, Cyrillic, Hebrew, Chinese, Japanese, Korean), but it neither turns
right-to-left text around nor joins Arabic, and it has no Hindi or Thai. So a text is cut into runs, each of one
direction and one face: OpenCV's font where it will do, a system font drawn by Pillow (extra `scripts`) where it will
not. What no face has becomes a question mark. An OpenCV without fonts (4.x) leaves Pillow's own, or OpenCV's strokes.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...engines import BackendMissing
from .bidi import is_mark, joined, levels, turned

Mask = NDArray[np.uint8]  # h x w, 0 = nothing, 255 = ink; read-only

_LONGEST = 300  # characters looked at; more are never legible in one line

# Folders where systems keep fonts: Linux, macOS, Windows. Those that are not there are passed over.
_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "${WINDIR}/Fonts",
    "${LOCALAPPDATA}/Microsoft/Windows/Fonts",
)
# Fonts with many scripts, by the beginnings of their file names, best first. Noto's names hold the script itself.
_BROAD = (
    *("notosans-", "segoeui", "nirmala", "leelawui", "leelawad", "arial unicode", "arialuni", "kohinoor", "geezapro"),
    *("thonburi", "devanagarimt", "tahoma", "arial", "dejavusans", "freesans", "lohit", "garuda", "mangal", "msyh"),
)
_TRIED = 40  # fonts opened for one character before it is given up


def line_height(size: int) -> int:
    """Rows of a mask of this size: room for the highest accents and the lowest tails."""
    return round(1.7 * size) + 2


def baseline(size: int) -> int:
    """The row of a mask that letters stand on."""
    return round(1.2 * size) + 1


@lru_cache(maxsize=512)
def render(text: str, size: int, *, bold: bool = False, width: int | None = None) -> Mask:
    """A text in one line -> uint8 `line_height(size)` x w, as wide as the text and read-only.

    size: the font's, in pixels. width: the most w may be; longer texts are cut and end in "…". Line breaks and control
    characters become spaces. Raises `BackendMissing` without OpenCV.
    """
    text = _clean(text)
    mask = _compose(text, size, bold)
    if width is not None and mask.shape[1] > width:
        low, high = -1, len(text)  # prefix `high` is too long; `low` fits (-1: nothing does)
        mask = np.zeros((line_height(size), 0), np.uint8)
        while high - low > 1:
            middle = (low + high) // 2
            shorter = _compose(_prefix(text, middle) + "…", size, bold)
            if shorter.shape[1] > width:
                high = middle
            else:
                low, mask = middle, shorter
    mask.flags.writeable = False
    return mask


def measure(text: str, size: int, *, bold: bool = False) -> int:
    """Width in pixels of what `render` makes of the text."""
    return int(render(text, size, bold=bold).shape[1])


def _clean(text: str) -> str:
    """One line of characters that can be drawn: composed, without controls; lone surrogates would crash OpenCV."""
    kept = []
    for char in unicodedata.normalize("NFC", text[:_LONGEST]):
        category = unicodedata.category(char)
        if category in ("Cc", "Zs", "Zl", "Zp"):
            kept.append(" ")
        elif category in ("Cs", "Co", "Cn"):
            kept.append("?")
        elif category != "Cf" or char in "\u200c\u200d":  # (non-)joiners matter to Indian scripts and Persian
            kept.append(char)
    return " ".join("".join(kept).split())


def _prefix(text: str, length: int) -> str:
    """The first `length` characters, fewer where that would part a letter from its marks."""
    while 0 < length < len(text) and is_mark(text[length]):
        length -= 1
    return text[:length].rstrip()


def _compose(text: str, size: int, bold: bool) -> Mask:
    """The runs of `text`, drawn from left to right as they are read."""
    pad = size // 2 + 1  # letters may reach out of their advance
    pieces = []
    pen = 0
    for face, part, backwards in _runs(text, bold):
        ink, advance = face.draw(part, size, bold, backwards, pad)
        pieces.append((pen, ink))
        pen += advance
    line = np.zeros((line_height(size), pen + 2 * pad), np.uint8)
    for x, ink in pieces:
        part_of = line[:, x : x + ink.shape[1]]
        np.maximum(part_of, ink[:, : part_of.shape[1]], out=part_of)
    columns = np.flatnonzero(line.any(axis=0))
    left, right = pad, pad + pen
    if len(columns):  # as wide as the advance, or as the ink where it reaches further
        left, right = min(left, int(columns[0])), max(right, int(columns[-1]) + 1)
    return np.ascontiguousarray(line[:, left:right])


def _runs(text: str, bold: bool) -> list[tuple[_Face, str, bool]]:
    """The text cut into (face, text, right to left) in the order in which they stand from left to right."""
    runs: list[tuple[_Face, str, int]] = []
    for char, level in zip(text, levels(text), strict=True):
        if runs and runs[-1][2] == level:
            face = runs[-1][0]
            # Spaces and marks stay with their neighbor; so does what no other face would draw better.
            if is_mark(char) or char == " " or _face(char, bold) is face:
                runs[-1] = (face, runs[-1][1] + char, level)
                continue
        runs.append((_face(char, bold), char, level))
    for level in range(max((r[2] for r in runs), default=0), 0, -1):
        turned: list[tuple[_Face, str, int]] = []
        group: list[tuple[_Face, str, int]] = []
        for run in runs:
            if run[2] >= level:
                group.append(run)
            else:
                turned += [*reversed(group), run]
                group = []
        runs = [*turned, *reversed(group)]
    return [(face, part, level % 2 == 1) for face, part, level in runs]


# Faces: what can draw.


class _Face(Protocol):
    def draw(self, text: str, size: int, bold: bool, backwards: bool, pad: int) -> tuple[Mask, int]:
        """A run -> ink (`line_height(size)` rows, the pen starts at column `pad`) and how far the pen moves."""


class _OpenCv:
    """The font inside OpenCV 5."""

    def __init__(self, cv2: Any) -> None:
        self._cv2 = cv2
        self._font = cv2.FontFace("sans")
        self._lock = threading.Lock()
        self._unknown = self.draw("?", 24, False, False, 12)[0]

    def draw(self, text: str, size: int, bold: bool, backwards: bool, pad: int) -> tuple[Mask, int]:
        # It cannot place marks on right-to-left letters; Hebrew reads well without them.
        text = turned("".join(c for c in text if not is_mark(c))) if backwards else text
        ink = np.zeros((line_height(size), 2 * pad + 2 * size * len(text)), np.uint8)
        with self._lock:
            end, _ = self._cv2.putText(ink, text, (pad, baseline(size)), 255, self._font, size, 600 if bold else 400)
        advance = end[0] - pad
        return ink[:, : advance + 2 * pad], advance

    def has(self, char: str) -> bool:
        """Whether it draws the character as itself, joined to its neighbors where the script joins."""
        if char == "?" or char.isspace():
            return True
        if unicodedata.bidirectional(char) == "AL":
            return False
        return not np.array_equal(self.draw(char, 24, False, False, 12)[0], self._unknown)


class _Strokes:
    """OpenCV's Hershey strokes: ASCII alone, but always there."""

    def __init__(self, cv2: Any) -> None:
        self._cv2 = cv2

    def draw(self, text: str, size: int, bold: bool, backwards: bool, pad: int) -> tuple[Mask, int]:
        text = (turned(text) if backwards else text).replace("…", "...").replace("·", "-").encode("ascii", "replace").decode()
        scale, thick = size / 30, max(1, round(size / (10 if bold else 16)))
        font, smooth = self._cv2.FONT_HERSHEY_SIMPLEX, self._cv2.LINE_AA
        advance = int(self._cv2.getTextSize(text, font, scale, thick)[0][0])
        ink = np.zeros((line_height(size), advance + 2 * pad), np.uint8)
        self._cv2.putText(ink, text, (pad, baseline(size)), font, scale, 255, thick, smooth)
        return ink, advance


class _Pillow:
    """A font file drawn by Pillow; `path` None is Pillow's own (Latin)."""

    def __init__(self, path: str | None) -> None:
        from PIL import ImageFont, features

        self._path = path
        self._raqm = path is not None and bool(features.check("raqm"))  # turns, joins and places marks
        self._plain = self._open(24, ImageFont.Layout.BASIC)
        self._unknown = self._glyph("\U0010ffff")
        self._sized = lru_cache(maxsize=8)(self._open)

    def _open(self, size: int, layout: Any = None) -> Any:
        from PIL import ImageFont

        if self._path is None:
            return ImageFont.load_default(size)
        return ImageFont.truetype(self._path, size, layout_engine=layout)

    def _glyph(self, char: str) -> tuple[tuple[int, int], bytes]:
        glyph = self._plain.getmask(char)
        return glyph.size, bytes(glyph)

    def has(self, char: str) -> bool:
        """Whether the font has the character, which is: does not draw the box that stands for what it lacks."""
        return self._glyph(char) != self._unknown

    def draw(self, text: str, size: int, bold: bool, backwards: bool, pad: int) -> tuple[Mask, int]:  # noqa: ARG002
        from PIL import Image, ImageDraw

        font = self._sized(size)
        direction = None
        if self._raqm:
            direction = "rtl" if backwards else "ltr"
        elif backwards:
            text = turned(joined(text))
        if self._path is None:
            text = "".join(c if c == " " or self.has(c) else "?" for c in text)
        advance = round(font.getlength(text, direction=direction))
        picture = Image.new("L", (advance + 2 * pad, line_height(size)))
        ImageDraw.Draw(picture).text((pad, baseline(size)), text, 255, font, anchor="ls", direction=direction)
        return np.asarray(picture), advance


@lru_cache(maxsize=1)
def _own() -> _OpenCv | None:
    """OpenCV's font, None for an OpenCV without one."""
    try:
        import cv2
    except ImportError:
        raise BackendMissing("drawing needs OpenCV: pip install 'clipsight[camera]'") from None
    return _OpenCv(cv2) if hasattr(cv2, "FontFace") else None


@lru_cache(maxsize=1)
def _last() -> _Face:
    """The face for what no other has."""
    own = _own()
    if own is not None:
        return own
    try:
        return _Pillow(None)
    except (ImportError, OSError):  # no Pillow, or one without fonts
        import cv2

        return _Strokes(cv2)


@lru_cache(maxsize=4096)
def _face(char: str, bold: bool) -> _Face:
    """The best face for a character."""
    own = _own()
    if own is not None and own.has(char):
        return own
    script = unicodedata.name(char, "").split(" ")[0].lower()
    script = "cjk" if script in ("hangul", "hiragana", "katakana") else script  # as Noto calls its font
    for path in _candidates(script, bold)[:_TRIED]:
        font = _file(path)
        if font is not None and font.has(char):
            return font
    return _last()


@lru_cache(maxsize=256)
def _file(path: str) -> _Pillow | None:
    try:
        return _Pillow(path)
    except (ImportError, OSError, ValueError):  # no Pillow; not a font, or one of bitmaps
        return None


@lru_cache(maxsize=64)
def _candidates(script: str, bold: bool) -> list[str]:
    """Font files, those named after the script first, then those known for many, then the rest."""

    def rank(path: str) -> tuple[int, bool, bool, bool, int, str]:
        name = os.path.basename(path).lower()
        broad = next((i for i, start in enumerate(_BROAD) if name.startswith(start)), len(_BROAD))
        named = bool(script) and script in name
        odd = any(word in name for word in ("italic", "oblique", "serif", "mono", "condensed", "light", "thin"))
        return (0 if named else 1 + broad), odd, "sans" not in name, ("bold" in name) != bold, len(name), name

    return sorted(_fonts(), key=rank)


@lru_cache(maxsize=1)
def _fonts() -> tuple[str, ...]:
    """Every font file of the system; looked for once."""

    def found() -> Iterator[str]:
        for folder in _FOLDERS:
            for where, _, files in os.walk(os.path.expandvars(os.path.expanduser(folder))):
                yield from (os.path.join(where, f) for f in files if f.lower().endswith((".ttf", ".otf", ".ttc")))

    return tuple(found())
