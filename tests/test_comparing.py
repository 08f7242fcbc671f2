"""`engines compare`: what is measured, in processes that are really run, and the one sentence that comes of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from clipsight.engines import BackendError, ModelError
from clipsight.engines.__main__ import main
from clipsight.engines.cards.scenes import picture
from clipsight.engines.cards.words import Card
from clipsight.engines.comparing import Row, advice, compare, table
from clipsight.engines.figures import interval

CARDS = [Card("plain", "red", "star"), Card("plain", "blue", "ring"), Card("plain", "green", "house")]


def row(name: str, ms: float, right: int = 0, of: int = 0, size: float = 100.0) -> Row:
    return Row(name, "onnx", "fp32", size, ms=[ms] * 20, top1=right, top5=right, of=of)


@pytest.mark.parametrize(
    ("rows", "need", "most", "said"),
    [
        ([row("a", 100), row("b", 20)], None, None, "Take b onnx fp32: the fastest here, 50.0 recognitions a second."),
        (
            [row("a", 100), row("b", 20)],
            60,
            None,
            "None reaches 60 recognitions a second here; b onnx fp32 comes nearest with 50.0.",
        ),
        ([row("a", 100, size=30), row("b", 20, size=90)], None, 45, "Take a onnx fp32"),
        (
            [row("a", 100, size=50), row("b", 20, size=90)],
            None,
            45,
            "None is below 45 MB; the smallest is a onnx fp32 with 50 MB.",
        ),
        ([row("a", 100, 95, 100), row("b", 20, 60, 100)], None, None, "Take a onnx fp32: it names the most right, 95.0%,"),
        (
            [row("a", 100, 95, 100), row("b", 20, 93, 100)],
            None,
            None,
            "Take b onnx fp32: 93.0% right, which these 100 pictures",
        ),
        ([row("a", 100, 95, 100), row("b", 20, 60, 100)], 30, None, "Take b onnx fp32: it names the most right, 60.0%,"),
    ],
)
def test_the_advice_is_one_sentence_with_its_reason(rows: list[Row], need: float | None, most: float | None, said: str) -> None:
    assert advice(rows, need, most).startswith(said)


def test_a_row_tells_times_rate_size_and_share_with_its_interval() -> None:
    heading, line = table([Row("a", "onnx", "fp32", 86.4, ms=[*[10.0] * 19, 110.0], peak=412.3, top1=80, top5=95, of=100)])
    assert heading.split()[:2] == ["p50", "ms"]
    assert " ".join(line.split()) == "a onnx fp32 10.0 15.0 66.7 86.4 412 80.0% (71.1% to 86.7%) 95.0%"
    assert "top-1" not in table([row("a", 10)])[0]
    assert interval(80, 100) == pytest.approx((0.711, 0.867), abs=1e-3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    for card in CARDS:
        name = f"{card.color} {card.shape}"
        (folder / name).mkdir()
        for i in range(4):
            cv2.imwrite(str(folder / name / f"{i}.png"), picture(9500, i, (card,), empty=0, strength=0.2).image)
        (folder / name / "notes.txt").write_text("no picture")
    return folder


def test_runtimes_are_measured_and_name_pictures(pictures: Path) -> None:
    lines: list[str] = []
    rows = compare(["demo"], backends=["onnx", "openvino"], pictures=pictures, rounds=2, calls=2, say=lines.append)
    assert [row.name for row in rows] == ["demo onnx fp32", "demo openvino fp32"]
    for one in rows:
        assert len(one.ms) == 4
        assert 0 < one.p50 <= one.p95
        assert one.peak is not None
        assert 20 < one.peak < 5000
        assert one.of == 12
        assert one.top1 >= 11
        assert one.top5 == 12
    assert lines[-1].startswith("Take demo ")


def test_the_command_and_its_units(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "demo", "--engine", "onnx", "--rounds", "1", "--calls", "1"]
    assert main([*command, "--need", "30FPS", "--max-size", "0.5"]) == 0
    assert "None is below 0.5 MB" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--need", "many"])
    assert "invalid number of fps value: 'many'" in capsys.readouterr().err


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no folders of pictures"):
        compare(["demo"], pictures=tmp_path)
    with pytest.raises(ModelError, match="no model folder 'no-such'"):
        compare(["no-such"])
    lines: list[str] = []
    with pytest.raises(BackendError, match="nothing can be compared"):
        compare(["demo"], backends=["tensorrt"], say=lines.append)
