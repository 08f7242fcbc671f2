"""Banks and scores."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from clipsight.engines import LabelError, ModelCard, ModelError
from clipsight.engines.registry import SHIPPED
from clipsight.labels import LabelBank, open_bank
from clipsight.labels.__main__ import bank_of_npz, main

AXES = np.eye(4, dtype=np.float32)


def bank(**more: object) -> LabelBank:
    return LabelBank(("cat", "dog", "cup", "car"), AXES, "s", **more)  # type: ignore[arg-type]


def vector(*values: float) -> np.ndarray:
    array = np.array([values], np.float32)
    unit: np.ndarray = array / np.linalg.norm(array)
    return unit


def test_values_are_cosines_and_top_is_sorted() -> None:
    (scores,) = bank().score(vector(3, 0, 4, 0))
    assert np.allclose(scores.values, [0.6, 0, 0.8, 0])
    assert [(s.name, round(s.value, 3)) for s in scores.top(2)] == [("cup", 0.8), ("cat", 0.6)]
    assert len(scores.top(99)) == 4
    assert scores.top(0) == []
    assert [s.name for s in scores.above(0.5)] == ["cup", "cat"]
    assert scores.above(0.9) == []
    assert scores.label == "cup"


def test_softmax_is_the_cards_scale_over_all_labels() -> None:
    (scores,) = bank(logit_scale=5.0).score(vector(3, 0, 4, 0))
    weights = [math.exp(5 * v) for v in (0.6, 0, 0.8, 0)]
    assert np.allclose(scores.probabilities(), np.array(weights) / sum(weights), atol=1e-6)
    assert scores.top(1)[0].probability == pytest.approx(weights[2] / sum(weights), abs=1e-6)


def test_sigmoid_judges_each_label_by_itself() -> None:
    (scores,) = bank(logit_scale=10.0, logit_bias=-6.0, activation="sigmoid").score(vector(3, 0, 4, 0))
    wanted = [1 / (1 + math.exp(-(10 * v - 6))) for v in (0.6, 0, 0.8, 0)]
    assert np.allclose(scores.probabilities(), wanted, atol=1e-6)


def test_extreme_logits_stay_finite() -> None:
    for activation in ("softmax", "sigmoid"):
        (scores,) = bank(logit_scale=1e4, activation=activation).score(vector(1, -1, 0, 0))
        assert np.isfinite(scores.probabilities()).all()


def test_nothing_on_the_list_by_threshold_and_by_background() -> None:
    assert bank(threshold=0.7).score(vector(1, 1, 1, 1))[0].label is None
    assert bank(threshold=0.4).score(vector(1, 1, 1, 1.1))[0].label == "car"
    nothing = LabelBank(("cat",), AXES[:1], "s", background=AXES[1:2])
    assert dataclasses.replace(nothing, margin=0.4).score(vector(2, 1, 0, 0))[0].label == "cat"  # 0.89 above 0.45
    assert dataclasses.replace(nothing, margin=0.5).score(vector(2, 1, 0, 0))[0].label is None
    assert bank(margin=0.5).score(vector(1, 1, 1, 1.1))[0].label == "car"  # there is no background to stand above
    assert nothing.score(vector(1, 2, 0, 0))[0].label is None
    (scores,) = nothing.score(vector(2, 1, 0, 0))
    assert scores.label == "cat"
    assert nothing.score(vector(1, 2, 0, 0))[0].probabilities()[0] < 0.01  # the background took the rest


@pytest.mark.parametrize(("threshold", "margin"), [(None, 0.0), (0.6, 0.0), (None, 0.3), (0.6, 0.3)])
def test_what_is_not_named_never_looks_sure(threshold: float | None, margin: float) -> None:
    one = LabelBank(("cat",), AXES[:1], "s", background=AXES[1:2], threshold=threshold, margin=margin, logit_scale=30)
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (500, 4)).astype(np.float32)
    for scores in one.score(rows / np.linalg.norm(rows, axis=1, keepdims=True)):
        assert (scores.probabilities()[0] > 0.5) == (scores.label is not None)


def test_rows_are_made_unit_and_read_only() -> None:
    made = LabelBank(("a", "b"), AXES[:2] * 7, "s")
    assert np.allclose(np.linalg.norm(made.vectors, axis=1), 1)
    with pytest.raises(ValueError, match="read-only"):
        made.vectors[0, 0] = 2
    with pytest.raises(ValueError, match="read-only"):
        made.score(AXES[:1])[0].values[0] = 2


def test_it_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    made = bank(
        prompts=(("a cat",), ("a dog", "a hound"), ("a cup",), ("a car",)),
        display=("猫", "собака", "כוס", "car"),
        background=AXES[1:3],
        threshold=0.2,
        margin=0.1,
        logit_scale=50.0,
        logit_bias=-1.0,
        activation="sigmoid",
    )
    made.save(tmp_path / "b.safetensors")
    back = LabelBank.load(tmp_path / "b.safetensors")
    for name in ("names", "space", "prompts", "display", "threshold", "margin", "logit_scale", "logit_bias", "activation"):
        assert getattr(back, name) == getattr(made, name), name
    assert np.array_equal(back.vectors, made.vectors)
    assert back.background is not None
    assert made.background is not None
    assert np.array_equal(back.background, made.background)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_only_and_plus() -> None:
    some = bank(display=("Cat", "Dog", "Cup", "Car")).only(["cup", "cat"])
    assert (some.names, some.display) == (("cup", "cat"), ("Cup", "Cat"))
    assert np.array_equal(some.vectors, AXES[[2, 0]])
    both = some.plus(LabelBank(("cat", "tree"), AXES[2:], "s"))
    assert both.names == ("cup", "cat", "tree")
    assert np.array_equal(both.vectors, AXES[[2, 0, 3]])
    with pytest.raises(LabelError, match="no label 'cow'"):
        bank().only(["cow"])
    with pytest.raises(LabelError, match="space other"):
        bank().plus(LabelBank(("x",), AXES[:1], "other"))


@pytest.mark.parametrize(
    ("names", "vectors", "said"),
    [
        ((), np.empty((0, 4), np.float32), "at least one label"),
        (("a", "a"), AXES[:2], "'a' is there twice"),
        (("a",), AXES[:2], "1 labels but 2 vectors"),
        (("a",), AXES[0], "n x dim"),
        (("a",), np.zeros((1, 4)), "zero rows"),
        (("a",), np.full((1, 4), np.nan), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(names: tuple[str, ...], vectors: np.ndarray, said: str) -> None:
    with pytest.raises(LabelError, match=said):
        LabelBank(names, vectors, "s")


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(LabelError, match="n x 4"):
        bank().score(np.ones((1, 5), np.float32))


def test_files_that_are_no_bank(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(LabelError, match="no such file"):
        LabelBank.load(path)
    path.write_text("not a bank")
    with pytest.raises(LabelError, match="not a readable"):
        LabelBank.load(path)
    save_file({"weight": AXES}, path)
    with pytest.raises(LabelError, match="no label bank"):
        LabelBank.load(path)
    bank().save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(LabelError, match="not a readable"):
        LabelBank.load(path)


def test_a_bank_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    old = bank()
    path = old.save(tmp_path / "b.safetensors")
    code = f"""
