"""torch every way: eager, TorchScript and compiled, in float32 and in bf16 under autocast, give the towers' vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_export import TINY
from test_resnet import SMALL

from clipsight.engines import BackendError, Image, open_engine
from clipsight.engines.compiled.gate import render
from clipsight.engines.export import export
from clipsight.engines.random_weights import random_card, random_model


@pytest.fixture(scope="module", params=[TINY, SMALL], ids=["vit", "resnet"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    export(random_model(request.param, 1), folder, random_card("small", request.param, 1), ("fp32",))
    return folder


@pytest.fixture(scope="module")
def images() -> list[Image]:
    return render(5, 90, 120)


@pytest.mark.parametrize("backend", ["torch", "torch-script", "torch-compile"])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("bf16", 0.99)])
def test_every_way_gives_the_same_vectors(
    folder: Path, images: list[Image], backend: str, precision: str, least: float
) -> None:
    with open_engine(folder, "onnx") as engine:
        wanted = engine.encode(images)
    try:
        engine = open_engine(folder, backend, precision=precision)  # type: ignore[arg-type]
    except BackendError as error:
        if backend == "torch-compile" and "C++ compiler" in str(error):
            pytest.skip(str(error))
        raise
    with engine:
        assert (engine.encode(images) * wanted).sum(1).min() > least
        assert (engine.encode(images[:1]) * wanted[:1]).sum(1).min() > least
        assert np.allclose(engine.encode(images), engine.encode(images))


@pytest.mark.parametrize("backend", ["torch", "torch-script", "torch-compile"])
def test_fp16_without_a_gpu_is_one_line(folder: Path, backend: str) -> None:
    with pytest.raises(BackendError, match=f"{backend}: fp16 needs a CUDA GPU; add --device 0, or use --precision fp32"):
        open_engine(folder, backend, precision="fp16")
