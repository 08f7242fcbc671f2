"""The torch towers against an independent reference, their tensor names, and what a wrong arch or state dict is told."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipsight.engines import ModelError
from clipsight.engines.export import centered_cosine, random_ids, random_pictures
from clipsight.engines.random_weights import random_card, random_model
from clipsight.engines.towers import ARCHS, CLIP, LayerNorm, VisionShape, find_arch, load, read_arch, shape_of, to_half

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 90, "width": 48, "heads": 3, "layers": 3},
}
IMAGE_ONLY = {key: value for key, value in TINY.items() if key != "text_cfg"}

BLOCK = [
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
    *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"),
]

# openai/CLIP clip/model.py, a model of one layer: `CLIP(...).state_dict()` of its ViT variants.
OPENAI_NAMES = {
    *("positional_embedding", "text_projection", "logit_scale"),
    *("token_embedding.weight", "ln_final.weight", "ln_final.bias"),
    *("visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.conv1.weight"),
    *("visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight", "visual.ln_post.bias"),
    *(f"{tower}transformer.resblocks.0.{name}" for tower in ("visual.", "") for name in BLOCK),
}


def arch(**changes: Any) -> dict[str, Any]:
    """TINY with entries replaced; a name with a dot reaches into a tower's own, None removes."""
    changed = copy.deepcopy(TINY)
    for name, value in changes.items():
        *towers, key = name.split("__")
        place = changed[towers[0]] if towers else changed
        place[key] = value
        if value is None:
            del place[key]
    return changed


