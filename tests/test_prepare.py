"""`prepare` is CLIP's own preparation, to one 8-bit level."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from clipsight.engines import Image, ImageError, ModelCard, prepare, seen

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
CLIP = ModelCard("clip", "clip", 224, 512, MEAN, STD)
PLAIN = ModelCard("plain", "plain", 224, 512, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def levels(difference: NDArray[np.float32], card: ModelCard) -> NDArray[np.float32]:
    """Normalized values back to 8-bit levels."""
    return np.abs(difference) * 255 * np.array(card.std, np.float32)[:, None, None]


def read(path: Path) -> Image:
    return np.ascontiguousarray(np.asarray(PIL.Image.open(path).convert("RGB"))[:, :, ::-1])


def by_pil(image: Image, size: int, width: int, height: int, filter: PIL.Image.Resampling) -> NDArray[np.uint8]:
    """PIL's own resize to width x height, then torchvision's center crop; RGB."""
    whole = PIL.Image.fromarray(image[:, :, ::-1]).resize((width, height), filter)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(whole.crop((left, top, left + size, top + size)))


def test_the_golden_tensors_of_clip(real: Path) -> None:
    golden = np.load(real / "images" / "clip_preprocessed_golden.npz")
    assert len(golden["names"]) == 4
    for name, wanted in zip(golden["names"], golden["pixel_values"], strict=True):
        got = prepare([read(real / "images" / "clip-retrieval-test" / f"{name}.jpg")], CLIP)[0]
        off = levels(got - wanted, CLIP)
        assert off.max() < 1.01, name
        assert (off > 0.5).mean() < 1e-3, name


@pytest.mark.parametrize("shape", [(720, 1280), (1280, 720), (144, 176), (224, 224), (225, 223), (37, 1000), (480, 641)])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_crop_is_pil_and_center_crop(shape: tuple[int, int], filter: str) -> None:
    image = smooth_noise(*shape)
    height, width = shape
    long = int(224 * max(shape) / min(shape))
    h, w = (224, long) if height <= width else (long, 224)
    wanted = by_pil(image, 224, w, h, PIL.Image.Resampling[filter.upper()])
    got = prepare([image], dataclasses.replace(PLAIN, filter=filter))[0] * 255  # type: ignore[arg-type]
    off = np.abs(got - wanted.transpose(2, 0, 1))
    assert off.max() < 1.01
    # Where the ratio is a small fraction (144 to 224, bilinear) many values lie at an exact half, and float32 decides
    # some of them the other way than PIL's 22-bit fixed point.
    assert (off > 0.5).mean() < (0.02 if filter == "bilinear" else 1e-3)


def test_squash_is_pil_without_a_crop() -> None:
    image = smooth_noise(360, 640)
    wanted = by_pil(image, 224, 224, 224, PIL.Image.Resampling.BICUBIC)
    got = prepare([image], dataclasses.replace(PLAIN, resize="squash"))[0] * 255
    assert np.abs(got - wanted.transpose(2, 0, 1)).max() < 1.01


def test_pad_keeps_the_whole_frame_between_bars_of_the_mean() -> None:
    image = smooth_noise(360, 640)
    got = prepare([image], dataclasses.replace(CLIP, resize="pad"))[0]
    rows = int(224 * 360 / 640)
    top = (224 - rows) // 2
    wanted = np.asarray(PIL.Image.fromarray(image[:, :, ::-1]).resize((224, rows), PIL.Image.Resampling.BICUBIC))
    inside = (wanted / 255 - np.array(MEAN)) / np.array(STD)
    assert levels(got[:, top : top + rows] - inside.transpose(2, 0, 1).astype(np.float32), CLIP).max() < 1.01
    assert not got[:, :top].any()
    assert not got[:, top + rows :].any()


def test_channels_are_turned_to_rgb() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    image[:, :, 0] = 255  # blue
    got = prepare([image], PLAIN)[0]
    assert np.allclose(got[2], 1, atol=1e-6)
    assert not got[:2].any()


def test_a_batch_of_mixed_sizes_is_each_by_itself_and_the_input_stays() -> None:
    images = [smooth_noise(100, 300), smooth_noise(300, 100), smooth_noise(224, 224)]
    before = [i.copy() for i in images]
    together = prepare(images, CLIP)
    assert together.shape == (3, 3, 224, 224)
    assert together.dtype == np.float32
    for i, image in enumerate(images):
        assert np.array_equal(together[i], prepare([image], CLIP)[0])
        assert np.array_equal(image, before[i])
    assert prepare([], CLIP).shape == (0, 3, 224, 224)


def test_strided_and_read_only_frames_are_taken() -> None:
    wide = smooth_noise(200, 400)
    view = wide[:, ::2]
    view.flags.writeable = False
    assert np.array_equal(prepare([view], CLIP), prepare([view.copy()], CLIP))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
        "picture.jpg",
    ],
)
def test_anything_else_is_refused_in_one_line(wrong: object) -> None:
    with pytest.raises(ImageError) as caught:
        prepare([wrong], CLIP)  # type: ignore[list-item]
    assert "\n" not in str(caught.value)


def test_it_works_in_the_calling_thread_alone() -> None:
    """A pool would show as CPU time of the process that is not the thread's; beside an encoder it costs ten times as much."""
    image = smooth_noise(720, 1280)
    for _ in range(3):
        prepare([image], CLIP)
    process, thread = time.process_time(), time.thread_time()
    for _ in range(40):
        prepare([image], CLIP)
    assert time.process_time() - process < 1.15 * (time.thread_time() - thread)


def test_what_the_model_sees() -> None:
    assert seen(720, 1280, CLIP) == (280, 0, 1000, 720)
    assert seen(1280, 720, CLIP) == (0, 280, 720, 1000)
    assert seen(720, 1280, dataclasses.replace(CLIP, resize="squash")) == (0, 0, 1280, 720)
    assert seen(720, 1280, dataclasses.replace(CLIP, resize="pad")) == (0, 0, 1280, 720)


def smooth_noise(height: int, width: int) -> Image:
    """A picture with edges and smooth parts, the same each time."""
    rng = np.random.default_rng(height * 10_000 + width)
    coarse = rng.integers(0, 256, (height // 20 + 2, width // 20 + 2, 3), np.uint8)
    big = np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(int)
    return np.clip(big + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)
