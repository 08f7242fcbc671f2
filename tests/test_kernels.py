"""prepare.cu, the preparation on the GPU, run on the processor: PIL's picture to the level, and nothing written elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from simulated_cuda import World, pycuda_driver

from clipsight.engines import Image, ModelCard, prepare
from clipsight.engines.card import Filter, Resize
from clipsight.engines.compiled import nvrtc
from clipsight.engines.compiled.kernels import PTX, Kernels, gain_shift, region

# height, width: cameras, odd ones, smaller than the square, thinner than a filter, a single pixel
SHAPES = [(720, 1280), (1080, 1920), (2160, 3840), (480, 640), (37, 1001), (224, 224), (20, 30), (300, 7), (1, 1)]


def card(resize: Resize = "crop", size: int = 224, filter: Filter = "bicubic") -> ModelCard:
    return ModelCard("k", "k", size, 4, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), resize, filter)


def by_kernels(images: list[Image], card: ModelCard) -> NDArray[np.float32]:
    """Pictures of one size -> what columns and rows make of them, over guarded memory."""
    world = World()
    cuda: Any = pycuda_driver(world)
    cuda.init()
    cuda.Device(0).retain_primary_context().push()
    n, size = len(images), card.size
    part = region(*images[0].shape[:2], size, card.resize, card.filter)
    stream = cuda.Stream(1)
    kernels = Kernels(cuda)

    def put(values: NDArray[Any]) -> Any:
        memory = cuda.mem_alloc(values.nbytes)
        cuda.memcpy_htod(memory, np.ascontiguousarray(values))
        return memory

    frames = put(np.stack([image[part.y0 : part.y1, part.x0 : part.x1] for image in images]))
    mid = cuda.mem_alloc(n * part.height * len(part.columns.lo) * 3)
    pixels = cuda.mem_alloc(n * 3 * size * size * 4)
    tables = [put(values) for table in (part.columns, part.rows) for values in table]
    scale = put(gain_shift(card))
    lo_x, weights_x, lo_y, weights_y = map(int, tables)
    kernels.columns(stream, int(frames), part, lo_x, weights_x, int(mid), n)
    kernels.rows(stream, int(mid), part, lo_y, weights_y, size, int(scale), int(pixels), n)
    pinned = cuda.pagelocked_empty((n, 3, size, size), np.float32)
    cuda.memcpy_dtoh_async(pinned, pixels, stream)
    stream.synchronize()
    result: NDArray[np.float32] = pinned.copy()
    for memory in (frames, mid, pixels, scale, *tables):
        memory.free()
    del pinned, stream, kernels
    cuda.Context.pop()
    assert world.complaints == []
    return result


def levels(pixel_values: NDArray[np.float32], card: ModelCard) -> NDArray[np.float32]:
    """float32 3 x S x S -> 8-bit levels S x S x 3, RGB."""
    mean, std = np.array(card.mean, np.float32), np.array(card.std, np.float32)
    whole: NDArray[np.float32] = np.rint((pixel_values.transpose(1, 2, 0) * std + mean) * 255)
    return whole


def noise(height: int, width: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_one_level_from_prepare_and_none_from_pil(height: int, width: int, resize: Resize) -> None:
    here = card(resize)
    image = noise(height, width)
    given = levels(by_kernels([image], here)[0], here)
    assert np.abs(given - levels(prepare([image], here)[0], here)).max() <= 1
    # In two steps, for Pillow 13 goes rows first where that is less work (a picture made wider and lower).
    whole = PIL.Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
    cubic = PIL.Image.Resampling.BICUBIC
    if resize == "squash":
        assert np.array_equal(given, np.asarray(whole.resize((224, height), cubic).resize((224, 224), cubic)))
    elif resize == "crop":
        short = min(height, width)
        w, h = int(224 * width / short), int(224 * height / short)
        left, top = round((w - 224) / 2), round((h - 224) / 2)
        resized = whole.resize((w, height), cubic).resize((w, h), cubic)
        cropped = resized.crop((left, top, left + 224, top + 224))
        assert np.array_equal(given, np.asarray(cropped))


def test_the_golden_tensors_of_clips_own_preparation(real: Path) -> None:
    golden = np.load(real / "images" / "clip_preprocessed_golden.npz")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    clip = ModelCard("clip", "clip", 224, 512, mean, std)
    for name, wanted in zip(golden["names"], golden["pixel_values"], strict=True):
        with PIL.Image.open(real / "images" / "clip-retrieval-test" / f"{name}.jpg") as file:
            image = np.ascontiguousarray(np.asarray(file.convert("RGB"))[:, :, ::-1])
        assert np.array_equal(levels(by_kernels([image], clip)[0], clip), levels(wanted, clip)), name


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 225, 288])
def test_other_squares_and_filters(size: int, filter: Filter) -> None:
    here = card("crop", size, filter)
    image = noise(250, 333)
    assert np.abs(levels(by_kernels([image], here)[0], here) - levels(prepare([image], here)[0], here)).max() <= 1


def test_each_picture_of_a_batch_by_itself() -> None:
    images = [noise(90, 160, seed) for seed in range(5)]
    together = by_kernels(images, card())
    assert np.array_equal(together, np.concatenate([by_kernels([image], card()) for image in images]))


def test_level_times_gain_plus_shift_is_prepares_to_the_last_bit() -> None:
    """Where nothing is resized both have the same levels, so the normalization alone is compared."""
    image = noise(224, 224)
    assert np.array_equal(by_kernels([image], card()), prepare([image], card()))


def test_only_what_the_model_sees_goes_up() -> None:
    part = region(720, 1280, 224, "crop", "bicubic")
    assert (part.y0, part.y1) == (0, 720)
    assert 720 <= part.width <= 720 + 16  # and the filter's reach on both sides
    assert region(720, 1280, 224, "squash", "bicubic").width == 1280


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_tables_stay_inside_the_frame_and_add_up_to_one(height: int, width: int, resize: Resize) -> None:
    part = region(height, width, 224, resize, "bicubic")
    for table, extent in ((part.rows, part.height), (part.columns, part.width)):
        taps = table.weights.shape[1]
        assert table.lo.min() >= 0
        assert (table.lo + taps).max() <= extent
        assert np.abs(table.weights.sum(1, dtype=np.int64) - 2**22).max() <= taps / 2 + 1
        # the sums of the kernel are 32 bits wide: not even a picture of the worst pixels may leave them
        for worst in (np.maximum(table.weights, 0), np.minimum(table.weights, 0)):
            assert np.abs(255 * worst.sum(1, dtype=np.int64)).max() + 2**21 < 2**31


def test_the_shipped_ptx_is_made_from_the_shipped_source() -> None:
    try:
        compiled = nvrtc.compile_ptx()
    except ImportError as error:
        pytest.skip(str(error))
    assert compiled == PTX.read_bytes(), "prepare.cu has changed: python -m clipsight.engines.compiled.nvrtc"


def test_a_mistake_in_a_kernel_is_the_compilers_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.cu"
    wrong.write_text('extern "C" __global__ void f() { undeclared = 1; }')
    with pytest.raises((RuntimeError, ImportError)) as caught:
        nvrtc.compile_ptx(wrong)
    if isinstance(caught.value, ImportError):
        pytest.skip(str(caught.value))
    assert 'identifier "undeclared" is undefined' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_driver_from_520_on_reads_the_ptx() -> None:
    text = PTX.read_text()
    assert ".version 7.8\n" in text
    assert ".target sm_60\n" in text
    assert "fma" not in text  # see nvrtc: products are not fused with sums
