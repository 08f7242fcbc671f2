"""open_clip's NAME:TAG: licenses, what is said of wrong names, and model folders that give open_clip's own vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from open_clip_reference import open_clip

from clipsight.engines import ModelCard, ModelError, open_engine, prepare
from clipsight.engines.__main__ import main
from clipsight.engines.compiled.gate import render
from clipsight.engines.export import random_ids
from clipsight.engines.obtaining import obtain
from clipsight.engines.open_clip_models import is_free, license_of, make_other, split
from clipsight.labels import LabelBank

SIGLIP = "ViT-B-16-SigLIP:webli"


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CLIPSIGHT_CACHE", str(tmp_path / "cache"))
    return open_clip()


@pytest.mark.parametrize(
    ("tag", "license", "free"),
    [
        ("openai", "MIT", True),
        ("laion2b_s34b_b88k", "MIT", True),
        ("datacomp_xl_s13b_b90k", "MIT", True),
        ("datacomp1b", "Apache-2.0", True),
        ("datacompdr_lt", "Apple, research only", False),
        ("dfn2b", "Apple, research only", False),
        ("metaclip_400m", "CC-BY-NC-4.0", False),
        ("meta", "Apache-2.0", True),
        ("webli", "Apache-2.0", True),
        ("yfcc15m", "not stated", False),
    ],
)
def test_licenses(tag: str, license: str, free: bool) -> None:
    assert license_of(tag) == license
    assert is_free(license) is free


def test_a_license_that_does_not_allow_everything_has_to_be_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "ViT-B-16:dfn2b"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "its license (Apple, research only) does not allow every use" in said
    assert said.endswith("python -m clipsight.engines fetch ViT-B-16:dfn2b --accept-license")


def test_names_and_tags_that_are_none() -> None:
    assert split("ViT-B-16:laion2b_s34b_b88k") == ("ViT-B-16", "laion2b_s34b_b88k")
    with pytest.raises(ModelError, match="open_clip knows no model 'ViT-B-17'"):
        split("ViT-B-17:openai")
    with pytest.raises(
        ModelError, match="no weights 'laion3b' of ViT-B-16; use one of ViT-B-16:openai, ViT-B-16:laion400m_e31"
    ):
        split("ViT-B-16:laion3b")


def test_without_a_network_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*_: object, **__: object) -> str:
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(open_clip(), "download_pretrained", refuse)
    with pytest.raises(ModelError) as caught:
        obtain("ViT-B-16:laion2b_s34b_b88k")
    assert "cannot be fetched from laion/CLIP-ViT-B-16-laion2B-s34B-b88K/ (Name or service not known)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model of open_clip's under the name of one that it knows, its weights where open_clip would have fetched them."""
    torch.manual_seed(2)
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    model = open_clip().model.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    monkeypatch.setattr(open_clip(), "download_pretrained", lambda *_, **__: str(tmp_path / "weights.bin"))
    return model


def test_weights_of_our_towers_take_our_way(tiny: Any, tmp_path: Path) -> None:
    folder = obtain("ViT-B-16:laion2b_s34b_b88k")
    assert folder == tmp_path / "cache" / "models" / "ViT-B-16--laion2b_s34b_b88k"
    card = ModelCard.load(folder)
    assert (card.id, card.space, card.license) == ("ViT-B-16:laion2b_s34b_b88k", "ViT-B-16/laion2b_s34b_b88k", "MIT")
    images = render(4, 60, 80)
    pixels = torch.from_numpy(prepare(images, card))
    with torch.inference_mode():
        wanted = tiny.encode_image(pixels, normalize=True).numpy()
    for backend in ("onnx", "torch"):
        with open_engine("ViT-B-16:laion2b_s34b_b88k", backend) as engine:
            assert (engine.encode(images) * wanted).sum(1).min() > 0.99999


def test_siglip_in_true_shape_is_exported_from_its_own_forward(tmp_path: Path) -> None:
    torch.manual_seed(3)
    figures = make_other(SIGLIP, tmp_path / "siglip", None)
    assert set(figures) == {"image.onnx", "text.onnx"}
    assert min(figures.values()) >= 0.99999
    card = ModelCard.load(tmp_path / "siglip")
    assert (card.size, card.dim, card.resize, card.context_length) == (224, 768, "squash", 64)
    assert (card.activation, card.mean, card.logit_bias) == ("sigmoid", (0.5, 0.5, 0.5), -10.0)
    torch.manual_seed(3)
    model = open_clip().create_model("ViT-B-16-SigLIP", load_weights=False).eval()
    images = render(3, 120, 160)
    pixels = torch.from_numpy(prepare(images, card))
    ids = random_ids(4, 64, 32000)
    with torch.inference_mode():
        wanted, words = model.encode_image(pixels, normalize=True).numpy(), model.encode_text(ids).numpy()
    for backend in ("onnx", "openvino"):
        with open_engine(tmp_path / "siglip", backend) as engine:
            vectors = engine.encode(images)
            assert (vectors * wanted).sum(1).min() > 0.99999
    session = onnxruntime.InferenceSession(str(tmp_path / "siglip" / "text.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.run(["text_embeds"], {"input_ids": ids.numpy()})
    assert np.allclose(given, words, atol=1e-4)
    bank = LabelBank(
        ("a", "b"), words[:2], card.space, logit_scale=card.logit_scale, logit_bias=card.logit_bias, activation="sigmoid"
    )
    (scores,) = dataclasses.replace(bank).score(vectors[:1])
    expected = 1 / (1 + np.exp(-(card.logit_scale * scores.values + card.logit_bias)))
    assert np.allclose(scores.probabilities(), expected, atol=1e-6)
