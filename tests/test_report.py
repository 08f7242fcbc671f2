"""What a run comes to, in lines: `stream.report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest

from clipsight.labels import LabelBank
from clipsight.stream import Frame, Result
from clipsight.stream.meter import Quantiles, Summary
from clipsight.stream.report import Report
from clipsight.stream.sources.demo import Demo
from clipsight.stream.sources.memory import Frames

GOOD = Summary(
    seconds=20.0,
    captured=600,
    shown=600,
    fps=30.0,
    recognized=580,
    recognitions=29.0,
    dropped=0,
    skipped=20,
    interval=Quantiles.of([1 / 30] * 600),
    frame_age=Quantiles.of([0.01] * 600),
    result_age=Quantiles.of([0.05] * 600),
    over_50ms=0,
)


def demo_results(wrong: int = 0, none: int = 0) -> tuple[Demo, list[Result]]:
    """Twenty frames of the demo, an eighth of a second apart; the first `wrong` are named wrong, the next `none` not at all."""
    source = Demo(seconds=10)
    frames = [Frame(np.zeros((4, 4, 3), np.uint8), i, i / 8, 0.0) for i in range(20)]
    names = (*dict.fromkeys(source.truth(frame) for frame in frames), "plain red cat")
    bank = LabelBank(names, np.eye(len(names), dtype=np.float32), "s", threshold=0.5)
    results = []
    for i, frame in enumerate(frames):
        said = len(names) - 1 if i < wrong else names.index(source.truth(frame))
        value = 0.4 if wrong <= i < wrong + none else 1.0
        (scores,) = bank.score(value * bank.vectors[said : said + 1])
        results.append(Result(frame, scores, frame, scores.label))
    return source, results


def reported(source: Demo | Frames, results: Iterable[Result]) -> Report:
    report = Report(source)
    for result in results:
        report.add(result)
    return report


@pytest.mark.parametrize(("wrong", "none", "passes"), [(0, 0, True), (2, 0, True), (3, 0, False), (1, 1, True), (1, 2, False)])
def test_a_demo_passes_where_nine_of_ten_scored_frames_are_named_right(wrong: int, none: int, passes: bool) -> None:
    report = reported(*demo_results(wrong, none))
    assert report.passed is passes
    share, verdict = f"{(20 - wrong - none) / 20:.1%}", f"{'passed' if passes else 'FAILED'} (90% is asked for)"
    assert report.lines()[-1] == f"named right    {share} of 20 scored frames, each by its own truth: {verdict}"


def test_a_frame_is_judged_once_by_its_own_truth_however_long_its_scores_are_shown() -> None:
    source, results = demo_results()
    later = [dataclasses.replace(results[-1], scored_frame=results[0].frame, scores=results[0].scores)] * 3
    report = reported(source, [results[0], *later])
    assert " 100.0% of 1 scored frames" in report.lines()[-1]


def test_a_demo_of_which_nothing_was_scored_fails() -> None:
    source, results = demo_results()
    report = reported(source, [dataclasses.replace(r, scores=None, scored_frame=None) for r in results])
    assert not report.passed


def test_a_run_without_a_truth_has_no_verdict() -> None:
    _, results = demo_results(wrong=20)
    report = reported(Frames([np.zeros((4, 4, 3), np.uint8)]), results)
    assert report.passed
    assert not any("named right" in line or "warning" in line for line in report.lines(dataclasses.replace(GOOD, fps=3.0)))
    assert report.lines()[1] == "seen           plain red cat 100% of the frames"


def test_words_that_are_not_in_the_scene_are_told() -> None:
    source, results = demo_results()
    bank = LabelBank(("cat", "dog"), np.eye(2, dtype=np.float32), "s", threshold=0.5)
    (nothing,) = bank.score(np.array([[0.1, 0.1]], np.float32))
    report = reported(source, [dataclasses.replace(r, scores=nothing) for r in results])
    assert report.passed
    assert report.lines()[-1].startswith("warning        none of these words is in this scene")
    assert "none of these" not in " ".join(reported(source, results).lines())


def test_a_fit_that_shows_several_cards_is_named_as_the_reason() -> None:
    source, results = demo_results(wrong=10)
    whole = [dataclasses.replace(r, seen=(0, 0, r.frame.image.shape[1], r.frame.image.shape[0])) for r in results]
    assert reported(source, whole).lines()[-1].endswith("use --fit crop")
    assert "--fit" not in " ".join(reported(source, results).lines())
    right = [dataclasses.replace(r, seen=(0, 0, r.frame.image.shape[1], r.frame.image.shape[0])) for r in demo_results()[1]]
    assert "--fit" not in " ".join(reported(source, right).lines())


def test_what_the_model_does_not_know_is_told_once() -> None:
    source, results = demo_results()
    lines = reported(source, [dataclasses.replace(r, note="demo: knows cards") for r in results]).lines(GOOD)
    assert [line for line in lines if line.startswith("model")] == ["model          demo: knows cards"]
    assert not any(line.startswith("model") for line in reported(source, results).lines(GOOD))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"fps": 28.0}, "the display held 28.0 of 30 fps; close what else runs here"),
        (
            {"interval": Quantiles.of([0.06] * 600)},
            "one interval in a hundred was longer than 50 ms; close what else runs here",
        ),
        (
            {"recognitions": 4.0},
            "4.0 recognitions a second are few; try another --engine: python -m clipsight.engines bench times them",
        ),
    ],
)
def test_missed_speed_is_a_warning_that_says_what_to_do(change: dict[str, float], said: str | None) -> None:
    report = reported(*demo_results())
    lines = report.lines(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert [line for line in lines if line.startswith("warning")] == ([f"warning        {said}"] if said else [])
    assert report.passed
    assert any(line.startswith("display ") for line in lines)