import resource
import numpy as np
from clipsight.engines import LabelError
from clipsight.labels import LabelBank

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the disk is full part way
try:
    LabelBank(tuple(map(str, range(100))), np.ones((100, 512), np.float32), "s").save({str(path)!r})
except LabelError as error:
    print("told:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"told: {path}: cannot be written (File too large)\n"
    back = LabelBank.load(path)
    assert back.names == old.names
    assert np.array_equal(back.vectors, old.vectors)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_a_bank_for_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="cannot be written"):
        bank().save(tmp_path / "none" / "b.safetensors")


def test_scoring_a_batch_is_scoring_each_and_equals_the_product() -> None:
    rng = np.random.default_rng(0)
    many = LabelBank(tuple(map(str, range(1000))), rng.standard_normal((1000, 512), np.float32), "s")
    vectors = rng.standard_normal((7, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    together = many.score(vectors)
    assert np.allclose(np.stack([s.values for s in together]), vectors @ many.vectors.T, atol=1e-6)
    for row, scores in zip(vectors, together, strict=True):
        assert np.array_equal(many.score(row[None])[0].values, scores.values)


def test_scoring_works_in_the_calling_thread_alone() -> None:
    rng = np.random.default_rng(0)
    many = LabelBank(tuple(map(str, range(10_000))), rng.standard_normal((10_000, 512), np.float32), "s")
    one = many.vectors[:1]
    time.sleep(0.3)  # BLAS threads, which the test before used, go on spinning for a while
    process, thread = time.process_time(), time.thread_time()
    for _ in range(50):
        many.score(one)
    assert time.process_time() - process < 1.15 * (time.thread_time() - thread)


def test_opening(tmp_path: Path) -> None:
    made = bank()
    assert open_bank(made, "demo") is made
    made.save(tmp_path / "b.safetensors")
    assert open_bank(tmp_path / "b.safetensors", "demo").names == made.names
    assert "striped red star" in open_bank("demo", "demo").names
    with pytest.raises(LabelError, match="one of: coco80, demo, everyday"):
        open_bank("everyone", "demo")
    with pytest.raises(LabelError, match="no such file"):
        open_bank(tmp_path / "words.txt", "demo")
    (tmp_path / "words.txt").write_text("\n  \n# only a comment\n")
    with pytest.raises(LabelError, match="holds no labels"):
        open_bank(tmp_path / "words.txt", "demo")
    with pytest.raises(LabelError, match="holds no labels"):
        open_bank(" , ,", "demo")
    assert open_bank("cat, dog", "demo").names == ("cat", "dog")
    assert open_bank("crimson star", "demo").names == ("crimson star",)
    assert open_bank("cat,", "demo").names == ("cat",)
    with pytest.raises(LabelError, match="one word: 'cat,'"):
        open_bank("cat", "demo")
    with pytest.raises(LabelError, match="no such file"):
        open_bank("my words.txt", "demo")


def test_words_for_a_model_without_a_text_tower(tmp_path: Path) -> None:
    for name in ("card.json", "image.onnx"):
        (tmp_path / name).symlink_to(SHIPPED / "demo" / name)
    with pytest.raises(ModelError, match="no text tower"):
        open_bank("cat, dog", tmp_path)


def test_a_list_of_words_may_be_longer_than_a_file_name() -> None:
    assert len(open_bank(", ".join(f"label number {i}" for i in range(100)), "demo")) == 100


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_a_damaged_npz_is_one_line(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v.npz").write_bytes(content)
    assert main(["build", str(tmp_path / "v.npz"), "--model", "demo", "-o", str(tmp_path / "b.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bank_can_be_read_by_others(tmp_path: Path) -> None:
    assert bank().save(tmp_path / "b.safetensors").stat().st_mode & 0o044 == 0o044


def test_real_text_embeddings_load_as_a_bank(real: Path, tmp_path: Path) -> None:
    """171 COCO-Stuff labels of the real ViT-B/16: each is its own best match, and kin are near."""
    ModelCard("vit", "openai-vit-b-16", 224, 512, (0.5,) * 3, (0.5,) * 3).save(tmp_path)
    coco = bank_of_npz(real / "text" / "clip-vitb16" / "coco_stuff171_ensemble.npz", str(tmp_path))
    assert len(coco) == 171
    for name, scores in zip(coco.names, coco.score(coco.vectors), strict=True):
        assert scores.top(1)[0].name == name
        assert scores.top(1)[0].value == pytest.approx(1, abs=1e-3)
    cat = coco.score(coco.vectors[[coco.names.index("cat")]])[0].top(3)
    assert cat[1].name == "dog"


def test_build_and_show(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "imagenet.safetensors"
    npz = real / "encoder" / "imagenet1k_label_matrix.npz"
    assert main(["build", str(npz), "--model", str(real / "encoder"), "-o", str(out)]) == 0
    made = LabelBank.load(out)
    assert len(made) == 1000
    assert "missile (2)" in made.names  # two classes of ImageNet share the word
    assert made.display[made.names.index("missile (2)")] == "missile"
    assert main(["show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "tench" in shown
    assert "nearest:" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["show", "none.safetensors"],
        ["build", "none.npz", "--model", "demo", "-o", "x.safetensors"],
        ["build", "a, b", "--model", "demo", "-o", "none/x.safetensors"],
        ["build", "a, b", "--model", "demo", "-o", "x.txt"],
        ["build", "a, b", "--model", "no-such-model", "-o", "x.safetensors"],
    ],
)
def test_wrong_use_is_one_line_and_status_2(tmp_path: Path, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipsight.labels", *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("clipsight: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
