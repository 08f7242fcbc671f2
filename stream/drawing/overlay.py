"""A result in, its picture with labels, bars and figures out: `draw`; for hosts that composite themselves: `panel`.

The panel is translucent and small, rendered once for what it shows and kept until that changes; drawing it is then
one product and one sum over its rectangle. The part of the frame that the model sees is marked at its corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...engines import Box, Image, ImageError
from ...engines.preparing import check_image
from ...labels import Scores
from ..frame import Figures, Result
from .lettering import baseline, measure, render

Rgba = NDArray[np.uint8]  # h x w x 4, straight alpha; read-only
Color = tuple[int, int, int]  # R, G, B

_PLATE: Color = (14, 17, 22)
_WHITE: Color = (255, 255, 255)
_SOFT: Color = (206, 213, 222)  # labels that are not the one
_QUIET: Color = (168, 177, 189)  # figures and remarks
_ACCENT: Color = (94, 234, 190)
_WARNING: Color = (255, 190, 92)
_OPACITY = 0.80  # of the plate: white text stays legible over a white picture

_LARGEST = 0.30  # of the frame that the panel may cover
_REMARKS = {"stalled": "no new frames", "reconnecting": "reconnecting …"}


def panel(result: Result, frame_size: tuple[int, int] | None = None, *, top: int = 5) -> tuple[Rgba, tuple[int, int]]:
    """A result -> its panel, uint8 h x w x 4 RGBA with straight alpha, and where it lies: (x, y) of its upper left.

    frame_size: width and height of what it shall lie on, by default those of the result's frame. top: how many labels;
    small frames show fewer. The same read-only array comes back until what it shows changes, so a host may keep its
    texture as long as `is` holds. A frame too small for any text gets one transparent pixel.
    """
    shape = result.frame.image.shape
    width, height = frame_size or (shape[1], shape[0])
    made = _panel(result, width, height, top)
    return made.rgba, made.at


def draw(image: Image, result: Result, out: Image | None = None, *, top: int = 5) -> Image:
    """A picture (H x W x 3 uint8 BGR, left as it is) and its result -> the picture with the overlay drawn in.

    out: an array of the same shape to draw into and return, so that none is made per frame; it must not be the picture
    itself. top: how many labels. Raises `ImageError` for what is no picture and for an `out` that does not fit.
    """
    check_image(image)
    if out is None:
        out = image.copy()
    else:
        check_image(out)
        if out.shape != image.shape or not out.flags.writeable or np.may_share_memory(out, image):
            raise ImageError(
                f"out must be a writable array of its own, {' x '.join(map(str, image.shape))} like the image, "
                f"not {' x '.join(map(str, out.shape))}; np.empty_like(image) makes one"
            )
        np.copyto(out, image)
    height, width = image.shape[:2]
    made = _panel(result, width, height, top)
    laid = [(made.sprite, *made.at)]
    if result.note and (note := _reminder(result.note, width, height)):
        laid.append(note)
    if result.seen is not None:
        _mark(out, result.seen, result.frame.image.shape, laid)
    for sprite, x, y in laid:
        _blend(out, sprite, x, y)
    return out


# What is shown, and where.


class _Row(NamedTuple):
    name: str
    percent: str
    bar: int  # pixels
    chosen: bool


class _Shown(NamedTuple):
    """All that the panel's pixels depend on."""

    layout: _Layout
    title: str
    quiet: bool
    rows: tuple[_Row, ...]
    foot: tuple[str, ...]  # parts of one line; those that do not fit are left out
    warning: bool


class _Layout(NamedTuple):
    """Pixels. Where the panel lies and how large it is; where lines of text stand in it, and how large their fonts are."""

    x: int
    y: int
    width: int
    height: int
    pad: int  # around everything
    inner: int  # width less the pads
    title: int  # font sizes
    text: int
    small: int
    rows: int
    title_base: int  # rows of pixels that the letters stand on
    row_base: int  # of the first label
    row: int  # from one label to the next
    bar_top: int  # from a label's base
    bar: int
    foot_base: int  # 0 where there is no foot


