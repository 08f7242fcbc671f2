"""None of these: a bank is set so that pictures of nothing on its list get no name, and what that costs is told."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipsight.engines import LabelError, Vectors, open_engine
from clipsight.labels import LabelBank
from clipsight.labels.__main__ import main
from clipsight.labels.building import encode
from clipsight.labels.calibrating import calibrate, kept

LABELS = LabelBank(("a", "b", "c"), np.eye(3, 8, dtype=np.float32), "s")


def unit(rows: np.ndarray) -> Vectors:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def strangers(n: int, seed: int = 0) -> Vectors:
    return unit(np.random.default_rng(seed).normal(0, 1, (n, 8)) * [1, 1, 1, 2, 2, 2, 2, 2])


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_a_threshold_names_the_share_that_was_allowed(rate: float) -> None:
    done = calibrate(LABELS, strangers(4000), rate=rate)
    assert done.bank.threshold is not None
    assert done.of == 2000
    assert done.named == pytest.approx(rate, abs=0.02)
    named = [s.label is not None for s in done.bank.score(strangers(4000)[::2])]
    assert np.mean(named) <= rate


def test_with_a_background_it_is_the_margin_that_is_set() -> None:
    bank = dataclasses.replace(LABELS, background=np.eye(8, dtype=np.float32)[3:5], threshold=0.9)
    done = calibrate(bank, strangers(4000), rate=0.05)
    assert done.bank.threshold is None
    assert done.bank.margin != 0
    assert done.named == pytest.approx(0.05, abs=0.02)


def test_what_it_costs_is_counted_of_the_right_ones_alone() -> None:
    bank = dataclasses.replace(LABELS, threshold=0.9)
    vectors = unit(np.array([[1, 0.1, 0], [0.1, 1, 0.9], [1, 0, 0], [0, 0, 1]]) @ np.eye(3, 8))
    assert kept(bank, vectors, ["a", "b", "b", "c"]) == (3, 2)  # the second is right and unsure, the third wrong


def test_few_pictures_are_refused() -> None:
    with pytest.raises(LabelError, match="19 pictures of nothing on the list are too few"):
        calibrate(LABELS, strangers(19))


def test_on_real_photographs(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """500 of 1000 classes are the list; 75 photographs show one of them, 75 something else."""
    with np.load(real / "encoder" / "imagenet1k_label_matrix.npz") as arrays:
        names, vectors = [f"{i} {name}" for i, name in enumerate(arrays["names"])], arrays["W"]
    photographs = sorted((real / "images" / "imagenet").glob("*.jpg"))
    space = "mobilenet"
    with open_engine(real / "encoder", "onnx") as engine:
        space = engine.card.space
        images = [np.asarray(cv2.imread(str(path)), np.uint8) for path in photographs]
        rows = encode(engine, images)
    on_it = {int(path.stem) for path in photographs[::2]}
    others = {int(path.stem) for path in photographs[1::2]}
    listed = sorted(on_it | set(range(0, 1000, 2)) - others)
    bank = LabelBank(tuple(names[i] for i in listed), vectors[listed], space)
    done = calibrate(bank, rows[1::2], rate=0.05)
    right, names_kept = kept(done.bank, rows[::2], [names[int(path.stem)] for path in photographs[::2]])
    plain = [s.label is not None for s in bank.score(rows[1::2])]
    assert all(plain)  # without it everything has a name
    assert done.named <= 0.15
    assert right >= 60
    assert names_kept >= 0.5 * right
    print(f"named {done.named:.1%} of {done.of}, {names_kept} of {right} right names kept")


def test_the_command(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, images, path = str(real / "encoder"), real / "images", tmp_path / "b.safetensors"
    assert main(["build", str(images / "per_class"), "--model", encoder, "-o", str(path)]) == 0
    command = ["calibrate", str(path), "--model", encoder]
    assert main([*command, "--nothing", str(images / "imagenet"), "--pictures", str(images / "per_class")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.search(r"^threshold 0\.\d{4}: of 75 other pictures of nothing [\d.]+% are named \(95 %: ", said[1])
    assert re.search(r"^of 100 pictures of what is on it \d+ are nearest to their label; \d+ of those keep it$", said[2])
    assert LabelBank.load(path).threshold == pytest.approx(float(said[1].split()[1].rstrip(":")), abs=1e-3)
    assert main(command) == 0  # on rendered pictures
    assert main([*command, "--rate", "0"]) == 2
    assert "--rate 0 is no share" in capsys.readouterr().err
    assert main(["calibrate", str(path), "--model", "demo"]) == 2
    assert "build them for it" in capsys.readouterr().err
    assert main([*command, "--pictures", str(images)]) == 2
    assert "no folder that is called as a label is" in capsys.readouterr().err