class Reference(nn.Module):
    """One tower's blocks from torch's own attention and normalization."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.state, self.prefix, self.heads, self.quick = state, prefix, heads, quick_gelu

    def norm(self, x: Tensor, name: str) -> Tensor:
        norm = nn.LayerNorm(x.shape[-1])
        norm.load_state_dict({key: self.state[f"{self.prefix}{name}.{key}"] for key in ("weight", "bias")})
        return norm(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        layers = {n.split("resblocks.")[1].split(".")[0] for n in self.state if n.startswith(f"{self.prefix}transformer.")}
        for layer in range(len(layers)):
            block = f"transformer.resblocks.{layer}."
            weights = {n: self.state[f"{self.prefix}{block}{n}"] for n in BLOCK}
            attention = nn.MultiheadAttention(x.shape[-1], self.heads, batch_first=True)
            attention.load_state_dict({n[5:]: t for n, t in weights.items() if n.startswith("attn.")})
            h = self.norm(x, f"{block}ln_1")
            x = x + attention(h, h, h, need_weights=False, attn_mask=mask)[0]
            h = nn.functional.linear(self.norm(x, f"{block}ln_2"), weights["mlp.c_fc.weight"], weights["mlp.c_fc.bias"])
            h = h * (1.702 * h).sigmoid() if self.quick else nn.functional.gelu(h)
            x = x + nn.functional.linear(h, weights["mlp.c_proj.weight"], weights["mlp.c_proj.bias"])
        return x


@torch.no_grad()
def reference_image(model: CLIP, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """N x 3 x S x S -> embeddings N x dim and patch embeddings N x g x g x dim."""
    state, vision = model.state_dict(), model.shape.vision
    assert isinstance(vision, VisionShape)
    tower = Reference(state, "visual.", vision.width // vision.head_width, model.shape.quick_gelu)
    patch, grid = vision.patch_size, vision.image_size // vision.patch_size
    cut = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # N x 3 x g x g x p x p
    cut = cut.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), grid * grid, -1)
    x = cut @ state["visual.conv1.weight"].reshape(vision.width, -1).T
    first = state["visual.class_embedding"].repeat(len(pixels), 1, 1)
    x = tower(tower.norm(torch.cat([first, x], 1) + state["visual.positional_embedding"], "ln_pre"))
    embeds = tower.norm(x, "ln_post") @ state["visual.proj"]
    return embeds[:, 0], embeds[:, 1:].reshape(len(pixels), grid, grid, -1)


@torch.no_grad()
def reference_text(model: CLIP, ids: Tensor) -> Tensor:
    state, text = model.state_dict(), model.shape.text
    assert text
    tower = Reference(state, "", text.heads, model.shape.quick_gelu)
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    x = tower(x, torch.full((text.context_length, text.context_length), float("-inf")).triu(1))
    x = tower.norm(x, "ln_final")
    ends = [line.index(max(line)) for line in ids.tolist()]
    embeds: Tensor = torch.stack([row[end] for row, end in zip(x, ends, strict=True)]) @ state["text_projection"]
    return embeds


def same(a: Tensor, b: Tensor) -> None:
    """Float32 sums in another order: a few units in the last place of the largest value, after outliers of forty."""
    assert a.shape == b.shape
    assert centered_cosine(a.numpy(), b.numpy()) > 0.999999
    assert (a - b).abs().max() < 2e-5 * b.abs().max()


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("outliers", [True, False])
def test_both_towers_agree_with_torchs_own_layers(quick: bool, outliers: bool) -> None:
    model = random_model(arch(quick_gelu=quick), 1, outliers)
    pixels, ids = random_pictures(9, 32), random_ids(9, 12, 90)
    with torch.no_grad():
        embeds, patches = model.visual(pixels, patches=True)
        same(model.encode_image(pixels), reference_image(model, pixels)[0])
        same(embeds, reference_image(model, pixels)[0])
        same(patches, reference_image(model, pixels)[1])
        same(model.encode_text(ids), reference_text(model, ids))


def test_quick_gelu_and_exact_gelu_are_told_apart() -> None:
    """Else the test above could not see the flag ignored."""
    quick, exact = (random_model(arch(quick_gelu=quick), 1) for quick in (True, False))
    pixels = random_pictures(8, 32)
    assert centered_cosine(quick.encode_image(pixels).numpy(), exact.encode_image(pixels).numpy()) < 0.99999


def test_words_behind_the_end_token_change_nothing() -> None:
    model, ids = random_model(TINY), random_ids(1, 12, 90)
    ids[0, 5:] = torch.tensor([89, 0, 0, 0, 0, 0, 0])
    other = ids.clone()
    other[0, 6:] = 7
    torch.testing.assert_close(model.encode_text(ids), model.encode_text(other))
    for length in (6, 9):
        torch.testing.assert_close(model.encode_text(ids), model.encode_text(ids[:, :length]))


def test_tensor_names_are_openais() -> None:
    one_layer = arch(vision_cfg__layers=1, text_cfg__layers=1)
    assert set(CLIP(one_layer).state_dict()) == OPENAI_NAMES
    assert set(CLIP({**one_layer, "text_cfg": None}).state_dict()) == {n for n in OPENAI_NAMES if n[:7] == "visual."}


def test_shapes_of_vit_b_16() -> None:
    with torch.device("meta"):
        state = CLIP(ARCHS["ViT-B-16"]).state_dict()
    assert state["visual.conv1.weight"].shape == (768, 3, 16, 16)
    assert state["visual.positional_embedding"].shape == (197, 768)
    assert state["visual.transformer.resblocks.11.attn.in_proj_weight"].shape == (2304, 768)
    assert state["transformer.resblocks.11.mlp.c_fc.weight"].shape == (2048, 512)
    assert state["token_embedding.weight"].shape == (49408, 512)
    assert sum(t.numel() for t in state.values()) == 149_620_737  # what open_clip counts


def test_load_takes_openais_archive() -> None:
    """Its state dict is in half precision and carries three numbers that are no weights."""
    model = random_model(TINY)
    archive = {name: tensor.half() for name, tensor in model.state_dict().items()}
    archive |= {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    loaded = load(TINY, archive)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not loaded.training
    pixels = random_pictures(8, 32)
    assert centered_cosine(loaded.encode_image(pixels).numpy(), model.encode_image(pixels).numpy()) > 0.999


def test_load_names_the_tensor_that_does_not_fit() -> None:
    state = random_model(TINY).state_dict()
    name = "visual.transformer.resblocks.2.ln_1.bias"
    with pytest.raises(ModelError, match=rf"^weights: {name} is missing \(64 expected\); .*correct the card$"):
        load(TINY, {n: t for n, t in state.items() if n != name})
    with pytest.raises(ModelError, match=r"^weights: visual.proj is 64 x 25, the arch says 64 x 24; .*correct the card$"):
        load(TINY, {**state, "visual.proj": torch.zeros(64, 25)})
    with pytest.raises(ModelError, match=r"^weights: logit_bias is not expected; .*correct the card$"):
        load(TINY, {**state, "logit_bias": torch.zeros(())})
    with pytest.raises(ModelError, match=r"^weights: \S+ is not expected; "):
        load(IMAGE_ONLY, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": None}, "'embed_dim' is missing"),
        ({"vision_cfg__width": None}, "'vision_cfg.width' is missing"),
        ({"text_cfg__heads": None}, "'text_cfg.heads' is missing"),
        ({"pool": "avg"}, "'pool' is not known"),
        ({"vision_cfg__mlp_ratio": 3.0}, "'vision_cfg.mlp_ratio' is not known"),
        ({"text_cfg__layers": "3"}, "'text_cfg.layers' must be a whole number of at least 1, not '3'"),
        ({"vision_cfg__layers": True}, "'vision_cfg.layers' must be a whole number"),
        ({"embed_dim": 0}, "'embed_dim' must be a whole number of at least 1, not 0"),
        ({"quick_gelu": 1}, "'quick_gelu' must be true or false, not 1"),
        ({"vision_cfg": 5}, "vision_cfg must be an object"),
        ({"vision_cfg__head_width": 48}, "'vision_cfg.width' 64 must be a multiple of 'head_width' 48"),
        ({"vision_cfg__image_size": 33}, "'vision_cfg.image_size' 33 must be a multiple of 'patch_size' 8"),
        ({"text_cfg__heads": 5}, "'text_cfg.width' 48 must be a multiple of 'heads' 5"),
    ],
)
def test_a_wrong_arch_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_arch(arch(**changes))
    assert f"arch: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arch_defaults_are_open_clips() -> None:
    shape = read_arch(arch(quick_gelu=None, vision_cfg__head_width=None, text_cfg=None))
    assert (shape.quick_gelu, shape.vision.head_width, shape.text) == (False, 64, None)


def test_find_arch_lends_a_copy() -> None:
    find_arch("ViT-B-16")["vision_cfg"]["layers"] = 1
    assert ARCHS["ViT-B-16"]["vision_cfg"]["layers"] == 12
    with pytest.raises(ModelError, match="no arch 'RN50'; use one of ViT-B-16, ViT-B-32"):
        find_arch("RN50")


def test_a_card_must_agree_with_its_arch() -> None:
    card = random_card("tiny", TINY, 0)
    assert shape_of(card) == read_arch(TINY)
    with pytest.raises(ModelError, match=r"'size' is 64, its arch says 'vision_cfg\.image_size' 32"):
        shape_of(dataclasses.replace(card, size=64))
    with pytest.raises(ModelError, match="'dim' is 5, its arch says 'embed_dim' 24"):
        shape_of(dataclasses.replace(card, dim=5))


def test_a_half_tower_stays_right() -> None:
    """LayerNorm's gains stay in float32, everything else is float16, and nothing drowns beside the outliers."""
    model = random_model(TINY)
    half = to_half(copy.deepcopy(model))
    norms = {id(p) for m in half.modules() if isinstance(m, LayerNorm) for p in m.parameters()}
    assert norms
    assert {p.dtype for p in half.parameters() if id(p) in norms} == {torch.float32}
    assert {p.dtype for p in half.parameters() if id(p) not in norms} == {torch.float16}
    pixels, ids = random_pictures(8, 32), random_ids(8, 12, 90)
    image, text = half.encode_image(pixels), half.encode_text(ids)
    assert image.dtype == text.dtype == torch.float16
    assert centered_cosine(image.numpy(), model.encode_image(pixels).numpy()) > 0.999
    assert centered_cosine(text.numpy(), model.encode_text(ids).numpy()) > 0.999