@lru_cache(maxsize=64)
def _layout(width: int, height: int, rows: int, foot: bool) -> _Layout | None:
    """The layout for a frame of this size; as many rows as fit, the foot where it fits; None where nothing does.

    At 1280 x 720 the panel just fits beside the square that the model sees. Letters grow with the frame, but shrink less
    than it does, or a small frame's would not be legible.
    """
    short = max(1, min(width, height))
    scale = short / 720 if short >= 720 else (short / 720) ** 0.5
    text = max(10, round(15 * scale))
    title, small = round((1.6 if short >= 300 else 1.3) * text), max(9, round(0.8 * text))
    row, bar_top, bar = round(2.2 * text), round(0.5 * text), max(2, round(0.2 * text))
    margin, pad = round(min(0.9 * text, 0.03 * short)), round(min(text, 0.05 * short))
    wide = min(round(17.6 * text), round(0.56 * width))
    if wide - 2 * pad < 4 * text:
        return None
    for n, with_foot in _choices(rows, foot):
        title_base = base = pad + round(0.8 * title)
        row_base = foot_base = 0
        if n:
            row_base = title_base + round(2.1 * text)
            base = row_base + (n - 1) * row + bar_top + bar
        if with_foot:
            foot_base = base = base + round(1.9 * small)
        tall = base + pad
        if tall <= height - 2 * margin and tall * wide <= _LARGEST * width * height:
            at = (margin, height - margin - tall, wide, tall, pad, wide - 2 * pad)
            return _Layout(*at, title, text, small, n, title_base, row_base, row, bar_top, bar, foot_base)
    return None


def _choices(rows: int, foot: bool) -> list[tuple[int, bool]]:
    """What to try, dearest first: the foot outlives the third row, two rows outlive the foot."""
    with_foot = [(n, True) for n in range(rows, min(rows, 2) - 1, -1)] if foot else []
    return with_foot + [(n, False) for n in range(min(rows, 2) if foot else rows, -1, -1)]


def _panel(result: Result, width: int, height: int, top: int) -> _Panel:
    scores = result.scores
    remark = _REMARKS.get(result.state, "")
    foot = (remark,) if remark else _figures(result.figures)
    best = _top(scores, top) if scores is not None else ()
    layout = _layout(width, height, len(best), bool(foot))
    if layout is None:
        return _nothing()
    rows = tuple(
        _Row(name, percent, round(share * layout.inner), name == result.label) for name, percent, share in best[: layout.rows]
    )
    title = result.label or ("looking …" if scores is None else "nothing on the list")
    if remark and not layout.foot_base:  # a dead camera is told of even where one line is all there is
        return _rendered(_Shown(layout, remark, True, rows, (), True))
    return _rendered(_Shown(layout, title, not result.label, rows, foot, bool(remark)))


@lru_cache(maxsize=2)
def _top(scores: Scores, top: int) -> tuple[tuple[str, str, float], ...]:
    """Name, percentage and share of the best; kept, for a result is shown several times in a row."""
    shares = [(s.name, min(max(0.0, s.probability), 1.0)) for s in scores.top(top)]  # max(0, NaN) is 0
    return tuple((name, "<1%" if 0 < p < 0.005 else f"{p:.0%}", p) for name, p in shares)


def _figures(figures: Figures | None) -> tuple[str, ...]:
    if figures is None:
        return ()
    parts = (f"{figures.display_fps:.0f} fps", f"{figures.recognitions:.1f} rec/s")
    if figures.age is None:
        return parts
    return (*parts, f"{round(1000 * figures.age, -1):.0f} ms")  # tens: more would only flicker


# How it is drawn.


class _Sprite(NamedTuple):
    """What is laid over pixels: pixels * keep / 255 + color."""

    color: NDArray[np.uint8]  # h x w x channels, already multiplied by its alpha
    keep: NDArray[np.uint8]  # 255 - alpha, as often as there are channels


class _Panel(NamedTuple):
    rgba: Rgba
    at: tuple[int, int]
    sprite: _Sprite  # BGR


