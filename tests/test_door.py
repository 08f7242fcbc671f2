"""run_camera.py from outside, as a user runs it: exit status, what is printed, what is left on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipsight.engines import ModelCard
from clipsight.labels import LabelBank, open_bank
from clipsight.labels.__main__ import bank_of_npz

ROOT = Path(__file__).parent.parent
DOOR = [sys.executable, str(ROOT / "run_camera.py")]
HEADLESS = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}


def door(*words: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DOOR, *map(str, words)], capture_output=True, text=True, check=False, env=HEADLESS, timeout=timeout)


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("clipsight: engine:")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        return [f.pts * stream.time_base for f in container.decode(stream)]


@pytest.fixture(scope="module")
def imagenet(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bank = bank_of_npz(real / "encoder" / "imagenet1k_label_matrix.npz", str(real / "encoder"))
    return bank.save(tmp_path_factory.mktemp("bank") / "imagenet.safetensors")


def fragile_model(folder: Path) -> Path:
    """A model whose vector is the picture's mean color: of a black picture it has none, and the engine fails."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["image_embeds"]),
        ],
        "fragile",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "unused")],
    )
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "image.onnx"))
    ModelCard("fragile", "fragile", 8, 3, (0.0,) * 3, (1.0,) * 3).save(folder)
    LabelBank(("red", "green", "blue"), np.eye(3, dtype=np.float32), "fragile").save(folder / "bank.safetensors")
    return folder