@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_carry_outliers_through_every_block(seed: int) -> None:
    wide = arch(vision_cfg__width=256, vision_cfg__layers=6, text_cfg__width=256, text_cfg__heads=8)
    model = random_model(wide, seed)
    streams: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith("ln_1"):  # it reads the residual stream
            module.register_forward_pre_hook(lambda _m, inputs, name=name: streams.update({name: inputs[0]}))
    with torch.no_grad():
        embeds = model.encode_image(random_pictures(8, 32)), model.encode_text(random_ids(8, 12, 90))
    assert len(streams) == 9
    for name, stream in streams.items():
        sizes = stream.square().mean((0, 1)).sqrt().sort(descending=True).values
        assert 20 < sizes[2] / sizes.median() < 60, name
        assert sizes[0] / sizes.median() < 60, name
        assert sizes[3] / sizes.median() < 10, name
        assert stream.abs().max() < 1000, name  # float16 ends at 65504
    for rows in embeds:  # different pictures, different embeddings
        rows = nn.functional.normalize(rows, dim=1)
        cosines = (rows @ rows.T)[~torch.eye(8, dtype=torch.bool)]
        assert cosines.mean() < 0.95
        assert cosines.max() < 0.995


def test_random_weights_follow_the_seed_and_draw_the_towers_apart() -> None:
    state = random_model(TINY, 3).state_dict()
    for name, tensor in random_model(IMAGE_ONLY, 3).state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not torch.equal(random_model(TINY, 4).state_dict()["visual.proj"], state["visual.proj"])
    assert not torch.equal(random_model(TINY, 4).state_dict()["text_projection"], state["text_projection"])
