"""The bench of a GPU runs to its end and prints every table: its figures are of a simulated GPU, so only their form is held."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from simulated_cuda import World
from test_engines import TINY, export_random

from clipsight.engines import gpu_bench
from clipsight.engines.__main__ import main
from clipsight.engines.card import ModelCard
from clipsight.engines.torch_peers import Peers

TABLE = r"[\d.]+ / [\d.]+ / [\d.]+"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_random(tmp_path_factory.mktemp("tiny"), "tiny", TINY)


def test_every_table_is_printed(
    simulated_gpu: World, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_bench, "_COPIED", 1 << 16)
    command = ["bench", "--engine", "tensorrt-rtx", "--model", str(tiny), "--max-batch", "4", "--rounds", "2", "--calls", "3"]
    assert main(command) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("random-tiny-0 on Simulated GPU (sm89, driver CUDA 12.4), tensorrt-rtx ")
    assert re.fullmatch(r"plan: \d+ MB, built in [\d.]+ s; gate: centered cosine 0\.9999\d, label agreement \d+\.\d%", lines[1])
    for n in (1, 2, 4):
        stages = [line for line in lines if re.fullmatch(rf" +{n} ( +{TABLE}){{6}}", line)]
        rates = [line for line in lines if re.fullmatch(rf" +{n} +[\d,]+", line)]
        assert len(stages) == len(rates) == 1
    (left_out,) = (line for line in lines if line.startswith("torch is left out: "))
    assert "no CUDA" in left_out
    (best,) = (line for line in lines if line.startswith("best batch "))
    assert best.endswith("TFLOP/s; no peak (torch is missing)")
    (floor,) = (line for line in lines if line.startswith("batch 1: forward "))
    assert re.search(r"takes [\d.]+ ms: x[\d.]+ of that floor", floor)
    (cameras,) = (line for line in lines if line.startswith("cameras: "))
    assert re.search(r"\d+ cameras at 30 fps in real time", cameras)
    assert re.fullmatch(r"what limits: (fill|upload|compute \(prepare and forward\)), .* a frame", lines[-1])
    assert simulated_gpu.launched > 0


def test_a_single_engine_can_be_timed(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--engine", "onnx", "--model", str(tiny), "--rounds", "1", "--calls", "1"]) == 0
    out = capsys.readouterr().out
    assert "  onnx " in out
    assert "openvino" not in out


def test_torch_that_is_missing_or_has_no_gpu_is_one_line(tiny: Path, tmp_path: Path) -> None:
    with Peers(tiny, 0) as peers:
        assert peers.missing is not None
        assert "no CUDA for device 0" in peers.missing
        assert isinstance(peers.peak(), str)
    with Peers(tmp_path, 0) as peers:
        assert peers.missing is not None
        assert "card.json" in peers.missing


def test_what_a_picture_costs() -> None:
    """ViT-B/16 at 224: 17.58 billion multiply-adds (its paper's and open_clip's profile), with none left out."""
    arch = {"vision_cfg": {"width": 768, "layers": 12, "patch_size": 16}}
    card = ModelCard("v", "v", 224, 512, (0.5,) * 3, (0.5,) * 3, arch=arch)
    assert gpu_bench.flop_of(card) == pytest.approx(2 * 17.58e9, rel=0.002)
    assert gpu_bench.flop_of(ModelCard("v", "v", 224, 512, (0.5,) * 3, (0.5,) * 3)) is None
