"""What is drawn: letters of every script, the panel, the marks, and that nothing else of the picture changes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipsight.engines import Box, Image, ImageError
from clipsight.labels import LabelBank, Scores
from clipsight.stream import Figures, Frame, Result, draw, panel
from clipsight.stream.drawing import bidi, lettering, overlay
from clipsight.stream.drawing.lettering import baseline, line_height, measure, render
from clipsight.stream.frame import State

NAMES = ("cockatoo", "parrot", "金毛寻回犬", "a very long label that no panel has the room to show in full", "chair")
SIZES = [(1280, 720), (640, 480), (176, 144), (720, 1280), (333, 777), (1920, 1080), (3840, 2160)]
ODD_SIZES = [(1, 1), (1, 50), (50, 1), (2, 3), (17, 40), (3000, 50), (50, 3000), (177, 145), (641, 479)]


def picture(width: int, height: int) -> Image:
    image = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)
    image.flags.writeable = False
    return image


def scored(*probabilities: float, names: tuple[str, ...] = NAMES) -> Scores:
    """Scores with exactly these probabilities, each label by itself."""
    p = np.clip(np.array(probabilities), 1e-6, 1 - 1e-6)
    bank = LabelBank(names[: len(p)], np.eye(len(p), dtype=np.float32), "s", logit_scale=20, activation="sigmoid")
    return bank.score((np.log(p / (1 - p)) / 20).astype(np.float32)[None])[0]


def result(
    image: Image,
    scores: Scores | None = None,
    label: str | None = None,
    state: State = "live",
    seen: Box | None = None,
    figures: Figures | None = None,
) -> Result:
    return Result(Frame(image, 0, 0.0, 0.0), scores, None, label, state, seen, figures)


def center(width: int, height: int) -> Box:
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    return left, top, left + edge, top + edge


def inked(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask without its empty borders."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def inked_columns(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    columns = np.flatnonzero(mask.any(axis=0))
    return mask[:, columns[0] : columns[-1] + 1]


def same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    return np.array_equal(inked(a), inked(b))


class TestLettering:
    """Strings become ink."""

    @pytest.mark.parametrize(
        ("text", "other"),
        [
            ("golden retriever", "golden retrieves"),
            ("金毛寻回犬", "金毛寻回猫"),
            ("ゴールデン", "ゴールドン"),
            ("골든 리트리버", "골든 리트리비"),
            ("גולדן רטריבר", "גולדן רטריבן"),
            ("Chó săn lông vàng", "Chó sẵn lông vàng"),
            ("Собака", "Собаки"),
        ],
    )
    @pytest.mark.parametrize("bold", [False, True])
    def test_every_script_of_opencvs_font_is_written(self, text: str, other: str, bold: bool) -> None:
        mask = render(text, 20, bold=bold)
        assert mask.shape[0] == line_height(20)
        assert mask.max() == 255
        assert len(np.unique(mask)) > 20, "not antialiased"
        assert not same(mask, render("?" * len(text), 20, bold=bold))
        if not text.isascii():
            assert not same(mask, render("".join(c if c.isascii() else "?" for c in text), 20, bold=bold))
        assert not same(mask, render(other, 20, bold=bold))

    @pytest.mark.parametrize(
        ("text", "other", "letter"),
        [("كلب ذهبي", "كلب ذهبية", "ب"), ("गोल्डन रिट्रीवर", "गोल्डन रिट्रीवन", "ग"), ("สุนัขโกลเด้น", "สุนัขโกลเด้ม", "ส")],
    )
    def test_scripts_of_system_fonts_are_written(self, text: str, other: str, letter: str) -> None:
        if not isinstance(lettering._face(letter, False), lettering._Pillow):
            pytest.skip(f"no font with {letter} on this computer, or no Pillow")
        mask = render(text, 20)
        assert mask.max() == 255
        assert not same(mask, render("?" * len(text), 20))
        assert not same(mask, render(other, 20))
        pieces = np.concatenate([render(c, 20) for c in text], axis=1)
        assert not same(mask, pieces), "letters neither joined nor marked"

    def test_hindi_vowels_stand_where_they_are_read(self) -> None:
        font = lettering._face("क", False)
        if not isinstance(font, lettering._Pillow) or not font._raqm:
            pytest.skip("no font with Devanagari on this computer, or a Pillow without raqm")
        ka, ki = inked_columns(render("क", 40)), inked_columns(render("कि", 40))  # i is written after ka, drawn before
        rows = slice(baseline(40) - 20, None)  # under the arch of i
        assert np.array_equal(ki[rows, -10:], ka[rows, -10:])
        assert ki.shape[1] > ka.shape[1]

    @pytest.mark.parametrize("text", ["كلب", "कुत्ता", "สุนัข", "😀", "\U000e0041", "\ufffd", "𓀀"])
    def test_what_no_font_has_still_makes_ink(self, text: str) -> None:
        assert render(text + "x", 20).max() == 255

    def test_unknown_characters_are_question_marks(self) -> None:
        assert np.array_equal(render("a\ue123\ud800\uffff", 20), render("a???", 20))

    @pytest.mark.parametrize("text", ["two\nlines", "two\r\nlines", "two\tlines", "two\x00lines", " two\u2028 lines\n"])
    def test_breaks_and_controls_are_spaces(self, text: str) -> None:
        assert np.array_equal(render(text, 20), render("two lines", 20))

    @pytest.mark.parametrize("text", ["", " ", "\n\n", "\u200e\ufeff"])
    def test_nothing_is_no_columns(self, text: str) -> None:
        assert render(text, 20).shape == (line_height(20), 0)

    def test_composed_and_decomposed_are_the_same(self) -> None:
        assert np.array_equal(render("e\u0301", 20), render("\u00e9", 20))

    def test_hebrew_begins_at_the_right(self) -> None:
        word, first, last = (render(text, 40) for text in ("שלום", "ש", "ם"))
        right, left = inked_columns(word)[:, -16:], inked_columns(word)[:, :16]
        assert np.array_equal(right, inked_columns(first)[:, -16:])
        assert np.array_equal(left, inked_columns(last)[:, :16])

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("abc 12", "abc 12"),
            ("אבג", "גבא"),
            ("a אב b", "a בא b"),
            ("אב abc גד", "דג abc בא"),
            ("אב 12.5 ג", "ג 12.5 בא"),
            ("אב (ג) 50%", "50% (ג) בא"),
            ("אב (dog)", "(dog) בא"),
            ("iPhone 15 אב", "iPhone 15 בא"),
            ("א, ב", "ב ,א"),
            ("كل 1-2", "2-1 لك"),
        ],
    )
    def test_directions_are_unicodes(self, text: str, shown: str) -> None:
        runs = lettering._runs(text, False)
        assert "".join(bidi.turned(part) if backwards else part for _, part, backwards in runs) == shown

    def test_brackets_in_hebrew_open_toward_their_word(self) -> None:
        shown = inked(render("(א", 40))  # read from the right: the bracket, then the letter
        bracket = inked(render(")", 40))
        assert np.array_equal(shown[: bracket.shape[0], -bracket.shape[1] :], bracket)

    def test_arabic_is_joined_without_raqm_too(self) -> None:
        assert bidi.joined("كلب") == "\ufedb\ufee0\ufe90"
        assert bidi.joined("ذهب") == "\ufeab\ufeeb\ufe90"  # thal joins no letter after it
        assert bidi.joined("سلام") == "\ufeb3\ufefc\ufee1"  # lam and alef are one
        assert bidi.joined("گربه") == "\ufb94\ufeae\ufe91\ufeea"
        assert bidi.joined("dog 5 שלום") == "dog 5 שלום"

    @pytest.mark.parametrize("text", ["a label without end and without reason", "金毛寻回犬金毛寻回犬", "גולדן רטריבר שלום"])
    @pytest.mark.parametrize("width", [0, 1, 7, 30, 60, 100])
    def test_long_texts_are_cut_to_the_width(self, text: str, width: int) -> None:
        assert measure(text, 16) > 100
        assert render(text, 16, width=width).shape[1] <= width
        assert render(text, 16, bold=True, width=width).shape[1] <= width

    def test_cut_texts_end_in_an_ellipsis(self) -> None:
        cut, dots = render("abcdefghijklmnopqrstuvwxyz", 20, width=100), inked(render("…", 20))
        assert 80 < cut.shape[1] <= 100
        assert np.array_equal(inked(cut[:, -dots.shape[1] - 2 :]), dots)
        assert same(cut[:, :30], render("abcdefghijklmnopqrstuvwxyz", 20)[:, :30])
        hebrew = render("אבגדהוזחטיכלמנסעפצקרשת", 20, width=100)
        assert np.array_equal(inked(hebrew[:, : dots.shape[1] + 2]), dots), "read from the right, it ends at the left"

    def test_a_text_that_fits_is_not_cut(self) -> None:
        whole = render("parrot", 20)
        assert np.array_equal(render("parrot", 20, width=whole.shape[1]), whole)
        assert render("parrot", 20, width=whole.shape[1] - 1).shape[1] < whole.shape[1]

    def test_digits_are_tabular(self) -> None:
        assert len({measure(f"9{digit}%", 15) for digit in range(10)}) == 1

    def test_letters_stand_on_the_baseline(self) -> None:
        for size in (9, 15, 40):
            rows = np.flatnonzero((render("Ex", size) > 100).any(axis=1))
            assert abs(int(rows[-1]) + 1 - baseline(size)) <= 1

    def test_masks_are_kept_and_read_only(self) -> None:
        assert render("kept", 20) is render("kept", 20)
        assert not render("kept", 20).flags.writeable

    @pytest.mark.parametrize("pillow", [True, False])
    def test_an_opencv_without_fonts_writes_too(self, pillow: bool) -> None:
        if pillow:
            pytest.importorskip("PIL")
        code = (
            "import sys, cv2\n"
            "del cv2.FontFace\n"
            + ("" if pillow else "sys.modules['PIL'] = None\n")
            + "from clipsight.stream.drawing.lettering import render\n"
            "a, b = render('parrot 12%', 20), render('??????', 20)\n"
            "assert a.max() > 200 and a.shape[1] > 50 and a.shape[1] != b.shape[1], a.shape\n"
            "assert render('a long label of many words', 20, bold=True, width=90).shape[1] <= 90\n"
            "assert render('金毛 שלום كلب สุนัข \\n', 20, bold=True).max() > 200\n"
            "print('done')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout == "done\n", done.stderr


class TestPanel:
    """A result becomes a small picture with transparency."""

    def test_it_is_kept_until_what_it_shows_changes(self) -> None:
        image = picture(1280, 720)
        figures = Figures(30.1, 7.42, 0.141)
        scores = scored(0.8, 0.4, 0.1)
        first, at = panel(result(image, scores, "cockatoo", figures=figures))
        assert not first.flags.writeable
        again, again_at = panel(result(picture(1280, 720), scores, "cockatoo", figures=Figures(29.9, 7.4, 0.139)))
        assert again is first
        assert again_at == at
        assert panel(result(image, scored(0.8, 0.4, 0.1), "cockatoo", figures=figures))[0] is first
        for other in (
            result(image, scored(0.8, 0.5, 0.1), "cockatoo", figures=figures),
            result(image, scored(0.8, 0.4, 0.1, names=("cockatoo", "a", "b")), "cockatoo", figures=figures),
            result(image, scores, "parrot", figures=figures),
            result(image, scores, None, figures=figures),
            result(image, scores, "cockatoo", figures=Figures(28, 7.4, 0.14)),
            result(image, scores, "cockatoo", figures=Figures(30, 7.6, 0.14)),
            result(image, scores, "cockatoo", figures=Figures(30, 7.4, 0.2)),
            result(image, scores, "cockatoo", figures=Figures(30, 7.4, None)),
            result(image, scores, "cockatoo"),
            result(image, scores, "cockatoo", "stalled", figures=figures),
            result(image, scores, "cockatoo", "reconnecting", figures=figures),
            result(image, None, None, figures=figures),
        ):
            assert not np.array_equal(panel(other)[0], first)
        stalled, reconnecting = (panel(result(image, scores, state=s))[0] for s in ("stalled", "reconnecting"))
        assert not np.array_equal(stalled, reconnecting)

    @pytest.mark.parametrize("size", SIZES)
    def test_bars_are_as_long_as_probabilities(self, size: tuple[int, int]) -> None:
        probabilities = (0.999, 0.5, 0.31, 0.02)
        for label in NAMES[:4]:
            rgba, _ = panel(result(picture(*size), scored(*probabilities), label))
            layout = overlay._layout(*size, 4, False)
            assert layout is not None
            assert layout.rows >= 2
            for i, p in enumerate(probabilities[: layout.rows]):
                y = layout.row_base + i * layout.row + layout.bar_top + layout.bar // 2
                color = overlay._ACCENT if label == NAMES[i] else overlay._SOFT
                line = rgba[y, layout.pad : layout.pad + layout.inner].astype(int)
                filled = np.flatnonzero((abs(line[:, :3] - color) < 50).all(axis=1))
                assert abs(len(filled) - p * layout.inner) <= 1
                assert np.array_equal(filled, np.arange(len(filled))), "one piece, from the left"

    def test_no_bar_for_nothing(self) -> None:
        rgba, _ = panel(result(picture(1280, 720), scored(0.5, 0.0), "parrot"))
        assert not ((rgba[..., :3] == overlay._ACCENT).all(axis=2) & (rgba[..., 3] == 255)).any()

    def test_percentages_end_in_one_column(self) -> None:
        rgba, _ = panel(result(picture(1280, 720), scored(0.91, 0.58, 0.17, 0.04), None))
        layout = overlay._layout(1280, 720, 4, False)
        assert layout is not None
        ends = []
        for i in range(4):
            base = layout.row_base + i * layout.row
            line = rgba[base - layout.text // 2 : base, layout.width // 2 : layout.width - 1, :3].max(axis=(0, 2))
            ends.append(int(np.flatnonzero(line > 100)[-1]))
        assert max(ends) - min(ends) <= 1

    @pytest.mark.parametrize("size", [*SIZES, *ODD_SIZES])
    @pytest.mark.parametrize("top", [0, 1, 5, 50])
    def test_it_lies_inside_and_leaves_most_of_the_frame(self, size: tuple[int, int], top: int) -> None:
        shown = result(picture(*size), scored(0.8, 0.4, 0.1, 0.1, 0.1), "cockatoo", figures=Figures(30, 7, 0.1))
        rgba, (x, y) = panel(shown, top=top)
        height, width = rgba.shape[:2]
        assert rgba.dtype == np.uint8
        assert x >= 0
        assert y >= 0
        assert x + width <= size[0]
        assert y + height <= size[1]
        if rgba[..., 3].any():
            assert width * height <= 0.4 * size[0] * size[1]
        else:
            assert rgba.shape == (1, 1, 4)
            assert min(size) < 100

    @pytest.mark.parametrize(("size", "rows"), [((176, 144), 2), ((320, 240), 3), ((640, 480), 5), ((3840, 2160), 5)])
    def test_small_frames_show_fewer_labels(self, size: tuple[int, int], rows: int) -> None:
        layout = overlay._layout(*size, 5, True)
        assert layout is not None
        assert layout.rows == rows

    def test_the_size_to_lie_on_can_be_given(self) -> None:
        scores = scored(0.8, 0.4)
        assert panel(result(picture(64, 48), scores), (1280, 720))[0] is panel(result(picture(1280, 720), scores))[0]

    @pytest.mark.parametrize("size", [(1280, 720), (176, 144), (200, 60)])
    @pytest.mark.parametrize("figures", [None, Figures(30, 7, 0.1)])
    def test_a_dead_camera_is_told_of(self, size: tuple[int, int], figures: Figures | None) -> None:
        def warned(state: State) -> bool:
            shown = result(picture(*size), scored(0.8, 0.4, 0.1, 0.1, 0.1), "cockatoo", state)
            rgba, _ = panel(dataclasses.replace(shown, figures=figures))
            near = abs(rgba[..., :3].astype(int) - overlay._WARNING).max(axis=2) < 40
            return bool((near & (rgba[..., 3] > 200)).sum() > 20)

        assert warned("stalled")
        assert warned("reconnecting")
        assert not warned("live")
        plain, with_figures = (result(picture(*size), None, None, "stalled", figures=f) for f in (None, figures))
        assert panel(with_figures)[0] is panel(plain)[0], "figures of a dead camera are not shown"

    def test_the_same_input_gives_the_same_pixels(self) -> None:
        shown = result(picture(1280, 720), scored(0.8, 0.4, 0.1), "金毛寻回犬", seen=center(1280, 720))
        first, drawn = panel(shown)[0], draw(shown.frame.image, shown)
        for cached in (render, overlay._rendered, overlay._text, overlay._pill, overlay._plate, overlay._corners):
            cached.cache_clear()
        second = panel(shown)[0]
        assert second is not first
        assert np.array_equal(second, first)
        assert np.array_equal(draw(shown.frame.image, shown), drawn)

    def test_probabilities_that_are_no_numbers_are_nothing(self) -> None:
        scores = LabelBank(("a", "b"), np.eye(2, dtype=np.float32), "s").score(np.full((1, 2), np.nan, np.float32))[0]
        assert panel(result(picture(640, 480), scores))[0][..., 3].any()


class TestDraw:
    """A picture and its result become a picture."""

    @pytest.mark.parametrize("size", [*SIZES, *ODD_SIZES])
    @pytest.mark.parametrize("label", [None, "cockatoo", NAMES[3]])
    def test_only_the_panel_and_the_marks_change(self, size: tuple[int, int], label: str | None) -> None:
        image = picture(*size)
        before = image.copy()
        shown = result(image, scored(0.8, 0.4, 0.1, 0.1, 0.1), label, seen=center(*size), figures=Figures(30, 7, 0.1))
        drawn = draw(image, shown)
        assert np.array_equal(image, before)
        assert drawn.shape == image.shape
        assert drawn.flags.writeable
        rgba, (x, y) = panel(shown)
        free = np.ones(size[::-1], bool)
        free[y : y + rgba.shape[0], x : x + rgba.shape[1]] = rgba[..., 3] == 0
        left, top, right, bottom = center(*size)
        reach = max(8, round(0.09 * min(size)))
        for columns in (slice(left, left + reach), slice(max(right - reach, 0), right)):
            for rows in (slice(top, top + reach), slice(max(bottom - reach, 0), bottom)):
                free[rows, columns] = False
        assert np.array_equal(drawn[free], image[free])
        if rgba[..., 3].any():
            part = drawn[y : y + rgba.shape[0], x : x + rgba.shape[1]]
            assert not np.array_equal(part, image[y : y + rgba.shape[0], x : x + rgba.shape[1]])

    def test_it_is_the_panel_laid_over_the_picture(self) -> None:
        image = picture(1280, 720)
        shown = result(image, scored(0.8, 0.4, 0.1), "cockatoo", figures=Figures(30, 7, 0.1))
        rgba, (x, y) = panel(shown)
        expected = image.astype(np.float64)
        part = expected[y : y + rgba.shape[0], x : x + rgba.shape[1]]
        alpha = rgba[..., 3:] / 255
        part += alpha * (rgba[..., 2::-1] - part)  # BGR
        assert abs(draw(image, shown) - expected).max() < 2

    def test_what_the_model_sees_is_marked_at_four_corners(self) -> None:
        image = np.full((720, 1280, 3), 120, np.uint8)
        marked = draw(image, result(image, seen=(280, 0, 1000, 720)))
        plain = draw(image, result(image))
        rows, columns = np.nonzero((marked != plain).any(axis=2))
        assert 280 <= columns.min() < 300
        assert 980 < columns.max() < 1000
        assert 0 <= rows.min() < 20
        assert 700 < rows.max() < 720
        assert len(rows) < 0.01 * 1280 * 720
        quarters = {(bool(r > 360), bool(c > 640)) for r, c in zip(rows, columns, strict=True)}
        assert len(quarters) == 4

    def test_marks_show_on_white_and_on_black(self) -> None:
        for level in (0, 255):
            image = np.full((720, 1280, 3), level, np.uint8)
            changed = abs(draw(image, result(image, seen=(280, 0, 1000, 720))).astype(int) - level)[:200].max()
            assert changed > 60

    def test_no_marks_where_the_model_sees_everything(self) -> None:
        image = picture(640, 480)
        assert np.array_equal(draw(image, result(image, seen=(0, 0, 640, 480))), draw(image, result(image)))

    def test_marks_follow_a_picture_of_another_size(self) -> None:
        frame, image = np.full((360, 640, 3), 120, np.uint8), np.full((720, 1280, 3), 120, np.uint8)
        small, large = result(frame, seen=(140, 0, 500, 360)), result(image, seen=(280, 0, 1000, 720))
        assert np.array_equal(draw(image, small), draw(image, large))

    @pytest.mark.parametrize("seen", [(0, 0, 0, 0), (5, 5, 6, 6), (-50, -40, 30, 30), (100, 100, 9000, 9000)])
    def test_strange_boxes_do_no_harm(self, seen: Box) -> None:
        image = picture(640, 480)
        drawn = draw(image, result(image, scored(0.9), "cockatoo", seen=seen))
        assert np.array_equal(drawn[200:240, 300:], image[200:240, 300:])

    def test_out_is_drawn_into_again_and_again(self) -> None:
        out = np.empty((480, 640, 3), np.uint8)
        for value in (0.9, 0.2):
            image = picture(640, 480)
            shown = result(image, scored(value, 0.1), "cockatoo", seen=(80, 0, 560, 480))
            assert draw(image, shown, out) is out
            assert np.array_equal(out, draw(image, shown))

    @pytest.mark.parametrize("turn", [np.s_[::-1], np.s_[:, ::-1], np.s_[::2, ::2], np.s_[..., ::-1]])
    def test_arrays_of_any_layout_will_do(self, turn: tuple[slice, ...]) -> None:
        image = picture(1280, 720)[turn]
        whole = np.ascontiguousarray(image)
        height, width = whole.shape[:2]
        shown = result(whole, scored(0.9, 0.1), "cockatoo", seen=center(width, height))
        expected = draw(whole, shown)
        out = np.empty((720, 1280, 3), np.uint8)[turn]
        assert np.array_equal(draw(image, shown), expected)
        assert np.array_equal(draw(whole, shown, out), expected)

    def test_an_out_that_does_not_fit_is_refused(self) -> None:
        image = picture(64, 48)
        mine = image.copy()
        wrong: list[Any] = [
            np.empty((48, 63, 3), np.uint8),
            np.empty((48, 64, 4), np.uint8),
            np.empty((48, 64, 3), np.float32),
            picture(64, 48),  # read-only
        ]
        for out in wrong:
            with pytest.raises(ImageError):
                draw(image, result(image), out)
        with pytest.raises(ImageError, match="array of its own"):
            draw(mine, result(image), mine)

    def test_what_is_no_picture_is_refused(self) -> None:
        image = picture(64, 48)
        wrong: list[Any] = [np.zeros((48, 64), np.uint8), np.zeros((0, 64, 3), np.uint8), np.zeros((48, 64, 3))]
        for bad in wrong:
            with pytest.raises(ImageError):
                draw(bad, result(image))

    def test_top_says_how_many_labels(self) -> None:
        image = picture(1280, 720)
        shown = result(image, scored(0.8, 0.4, 0.1, 0.1, 0.1), "cockatoo")
        heights = [panel(shown, top=k)[0].shape[0] for k in (0, 1, 3, 5, 9)]
        assert heights == sorted(heights)
        assert len(set(heights)) == 4  # the bank has five
        assert not np.array_equal(draw(image, shown, top=1), draw(image, shown, top=3))


NOTE = "demo: knows printed cards, not the world"


@pytest.mark.parametrize(("width", "height"), [*SIZES, *ODD_SIZES])
def test_what_the_model_does_not_know_stands_in_the_upper_left_corner(width: int, height: int) -> None:
    """And nowhere else; a picture without room for it is left as it is without a note."""
    image = picture(width, height)
    plain, noted = (draw(image, dataclasses.replace(result(image), note=note)) for note in ("", NOTE))
    rows, columns = (plain != noted).any(2).any(1), (plain != noted).any(2).any(0)
    if min(width, height) >= 144:
        assert rows.any()
    if rows.any():
        assert np.flatnonzero(rows)[-1] < height / 3
        assert np.flatnonzero(columns)[-1] < width - np.flatnonzero(columns)[0]


def test_a_note_is_legible() -> None:
    image = np.full((720, 1280, 3), 128, np.uint8)
    noted = dataclasses.replace(result(image), note=NOTE)
    plate = draw(image, noted)[14:40, 14:260]
    assert plate.min() < 60  # the plate
    assert plate.max() > 130  # the letters


def test_no_bracket_is_drawn_under_a_note() -> None:
    """At 640 x 480 the plate reaches into the square that the model sees."""
    image = np.full((480, 640, 3), 128, np.uint8)
    noted = dataclasses.replace(result(image, seen=center(640, 480)), note=NOTE)
    plate = dataclasses.replace(noted, seen=None)
    assert np.array_equal(draw(image, noted)[:240, :320], draw(image, plate)[:240, :320])
    assert not np.array_equal(draw(image, noted)[:240, 320:], draw(image, plate)[:240, 320:])
