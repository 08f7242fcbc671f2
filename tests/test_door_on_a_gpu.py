"""The door with TensorRT on the simulated GPU: the whole way from a video to names, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from simulated_cuda import World

import run_camera
from clipsight.engines.compiled import session as sessions
from clipsight.stream.sources.demo import Demo


@pytest.fixture
def clip(make_video: Any, tmp_path: Path) -> Path:
    """Eleven cards of the demo, two frames of each."""
    frames = [frame.image for frame in Demo() if frame.index % 60 in (0, 1)]
    path: Path = make_video(tmp_path / "cards.mp4", frames)
    return path


def results(clip: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    assert run_camera.main([str(clip), "--model", "demo", "--no-window", "--results", str(out), *words]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_video_is_named_frame_by_frame_in_batches(
    simulated_gpu: World, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, int]] = []  # pictures, and batches that are not waited for yet
    usual = sessions.Session.start

    def start(self: sessions.Session, images: Any) -> Any:
        job = usual(self, images)
        started.append((len(images), sum(lane._job is not None and lane._job._got is None for lane in self.lanes)))
        return job

    monkeypatch.setattr(sessions.Session, "start", start)
    wanted = results(clip, tmp_path / "cpu.jsonl", "--engine", "onnx")
    given = results(clip, tmp_path / "gpu.jsonl", "--engine", "tensorrt-rtx")
    assert [r["label"] for r in given] == [r["label"] for r in wanted]
    assert sum(r["label"] == str(Demo().card(i // 2)) for i, r in enumerate(given)) >= 20
    assert len(given) == 22
    assert started[-2:] == [(16, 1), (6, 2)]  # the second batch was on its way before the first one was waited for
    assert "frames" in capsys.readouterr().out


def test_live_on_a_gpu(simulated_gpu: World, clip: Path, tmp_path: Path) -> None:
    given = results(clip, tmp_path / "gpu.jsonl", "--engine", "tensorrt-rtx", "--live", "--precision", "fp32")
    assert given
    assert all("label" in r for r in given)
    assert simulated_gpu.launched > 0
