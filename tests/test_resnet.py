"""ModifiedResNet against open_clip's own, folded and halved, exported, and what a wrong shape is told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from open_clip_reference import open_clip
from torch import nn

from clipsight.engines import ModelCard, ModelError, open_engine
from clipsight.engines.export import centered_cosine, export, random_ids, random_pictures
from clipsight.engines.random_weights import random_card, random_model
from clipsight.engines.towers import CLIP, find_arch, load, read_arch, to_half

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 96, "layers": [2, 1, 3, 1], "width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 90, "width": 64, "heads": 1, "layers": 2},
}


@pytest.fixture(scope="module")
def model() -> CLIP:
    return random_model(SMALL, 3)


def theirs(model: CLIP) -> nn.Module:
    module = open_clip().model
    vision = module.CLIPVisionCfg(image_size=96, layers=(2, 1, 3, 1), width=16, patch_size=None)
    text = module.CLIPTextCfg(context_length=12, vocab_size=90, width=64, heads=1, layers=2)
    reference: nn.Module = module.CLIP(24, vision, text, quick_gelu=True).eval()
    assert reference.state_dict().keys() == model.state_dict().keys()
    reference.load_state_dict(model.state_dict())
    return reference


def test_both_towers_are_open_clips(model: CLIP) -> None:
    reference: Any = theirs(model)
    pictures, ids = random_pictures(6, 96), random_ids(6, 12, 90)
    with torch.inference_mode():
        assert centered_cosine(model.encode_image(pictures).numpy(), reference.encode_image(pictures).numpy()) > 0.999999
        assert centered_cosine(model.encode_text(ids).numpy(), reference.encode_text(ids).numpy()) > 0.999999


def test_shapes_of_rn50x4() -> None:
    with torch.device("meta"):
        model = CLIP(find_arch("RN50x4"))
    state = model.state_dict()
    assert state["visual.attnpool.positional_embedding"].shape == (82, 2560)
    assert state["visual.layer3.9.conv2.weight"].shape == (320, 320, 3, 3)
    assert sum(t.numel() for n, t in state.items() if n.startswith("visual.")) == pytest.approx(87.1e6, rel=0.01)
    assert state["text_projection"].shape == (640, 640)


def test_folding_changes_nothing_but_rounding(model: CLIP) -> None:
    folded = copy.deepcopy(model.visual)
    folded.fold()  # type: ignore[operator]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    pictures = random_pictures(4, 96)
    with torch.inference_mode():
        assert centered_cosine(folded(pictures).numpy(), model.visual(pictures).numpy()) > 0.999999


def test_a_half_tower_stays_right(model: CLIP) -> None:
    half = to_half(copy.deepcopy(model.visual))
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert not list(half.buffers())
    pictures = random_pictures(4, 96)
    with torch.inference_mode():
        assert centered_cosine(half(pictures).float().numpy(), model.visual(pictures).numpy()) > 0.999


def test_a_place_alone_is_what_the_pool_makes_of_one_that_is_everywhere(model: CLIP) -> None:
    """Where all places are alike and have no position, attention can only give what each of them gives."""
    pool: Any = copy.deepcopy(model.visual).attnpool
    with torch.inference_mode():
        pool.positional_embedding.zero_()
        features = torch.randn(2, 512, 1, 1).expand(2, 512, 3, 3)
        embeds, places = pool(features, True)
    assert places.shape == (2, 3, 3, 24)
    assert torch.allclose(places, embeds[:, None, None].expand_as(places), atol=1e-5)


@pytest.fixture(scope="module")
def folder(model: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    figures = export(model, folder, random_card("small", SMALL, 3), patches=True)
    assert figures["image.onnx"] >= 0.99999
    assert figures["image.fp16.onnx"] >= 0.999
    return folder


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_every_runtime_gives_the_towers_vectors(folder: Path, model: CLIP, backend: str) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(3)]
    with open_engine(folder, backend) as engine, torch.inference_mode():
        from clipsight.engines import prepare

        wanted = model.encode_image(torch.from_numpy(prepare(images, ModelCard.load(folder))))
        vectors = engine.encode(images)
    assert (vectors * nn.functional.normalize(wanted, dim=1).numpy()).sum(1).min() > 0.99999


def test_an_exported_graph_has_no_normalization_left_to_compute_in_half(folder: Path) -> None:
    for name in ("image.onnx", "image.fp16.onnx"):
        graph = onnx.load(folder / name).graph
        assert {node.op_type for node in graph.node}.isdisjoint({"BatchNormalization"}), name
        assert [output.name for output in graph.output] == ["image_embeds", "patch_embeds"]


def test_weights_saved_without_counts_of_training_load(model: CLIP) -> None:
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(state) < len(model.state_dict())
    again = load(SMALL, state)
    with torch.inference_mode():
        pictures = random_pictures(1, 96)
        assert torch.equal(again.visual(pictures), model.visual(pictures))


def test_open_clips_own_config_is_read() -> None:
    vision = {**SMALL["vision_cfg"], "patch_size": None}
    assert read_arch({**SMALL, "vision_cfg": vision}) == read_arch(SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [2, 1, 3]}, "'vision_cfg.layers' must be one number, or a ResNet's four"),
        ({"layers": [2, 1, 0, 1]}, r"'vision_cfg.layers\[2\]' must be a whole number of at least 1, not 0"),
        ({"patch_size": 16}, "'vision_cfg.patch_size' is not known"),
        ({"image_size": 100}, "'vision_cfg.image_size' 100 must be a multiple of 'stride' 32"),
        ({"width": 15}, "'vision_cfg.width' 480 must be a multiple of 'head_width' 64"),
    ],
)
def test_a_wrong_shape_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_arch({**SMALL, "vision_cfg": {**SMALL["vision_cfg"], **changes}})