def write_video(path: Path, levels: list[int]) -> Path:
    """A clip of plain gray pictures, one a level, 10 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), "bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_the_cockatoo_is_named_in_every_frame_and_saved_with_its_time(real: Path, imagenet: Path, tmp_path: Path) -> None:
    clip, video, lines = real / "videos" / "imageio_cockatoo.mp4", tmp_path / "out.mp4", tmp_path / "out.jsonl"
    done = door(clip, "--model", real / "encoder", "--labels", imagenet, "--save", video, "--results", lines)
    assert done.returncode == 0, done.stderr
    assert "280 in" in done.stdout
    results = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    source = times(clip)
    assert len(source) == 280
    assert [r["index"] for r in results] == list(range(280)) == [r["scored_index"] for r in results]
    assert np.allclose([r["time"] for r in results], [float(t) for t in source], atol=1e-4)
    assert times(video) == source
    # For 80 of the 280 frames its beak fills the picture. This small encoder says a kind of parrot in 153 of them.
    labels = [r["label"] for r in results]
    assert max(set(labels), key=labels.count) == "sulphur-crested cockatoo"
    parrots = ("sulphur-crested cockatoo", "african grey parrot", "macaw", "lorikeet")
    assert sum(label in parrots for label in labels) > 140
    assert "seen           sulphur-crested cockatoo" in done.stdout
    assert len(results[0]["top"]) == 5


def test_live_plays_a_file_as_a_camera_would(real: Path, imagenet: Path, tmp_path: Path) -> None:
    clip, lines = real / "videos" / "imageio_cockatoo.mp4", tmp_path / "out.jsonl"
    started = time.monotonic()
    done = door(clip, "--live", "--model", real / "encoder", "--labels", imagenet, "--results", lines)
    assert done.returncode == 0, done.stderr
    assert 14 <= time.monotonic() - started < 40  # 280 frames at 20 a second
    for figure in ("display", "interval", "frame age", "result age", "recognitions", "dropped", "p50", "p95", "p99"):
        assert figure in done.stdout
    shown = [json.loads(line)["index"] for line in lines.read_text(encoding="utf-8").splitlines()]
    assert shown == sorted(set(shown))
    dropped = re.search(r"(\d+) dropped", done.stdout)
    assert dropped is not None
    assert len(shown) + int(dropped[1]) == 280


def test_the_demo_passes_its_own_verdict(tmp_path: Path) -> None:
    done = door("demo", "--every-frame", "--save", tmp_path / "demo.mp4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^named right +9\d\.\d% of 660 scored frames, each by its own truth: passed \(90% is asked for\)$", done.stdout, re.M
    )
    assert done.stdout.splitlines()[-1].startswith("saved          ")
    assert len(times(tmp_path / "demo.mp4")) == 660
    assert "no window: there is no display here" in done.stderr


def test_the_demo_takes_words_and_is_judged_by_them(tmp_path: Path) -> None:
    """Cards of the first seconds by words of one's own, and cards that are on no list: most are nothing."""
    said = "green fish, a dotted teardrop, crimson star, orange heart"
    done = door("demo", "--every-frame", "--labels", said, "--results", tmp_path / "r.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    labels = [json.loads(line)["label"] for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    assert labels[10] == "green fish"
    assert labels[60] == "a dotted teardrop"
    assert labels.count(None) > 300


def test_wrong_names_are_a_failed_run(tmp_path: Path) -> None:
    """A bank whose names stand one row too low."""
    bank = open_bank("demo", "demo")
    shifted = dataclasses.replace(bank, vectors=np.roll(bank.vectors, 1, axis=0))
    words = ("demo", "--every-frame", "--labels", shifted.save(tmp_path / "b.safetensors"), "--results", tmp_path / "r.jsonl")
    done = door(*words)
    assert done.returncode == 1
    assert re.search(r"^named right .* FAILED \(90% is asked for\)$", done.stdout, re.M)


def test_the_demo_live_ends_with_its_figures(tmp_path: Path) -> None:
    done = door("demo", "--results", tmp_path / "r.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    for figure in ("named right", "display", "interval", "frame age", "result age", "recognitions"):
        assert re.search(rf"^{figure} ", done.stdout, re.M), figure


def test_quiet_says_nothing(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", [100] * 5)
    model = fragile_model(tmp_path / "model")
    words = ("--model", model, "--labels", model / "bank.safetensors", "--results", tmp_path / "r.jsonl")
    done = door(clip, *words, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("how", ["--every-frame", "--live"])
def test_an_engine_that_fails_mid_run_leaves_complete_files(tmp_path: Path, how: str) -> None:
    clip = write_video(tmp_path / "clip.mp4", [100] * 20 + [0] * 20)
    model, video, lines = fragile_model(tmp_path / "model"), tmp_path / "out.mp4", tmp_path / "out.jsonl"
    words = ("--model", model, "--labels", model / "bank.safetensors", "--save", video, "--results", lines, how)
    done = door(clip, *words, "--no-window")
    assert "NaN, infinite or zero" in one_line(done, 1)
    kept = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(times(video)) == len(kept) >= (20 if how == "--every-frame" else 10)
    assert kept[5]["top"]
    assert "frames" in done.stdout  # the summary is printed all the same


def test_a_source_that_fails_mid_run_leaves_complete_files(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", list(range(50, 250)))
    subprocess_free_remux(whole, tmp_path / "fast.mp4")
    data = (tmp_path / "fast.mp4").read_bytes()
    clip = tmp_path / "cut.mp4"
    clip.write_bytes(data[: int(len(data) * 0.7)])
    model, video = fragile_model(tmp_path / "model"), tmp_path / "out.mp4"
    done = door(clip, "--model", model, "--labels", model / "bank.safetensors", "--save", video, "--no-window")
    assert "of 200 frames" in one_line(done, 1)
    assert 20 < len(times(video)) < 200


def subprocess_free_remux(source: Path, target: Path) -> None:
    """Copy with the index in front, so that a cut file still opens."""
    with av.open(str(source)) as inside, av.open(str(target), "w", options={"movflags": "faststart"}) as outside:
        stream = outside.add_stream_from_template(inside.streams.video[0])
        for packet in inside.demux(inside.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                outside.mux(packet)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent another way there")
@pytest.mark.parametrize("how", ["--live", "--every-frame"])
def test_ctrl_c_leaves_complete_files_a_summary_and_130(tmp_path: Path, how: str) -> None:
    video = tmp_path / "out.mp4"
    process = subprocess.Popen(
        [*DOOR, "demo", how, "--save", str(video)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=HEADLESS
    )
    deadline = time.monotonic() + 60
    while (not video.exists() or video.stat().st_size < 20_000) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "frames" in out
    assert len(times(video)) > 5


def test_a_clone_that_is_not_installed_says_the_install_line(tmp_path: Path) -> None:
    shutil.copy(ROOT / "run_camera.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(tmp_path / "run_camera.py"), "demo"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr == 'clipsight is not installed here; run: pip install -e ".[camera,onnx,text]"\n'


def test_opencv_not_installed_is_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['cv2'] = None; import run_camera; sys.exit(run_camera.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--save", str(tmp_path / "x.mp4"), "--every-frame"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=HEADLESS,
    )
    assert "opencv-python is not installed; run: pip install opencv-python" in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.mp4").exists()


class TestWrongUse:
    """One clear line and status 2, never a traceback, and nothing left behind."""

    @pytest.fixture
    def clip(self, tmp_path: Path) -> Path:
        return write_video(tmp_path / "clip.mp4", [100] * 10)

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return fragile_model(tmp_path / "model")

    def refused(self, tmp_path: Path, *words: str | Path) -> str:
        out = tmp_path / "r.jsonl"
        given = () if "--model" in words else ("--model", "demo")
        line = one_line(door(*words, *given, "--results", out, "--no-window"), 2)
        assert line.startswith("clipsight: ")
        return line

    def test_no_such_file(self, tmp_path: Path) -> None:
        assert "no such file" in self.refused(tmp_path, tmp_path / "none.mp4")

    def test_a_text_called_mp4(self, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("This is no video.\n" * 100)
        assert "text.mp4" in self.refused(tmp_path, tmp_path / "text.mp4")

    def test_a_truncated_mp4(self, tmp_path: Path, clip: Path) -> None:
        (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:700])
        assert "cut.mp4" in self.refused(tmp_path, tmp_path / "cut.mp4")

    def test_no_camera(self, tmp_path: Path) -> None:
        assert "camera 97 cannot be opened" in self.refused(tmp_path, "97")
        assert "/dev/video97" in self.refused(tmp_path, "/dev/video97")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "empty" in self.refused(tmp_path, tmp_path / "empty")

    def test_a_model_folder_without_a_card(self, tmp_path: Path, clip: Path, model: Path) -> None:
        (model / "card.json").unlink()
        words = ("--model", model, "--labels", model / "bank.safetensors")
        assert "card.json" in self.refused(tmp_path, clip, *words)

    def test_a_model_folder_with_a_wrong_card(self, tmp_path: Path, clip: Path, model: Path) -> None:
        (model / "card.json").write_text('{"id": "x", "space": "x", "size": -1}')
        words = ("--model", model, "--labels", model / "bank.safetensors")
        assert "card.json" in self.refused(tmp_path, clip, *words)

    def test_a_bank_of_another_space(self, tmp_path: Path, clip: Path, model: Path) -> None:
        assert "space" in self.refused(tmp_path, clip, "--model", model, "--labels", "demo")

    def test_an_empty_label_file(self, tmp_path: Path, clip: Path) -> None:
        (tmp_path / "words.txt").write_text("\n# none\n")
        line = self.refused(tmp_path, clip, "--model", "demo", "--labels", tmp_path / "words.txt")
        assert "holds no labels" in line

    def test_words_for_a_model_without_a_text_tower(self, tmp_path: Path, clip: Path, model: Path) -> None:
        assert "no text tower" in self.refused(tmp_path, clip, "--model", model, "--labels", "cat, dog")

    def test_the_world_without_a_clip_model(self, tmp_path: Path, clip: Path) -> None:
        nowhere = {**HEADLESS, "HTTPS_PROXY": "http://127.0.0.1:9", "CLIPSIGHT_CACHE": str(tmp_path / "cache")}
        command = [*DOOR, str(clip), "--results", str(tmp_path / "r.jsonl"), "--no-window", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=nowhere, timeout=240)
        line = one_line(done, 2)
        assert "ViT-B-16.pt: cannot be fetched" in line
        assert line.endswith(f"put it at {tmp_path / 'cache' / 'models' / 'ViT-B-16.pt'}")

    def test_a_model_without_words_and_labels(self, clip: Path, model: Path) -> None:
        done = door(clip, "--model", model, "--save", clip.with_name("out.mp4"), "--no-window")
        assert "has no text tower" in one_line(done, 2)

    def test_an_output_folder_that_is_not_there(self, tmp_path: Path, clip: Path) -> None:
        done = door(clip, "--model", "demo", "--save", tmp_path / "none" / "out.mp4", "--no-window")
        assert "make it first" in one_line(done, 2)

    def test_an_output_that_is_the_source(self, clip: Path) -> None:
        before = clip.read_bytes()
        done = door(clip, "--model", "demo", "--save", clip, "--no-window")
        assert "the source itself" in one_line(done, 2)
        assert clip.read_bytes() == before

    def test_an_ending_nobody_knows(self, tmp_path: Path, clip: Path) -> None:
        done = door(clip, "--model", "demo", "--save", tmp_path / "out.xyz", "--no-window")
        assert ".mp4" in one_line(done, 2)

    def test_nothing_to_see(self, clip: Path) -> None:
        assert "--save" in one_line(door(clip, "--model", "demo", "--no-window"), 2)
        assert "no display" in one_line(door(clip, "--model", "demo"), 2)

    def test_a_backend_that_is_not_installed(self, tmp_path: Path) -> None:
        code = (
            "import sys, importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'openvino' else find(name, *a)\n"
            "import run_camera; sys.exit(run_camera.main(sys.argv[1:]))"
        )
        words = ["demo", "--engine", "openvino", "--results", str(tmp_path / "r.jsonl"), "--no-window"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=HEADLESS
        )
        assert "pip install openvino" in one_line(done, 2)

    @pytest.mark.parametrize(
        "words", [("--top", "0"), ("--size", "big"), ("--engine", "cuda"), ("--live", "--every-frame"), ("--nonsense",)]
    )
    def test_words_the_command_line_does_not_know(self, words: tuple[str, ...]) -> None:
        assert "--help says more" in one_line(door("demo", *words), 2)