def _blend(onto: NDArray[np.uint8], sprite: _Sprite, x: int, y: int) -> None:
    """Lay a sprite with its upper left at (x, y); what reaches outside is cut."""
    import cv2

    height, width = sprite.color.shape[:2]
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(width, onto.shape[1] - x), min(height, onto.shape[0] - y)
    if left >= right or top >= bottom:
        return
    part = onto[y + top : y + bottom, x + left : x + right]
    keep, color = sprite.keep[top:bottom, left:right], sprite.color[top:bottom, left:right]
    if part.strides[0] > 0 and part.strides[1:] == (part.shape[2], 1):
        cv2.multiply(part, keep, dst=part, scale=1 / 255)
        cv2.add(part, color, dst=part)
    else:  # an array that OpenCV cannot write into: turned, mirrored, every other pixel
        part[...] = cv2.add(cv2.multiply(np.ascontiguousarray(part), keep, scale=1 / 255), color)


def _sprite(alpha: NDArray[np.uint8], color: Color) -> _Sprite:
    """One color where `alpha` (h x w) is -> a sprite for premultiplied RGBA."""
    product = alpha[..., None] * np.array([*color, 255], np.uint16)
    return _Sprite(((product + 127) // 255).astype(np.uint8), np.repeat(255 - alpha[..., None], 4, axis=2))


@lru_cache(maxsize=128)
def _text(text: str, size: int, bold: bool, width: int, color: Color) -> _Sprite:
    return _sprite(render(text, size, bold=bold, width=max(width, 0)), color)


@lru_cache(maxsize=512)
def _pill(width: int, height: int, color: Color, opacity: float = 1.0) -> _Sprite:
    return _sprite(_rounded(width, height, height / 2, opacity), color)


def _rounded(width: int, height: int, radius: float, opacity: float = 1.0) -> NDArray[np.uint8]:
    """Alpha, uint8 height x width, of a rectangle with round, antialiased corners."""
    radius = min(radius, width / 2, height / 2)
    x = np.abs(np.arange(width) - (width - 1) / 2) - (width / 2 - radius)
    y = np.abs(np.arange(height) - (height - 1) / 2)[:, None] - (height / 2 - radius)
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - radius
    alpha: NDArray[np.uint8] = np.rint(np.clip(0.5 - outside, 0, 1) * opacity * 255).astype(np.uint8)
    return alpha


@lru_cache(maxsize=8)
def _plate(width: int, height: int, radius: int) -> NDArray[np.uint8]:
    """The empty panel, premultiplied RGBA."""
    return _sprite(_rounded(width, height, radius, _OPACITY), _PLATE).color


@lru_cache(maxsize=8)
def _rendered(shown: _Shown) -> _Panel:
    import cv2

    at = shown.layout
    canvas = _plate(at.width, at.height, round(0.7 * at.text)).copy()
    right = at.pad + at.inner

    def write(sprite: _Sprite, x: int, base: int, size: int) -> None:
        _blend(canvas, sprite, x, base - baseline(size))

    size, color = at.title, _WHITE
    if shown.quiet:
        size, color = at.text, _WARNING if shown.warning and not at.foot_base else _QUIET
    elif (needed := measure(shown.title, size, bold=True)) > at.inner:
        size = max(at.text, size * at.inner // needed)  # smaller before it is cut
    write(_text(shown.title, size, not shown.quiet, at.inner, color), at.pad, at.title_base, size)

    for i, row in enumerate(shown.rows):
        base = at.row_base + i * at.row
        color = _WHITE if row.chosen else _SOFT
        percent = _text(row.percent, at.text, False, at.inner, color)
        taken = max(percent.color.shape[1], round(2.2 * at.text)) + round(0.4 * at.text)  # names end in one line
        write(percent, right - percent.color.shape[1], base, at.text)
        write(_text(row.name, at.text, False, at.inner - taken, color), at.pad, base, at.text)
        _blend(canvas, _pill(at.inner, at.bar, _WHITE, 0.15), at.pad, base + at.bar_top)
        if row.bar:
            _blend(canvas, _pill(row.bar, at.bar, _ACCENT if row.chosen else _SOFT), at.pad, base + at.bar_top)

    if at.foot_base:
        x, color = at.pad, _WARNING if shown.warning else _QUIET
        if shown.warning:
            dot = round(0.6 * at.small)
            _blend(canvas, _pill(dot, dot, color), x, at.foot_base - round(0.65 * at.small))
            x += dot + round(0.5 * at.small)
        parts = shown.foot
        while len(parts) > 1 and measure(" · ".join(parts), at.small) > right - x:
            parts = parts[:-1]
        write(_text(" · ".join(parts), at.small, False, right - x, color), x, at.foot_base, at.small)

    rgba = cv2.cvtColor(canvas, cv2.COLOR_mRGBA2RGBA)
    rgba.flags.writeable = False
    keep = cv2.merge([255 - canvas[..., 3]] * 3)
    return _Panel(rgba, (at.x, at.y), _Sprite(cv2.cvtColor(canvas, cv2.COLOR_RGBA2BGR), keep))


@lru_cache(maxsize=1)
def _nothing() -> _Panel:
    """One transparent pixel, for frames without room: a texture that every host can make."""
    rgba = np.zeros((1, 1, 4), np.uint8)
    rgba.flags.writeable = False
    return _Panel(rgba, (0, 0), _Sprite(np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)))


@lru_cache(maxsize=8)
def _reminder(note: str, width: int, height: int) -> tuple[_Sprite, int, int] | None:
    """A note on a plate of its own, BGR, and where it lies: in the upper left corner; None where there is no room for it."""
    import cv2

    layout = _layout(width, height, 0, False)
    if layout is None:
        return None
    size, margin = layout.small, layout.x
    pad = round(0.7 * size)
    text = _text(note, size, False, width - 2 * (margin + pad), _QUIET)
    canvas = _plate(text.color.shape[1] + 2 * pad, round(2.1 * size), round(0.6 * size)).copy()
    if 4 * canvas.shape[0] > height:
        return None
    _blend(canvas, text, pad, round(1.4 * size) - baseline(size))
    return _Sprite(cv2.cvtColor(canvas, cv2.COLOR_RGBA2BGR), cv2.merge([255 - canvas[..., 3]] * 3)), margin, margin


def _mark(out: Image, seen: Box, shape: tuple[int, ...], beside: Sequence[tuple[_Sprite, int, int]]) -> None:
    """Brackets at the corners of what the model sees, unless it is the whole picture; none where something else is laid.

    seen: in pixels of a frame of `shape`, which may be shown in another size.
    """
    height, width = out.shape[:2]
    if seen == (0, 0, shape[1], shape[0]):
        return
    left, right = (round(x * width / shape[1]) for x in (seen[0], seen[2]))
    top, bottom = (round(y * height / shape[0]) for y in (seen[1], seen[3]))
    edge = min(right - left, bottom - top)
    if edge < 16:
        return
    inset = round(0.012 * edge)
    corners = _corners(max(4, round(0.055 * edge)), max(1, round(edge / 360)))
    size = corners[0].color.shape[0]
    xs, ys = (left + inset, right - inset - size), (top + inset, bottom - inset - size)
    for corner, (x, y) in zip(corners, ((x, y) for y in ys for x in xs), strict=True):
        if all(_clear(x, y, size, sprite, left, top) for sprite, left, top in beside):
            _blend(out, corner, x, y)


def _clear(x: int, y: int, size: int, sprite: _Sprite, left: int, top: int) -> bool:
    """Whether a square at (x, y) does not touch a sprite at (left, top)."""
    height, width = sprite.color.shape[:2]
    return x + size <= left or x >= left + width or y + size <= top or y >= top + height


@lru_cache(maxsize=8)
def _corners(length: int, thick: int) -> tuple[_Sprite, ...]:
    """Brackets, BGR: upper left, upper right, lower left, lower right. White with a dark rim, to be seen on anything."""
    rim = max(1, thick // 2)
    size = length + 2 * rim
    line = np.zeros((size, size), np.uint8)
    line[rim : rim + thick, rim:-rim] = line[rim:-rim, rim : rim + thick] = 255
    dark = np.zeros_like(line)
    dark[: 2 * rim + thick, :] = dark[:, : 2 * rim + thick] = 255
    white = line * 0.85 / 255
    alpha = white + (1 - white) * 0.3 * dark / 255
    color = np.repeat(np.rint(255 * white).astype(np.uint8)[..., None], 3, axis=2)
    keep = np.repeat(np.rint(255 * (1 - alpha)).astype(np.uint8)[..., None], 3, axis=2)
    return tuple(_Sprite(color[::v, ::h].copy(), keep[::v, ::h].copy()) for v in (1, -1) for h in (1, -1))
