"""The gate: what is not the model does not pass, on the pictures drawn here or on the user's own."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_building import refused
from test_engines import TINY, export_random, graph_of, pictures

from clipsight.engines import BackendError, Image, ModelCard, ModelError
from clipsight.engines.compiled import building, gate
from clipsight.engines.onnx_engine import OnnxEngine
from clipsight.engines.pictures import pictures_in
from clipsight.engines.registry import SHIPPED


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_random(tmp_path_factory.mktemp("tiny"), "tiny", TINY)


@pytest.fixture(scope="module")
def rendered() -> list[Image]:
    return gate.render()


@pytest.fixture
def again(rendered: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures, but not drawn once more."""
    monkeypatch.setattr(gate, "render", lambda: rendered)


def test_pictures_are_the_same_each_time_and_differ_from_each_other(rendered: list[Image]) -> None:
    assert len(rendered) == 64
    assert all(np.array_equal(a, b) for a, b in zip(rendered, gate.render(), strict=True))
    assert {(image.shape, image.dtype.name) for image in rendered} == {((270, 360, 3), "uint8")}
    small = np.stack([image[::9, ::9].reshape(-1) for image in rendered]).astype(np.float32)
    distances = np.abs(small[:, None] - small[None]).mean(-1) + 255 * np.eye(64)
    assert distances.min() > 8  # levels of 255
    assert min(image.std() for image in rendered) > 15


Encode = Callable[[Sequence[Image]], NDArray[np.float32]]


def checked(encode: Encode, folder: Path, precision: str = "fp16", own: Sequence[Image] = (), **options: Any) -> gate.Figures:
    return gate.check(encode, folder, ModelCard.load(folder), precision, own, **options)


def test_the_model_itself_passes_and_its_batches_are_kept_to(tiny: Path, again: None) -> None:
    sizes: list[int] = []
    with OnnxEngine(tiny, ModelCard.load(tiny)) as engine:

        def encode(images: Sequence[Image]) -> NDArray[np.float32]:
            sizes.append(len(images))
            return engine.encode(images)

        figures = checked(encode, tiny, "fp32", pictures(2), at_once=20)
    assert figures.cosine > 0.99999
    assert figures.agreement == 1
    assert figures.pictures == 66
    assert sizes == [1] * 66 + [20, 20, 20, 6]


@pytest.mark.parametrize("wrong", ["alone", "in a batch"])
def test_a_plan_that_is_wrong_in_one_of_its_profiles_fails(tiny: Path, wrong: str, again: None) -> None:
    """A camera's pictures come one by one, a file's in batches, and a plan has kernels for either."""
    with OnnxEngine(tiny, ModelCard.load(tiny)) as engine:

        def encode(images: Sequence[Image]) -> NDArray[np.float32]:
            vectors = engine.encode(images)
            return vectors[:, ::-1] if (len(images) == 1) == (wrong == "alone") else vectors

        assert "centered cosine" in refused(BackendError, lambda: checked(encode, tiny))


def test_labels_that_are_as_good_as_each_other_are_the_same(wanted: NDArray[np.float32]) -> None:
    """Off by less than the tie everywhere, with labels drawn so thick that many are nearer than that to each other."""
    rng = np.random.default_rng(5)
    few = wanted[:, :3] / np.linalg.norm(wanted[:, :3], axis=1, keepdims=True)
    off = few + rng.normal(0, 2e-4, few.shape).astype(np.float32)
    assert gate.compare(few, off).agreement > 0.99


@pytest.mark.parametrize("precision", building.PRECISIONS)
def test_what_is_not_the_model_fails(tiny: Path, precision: str, again: None, tmp_path: Path) -> None:
    from clipsight.engines.export import export
    from clipsight.engines.random_weights import random_card, random_model

    export(random_model(TINY, 1), tmp_path, random_card("tiny", TINY, 1), ["fp32"])
    with OnnxEngine(tiny, ModelCard.load(tiny)) as right, OnnxEngine(tmp_path, ModelCard.load(tmp_path)) as another:

        def shifted(images: Sequence[Image]) -> NDArray[np.float32]:
            return np.roll(right.encode(images), 1, axis=0)

        def colors_exchanged(images: Sequence[Image]) -> NDArray[np.float32]:
            return right.encode([np.ascontiguousarray(image[:, :, ::-1]) for image in images])

        for encode in (another.encode, shifted, colors_exchanged):
            said = refused(BackendError, lambda e=encode: checked(e, tiny, precision))  # type: ignore[misc]
            assert re.fullmatch(
                rf"the plan of random-tiny-0 in {precision} is not the model: centered cosine to ONNX Runtime fp32 is "
                rf"-?\d\.\d{{4}}, at least {gate.LIMITS[precision][0]} is needed; it was not kept; use .*--engine onnx",
                said,
            )


def test_the_users_own_pictures_count(tiny: Path, again: None) -> None:
    own = pictures(2)
    with OnnxEngine(tiny, ModelCard.load(tiny)) as engine:

        def wrong_for_one(images: Sequence[Image]) -> NDArray[np.float32]:
            return engine.encode([image if image is not own[1] else np.zeros_like(image) for image in images])

        assert checked(wrong_for_one, tiny).pictures == 64
        assert "centered cosine" in refused(BackendError, lambda: checked(wrong_for_one, tiny, own=own))


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float32]:
    """Vectors that stand for the model's, so that those beside them can be off by a known amount."""
    vectors = np.random.default_rng(3).standard_normal((64, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr(gate, "_reference", lambda *_: vectors)
    return vectors


def turned(wanted: NDArray[np.float32], rows: Sequence[int], cosine: float) -> NDArray[np.float32]:
    """`wanted` with the centered vectors of `rows` turned until their centered cosine is this."""
    mean = wanted.mean(0, dtype=np.float64)
    given = wanted.astype(np.float64)
    rng = np.random.default_rng(4)
    for row in rows:
        centered = given[row] - mean
        aside = rng.standard_normal(512)
        aside -= centered * (aside @ centered) / (centered @ centered)
        aside *= np.linalg.norm(centered) / np.linalg.norm(aside)
        given[row] = mean + cosine * centered + math.sqrt(1 - cosine**2) * aside
    return given.astype(np.float32)


def given(vectors: NDArray[np.float32]) -> Encode:
    """Gives the rows one after the other, however many pictures come at once, and again from the first."""
    rows = itertools.cycle(vectors)
    return lambda images: np.stack(list(itertools.islice(rows, len(images))))


@pytest.mark.parametrize("precision", building.PRECISIONS)
def test_one_picture_that_is_just_over_the_limit(wanted: NDArray[np.float32], precision: str, again: None) -> None:
    least, _ = gate.LIMITS[precision]
    step = (1 - least) / 5
    passed = checked(given(turned(wanted, [7], least + step)), SHIPPED / "demo", precision, at_once=64)
    assert passed.cosine == pytest.approx(least + step, abs=step / 10)
    off = given(turned(wanted, [7], least - step))
    said = refused(BackendError, lambda: checked(off, SHIPPED / "demo", precision, at_once=64))
    assert f"centered cosine to ONNX Runtime fp32 is {least - step:.4f}, at least {least} is needed" in said


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_all_pictures_a_little_off_give_other_labels(wanted: NDArray[np.float32], precision: str, again: None) -> None:
    cosine, least = gate.LIMITS[precision]
    off = given(turned(wanted, range(64), cosine + 0.002))
    said = refused(BackendError, lambda: checked(off, SHIPPED / "demo", precision, at_once=64))
    assert re.search(rf"label agreement to ONNX Runtime fp32 is 0\.\d+, at least {least} is needed", said)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_vectors_that_are_no_numbers_fail(wanted: NDArray[np.float32], value: float, everywhere: bool, again: None) -> None:
    off = wanted.copy()
    off[slice(None) if everywhere else 9, 3] = value
    said = refused(BackendError, lambda: checked(given(off), SHIPPED / "demo", "bf16", at_once=64))
    assert "centered cosine to ONNX Runtime fp32 is nan, at least 0.95 is needed" in said


def test_identical_vectors_and_a_shift_of_all(wanted: NDArray[np.float32]) -> None:
    same = gate.compare(wanted, wanted)
    assert same.cosine == pytest.approx(1, abs=1e-6)
    assert same.agreement == 1
    assert gate.compare(wanted, wanted + np.float32(0.05)).cosine < 0.95  # one mean for both, so it counts


def test_a_folder_without_a_graph_to_compare_with(tmp_path: Path, again: None) -> None:
    graph_of(tmp_path, 1.0)
    (tmp_path / "image.onnx").unlink()
    said = refused(ModelError, lambda: checked(given(np.zeros((64, 3), np.float32)), tmp_path))
    assert str(tmp_path) in said
    assert "image.onnx is not there" in said


def test_the_users_own_pictures_are_read(tmp_path: Path) -> None:
    image = pictures(1)[0]
    (tmp_path / "deeper").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), image)
    cv2.imwrite(str(tmp_path / "deeper" / "b.png"), image[:, :, 0])
    cv2.imwrite(str(tmp_path / "c.jpg"), image)
    (tmp_path / "notes.txt").write_text("no picture")
    color, jpeg, gray = pictures_in(tmp_path)
    assert np.array_equal(color, image)
    assert gray.shape == jpeg.shape == image.shape
    assert all(one.dtype == np.uint8 for one in (color, jpeg, gray))


@pytest.mark.parametrize("what", ["empty", "absent", "a file", "only text"])
def test_a_folder_without_pictures_is_one_line(tmp_path: Path, what: str) -> None:
    folder = tmp_path / what
    if what == "a file":
        folder.touch()
    elif what != "absent":
        folder.mkdir()
    if what == "only text":
        (folder / "a.jpg").write_text("no JPEG")
    said = refused(ModelError, lambda: pictures_in(folder))
    assert said == f"{folder}: no picture in it can be read; give a folder of JPEG or PNG files"
