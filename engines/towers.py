"""The two towers of the OpenAI CLIP family in torch: pixels or token ids in, embeddings out, not normalized.

Tensor names are OpenAI's and open_clip's, so either's state dict loads as it is. What differs is only how it is computed:

* Attention is written out and q is scaled before q @ k^T. TensorRT gives wrong results for the pattern that exported
  `scaled_dot_product_attention` leaves, and right ones for this.
* LayerNorm and softmax compute in float32 whatever the weights' type, so that `half` leaves a model that is still right.
  In a float32 model no cast is traced, so none is exported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from .card import ModelCard
from .errors import ModelError
from .resnet import ModifiedResNet, ResNetShape

M = TypeVar("M", bound=nn.Module)

# Shapes in open_clip's own config layout, as `card.arch` holds them.
_TEXT_B = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
ARCHS: dict[str, dict[str, Any]] = {
    f"ViT-B-{patch}": {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": patch},
        "text_cfg": _TEXT_B,
    }
    for patch in (16, 32)
}
ARCHS["RN50x4"] = {
    "embed_dim": 640,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 288, "layers": [4, 6, 10, 6], "width": 80},
    "text_cfg": {**_TEXT_B, "width": 640, "heads": 10},
}


def find_arch(name: str) -> dict[str, Any]:
    """A copy of the entry of `ARCHS`; raises `ModelError` naming those there are."""
    if name not in ARCHS:
        raise ModelError(f"no arch {name!r}; use one of {', '.join(ARCHS)}")
    return copy.deepcopy(ARCHS[name])


class VisionShape(NamedTuple):
    image_size: int
    layers: int
    width: int
    patch_size: int
    head_width: int = 64


class TextShape(NamedTuple):
    context_length: int
    vocab_size: int
    width: int
    heads: int
    layers: int


class Shape(NamedTuple):
    """`arch`, checked."""

    embed_dim: int
    quick_gelu: bool
    vision: VisionShape | ResNetShape
    text: TextShape | None


def read_arch(arch: Mapping[str, Any]) -> Shape:
    """Check an `arch` mapping (open_clip's config layout); raise `ModelError` naming the key that is wrong.

    `quick_gelu` is false where it is left out, as in open_clip; without `text_cfg` there is no text tower.
    """
    _check_keys("", arch, ("embed_dim", "vision_cfg"), ("quick_gelu", "text_cfg"))
    quick = arch.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ModelError(f"arch: 'quick_gelu' must be true or false, not {quick!r}")
    dim = _count("embed_dim", arch["embed_dim"])
    vision = _read_vision(arch["vision_cfg"])
    text_cfg = arch.get("text_cfg")
    text = None if text_cfg is None else TextShape(**_counts("text_cfg", text_cfg, TextShape))
    if isinstance(vision, ResNetShape):
        divisions = [("vision_cfg.width", 32 * vision.width, "head_width", vision.head_width)]
        divisions.append(("vision_cfg.image_size", vision.image_size, "stride", 32))
    else:
        divisions = [("vision_cfg.width", vision.width, "head_width", vision.head_width)]
        divisions.append(("vision_cfg.image_size", vision.image_size, "patch_size", vision.patch_size))
    if text:
        divisions.append(("text_cfg.width", text.width, "heads", text.heads))
    for name, value, by, divisor in divisions:
        if value % divisor:
            raise ModelError(f"arch: '{name}' {value} must be a multiple of '{by}' {divisor}; correct one of them")
    return Shape(dim, quick, vision, text)


def shape_of(card: ModelCard) -> Shape:
    """The card's `arch`, checked, and held to what else the card says; raises `ModelError`."""
    shape = read_arch(card.arch)
    pairs = [("size", card.size, "vision_cfg.image_size", shape.vision.image_size)]
    pairs.append(("dim", card.dim, "embed_dim", shape.embed_dim))
    for field, value, key, arch_value in pairs:
        if value != arch_value:
            raise ModelError(f"card: '{field}' is {value}, its arch says '{key}' {arch_value}; correct one of them")
    return shape


class CLIP(nn.Module):
    """Both towers, or the image tower alone where `arch` has no `text_cfg`. Weights are not set: see `load`."""

    def __init__(self, arch: Mapping[str, Any]) -> None:
        super().__init__()
        shape = read_arch(arch)
        self.shape = shape
        self.visual: VisionTransformer | ModifiedResNet
        self.causal_mask: Tensor
        if isinstance(shape.vision, ResNetShape):
            self.visual = ModifiedResNet(shape.vision, shape.embed_dim)
        else:
            self.visual = VisionTransformer(shape.vision, shape.embed_dim, shape.quick_gelu)
        if shape.text:
            text = shape.text
            self.token_embedding = nn.Embedding(text.vocab_size, text.width)
            self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
            self.transformer = Transformer(text.width, text.layers, text.heads, None, shape.quick_gelu)
            self.ln_final = LayerNorm(text.width)
            self.text_projection = nn.Parameter(torch.empty(text.width, shape.embed_dim))
            self.logit_scale = nn.Parameter(torch.empty(()))
            # On the CPU even while the rest is built on "meta": it is not in the state dict that fills the rest.
            mask = torch.full((text.context_length, text.context_length), float("-inf"), device="cpu").triu(1)
            self.register_buffer("causal_mask", mask, persistent=False)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """N x 3 x S x S -> N x dim."""
        embeds: Tensor = self.visual(pixel_values)
        return embeds

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """int64 n x L, L up to context_length -> n x dim; what stands behind the end token, zeros in CLIP, changes nothing."""
        length = input_ids.shape[1]
        x = self.token_embedding(input_ids) + self.positional_embedding[:length]  # n x L x width
        x = self.ln_final(self.transformer(x, self.causal_mask[:length, :length]))
        # The end token has the highest id of the vocabulary, so argmax finds where each text ends.
        ends = input_ids.argmax(dim=-1)[:, None, None].expand(-1, 1, x.shape[2])
        embeds: Tensor = x.gather(1, ends)[:, 0] @ self.text_projection
        return embeds


class VisionTransformer(nn.Module):
    """N x 3 x S x S -> N x dim; with `patches` also the patch tokens' N x g x g x dim, put through the same projection."""

    def __init__(self, shape: VisionShape, embed_dim: int, quick_gelu: bool) -> None:
        super().__init__()
        self.width, self.grid = shape.width, shape.image_size // shape.patch_size
        width, tokens = shape.width, self.grid**2 + 1
        self.conv1 = nn.Conv2d(3, width, shape.patch_size, shape.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, shape.layers, width // shape.head_width, tokens, quick_gelu)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, pixel_values: Tensor, patches: bool = False) -> Any:
        x = self.conv1(cast(pixel_values, self.conv1.weight.dtype))  # N x width x g x g
        x = x.reshape(-1, self.width, self.grid**2).transpose(1, 2)
        start = self.class_embedding.expand(x.shape[0], 1, self.width)
        x = self.ln_pre(torch.cat([start, x], 1) + self.positional_embedding)  # N x 1+g*g x width
        x = self.transformer(x, first_only=not patches)
        embeds = self.ln_post(x[:, 0]) @ self.proj
        if not patches:
            return embeds
        return embeds, (self.ln_post(x[:, 1:]) @ self.proj).reshape(-1, self.grid, self.grid, self.proj.shape[1])


class Transformer(nn.Module):
    """tokens: how many there always are, or None where their number is read off the input."""

    def __init__(self, width: int, layers: int, heads: int, tokens: int | None, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, tokens, quick_gelu) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, first_only: bool = False) -> Tensor:
        """n x L x width -> the same, or n x 1 x width where only the first token is asked for."""
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x, mask)
        return last(x, mask, first_only)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, tokens: int | None, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads, tokens)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width, quick_gelu)

    def forward(self, x: Tensor, mask: Tensor | None = None, first_only: bool = False) -> Tensor:
        x = (x[:, :1] if first_only else x) + self.attn(self.ln_1(x), mask, first_only)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention with `nn.MultiheadAttention`'s tensor names."""

    def __init__(self, width: int, heads: int, tokens: int | None) -> None:
        super().__init__()
        # Numbers, not sizes read off the input: an exported graph then has constant shapes instead of arithmetic on them.
        # Texts alone are of many lengths, and their graph never meets TensorRT.
        self.width, self.tokens, self.heads, self.head_width = width, tokens, heads, width // heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, first_only: bool = False) -> Tensor:
        w, b, width = self.in_proj_weight, self.in_proj_bias, self.width
        tokens = self.tokens or x.shape[1]
        if first_only:  # in the last block nothing reads the other tokens: 7 % of ViT-B's arithmetic
            q = F.linear(x[:, :1], w[:width], b[:width])
            k, v = torch.split(F.linear(x, w[width:], b[width:]), width, 2)
        else:
            q, k, v = torch.split(F.linear(x, w, b), width, 2)  # each n x L x width
        asked = 1 if first_only else tokens
        scores = (self._by_head(q, asked) * self.head_width**-0.5) @ self._by_head(k, tokens).transpose(2, 3)
        scores = cast(scores, torch.float32)  # n x heads x L x L
        if mask is not None:
            scores = scores + mask
        mixed = cast(scores.softmax(-1), x.dtype) @ self._by_head(v, tokens)
        mixed = mixed.transpose(1, 2).reshape(-1, asked, width)
        return self.out_proj(mixed)  # type: ignore[no-any-return]

    def _by_head(self, x: Tensor, tokens: int) -> Tensor:
        """n x L x width -> n x heads x L x head_width."""
        return x.reshape(-1, tokens, self.heads, self.head_width).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.quick = quick_gelu
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        x = x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x)
        return self.c_proj(x)  # type: ignore[no-any-return]


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = cast(self.weight, torch.float32), cast(self.bias, torch.float32)
        return cast(F.layer_norm(cast(x, torch.float32), self.normalized_shape, weight, bias, self.eps), x.dtype)


def to_half(module: M) -> M:
    """Turn a tower to float16 in place; LayerNorm keeps its gains in float32, in which it computes anyway."""
    if isinstance(module, ModifiedResNet):
        module.fold()
    for child in module.modules():
        if not isinstance(child, LayerNorm):
            for name, parameter in child.named_parameters(recurse=False):
                setattr(child, name, nn.Parameter(parameter.half(), requires_grad=False))
    return module


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, without leaving a trace in an exported graph where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def load(arch: Mapping[str, Any], state: Mapping[str, Tensor]) -> CLIP:
    """Build the towers of `arch` around the tensors of `state`, as float32, for inference.

    `state` is OpenAI's or open_clip's state dict of that shape; the three numbers that OpenAI's own archives carry beside
    the weights are left out. Its float32 tensors are used as they are, not copied. Raises `ModelError` naming the first
    tensor that is missing, not expected or of another shape.
    """
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        model = CLIP(arch)
    given = {n: t for n, t in state.items() if n not in ("input_resolution", "context_length", "vocab_size")}
    expected = model.state_dict()
    for name in expected:  # how long a BatchNorm was trained: of no use, and left out by some who save weights
        if name.endswith("num_batches_tracked"):
            given[name] = torch.zeros((), dtype=torch.int64)
    hint = "the weights are of another 'arch': correct the card"
    for name, tensor in expected.items():
        if name not in given:
            raise ModelError(f"weights: {name} is missing ({_by(tensor)} expected); {hint}")
        if given[name].shape != tensor.shape:
            raise ModelError(f"weights: {name} is {_by(given[name])}, the arch says {_by(tensor)}; {hint}")
    for name in given:
        if name not in expected:
            raise ModelError(f"weights: {name} is not expected; {hint}")
    model.load_state_dict(given, strict=True, assign=True)
    return model.float().requires_grad_(False).eval()


def _by(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _read_vision(given: object) -> VisionShape | ResNetShape:
    """A ResNet's `layers` are the numbers of blocks of its four stages; open_clip's files give it a patch_size of null."""
    layers = given.get("layers") if isinstance(given, Mapping) else None
    if not isinstance(layers, list | tuple):
        return VisionShape(**_counts("vision_cfg", given, VisionShape))
    if len(layers) != 4:
        raise ModelError(f"arch: 'vision_cfg.layers' must be one number, or a ResNet's four, not {list(layers)}")
    assert isinstance(given, Mapping)
    rest = {name: value for name, value in given.items() if (name, value) != ("patch_size", None)} | {"layers": 1}
    counts = _counts("vision_cfg", rest, ResNetShape)
    stages = tuple(_count(f"vision_cfg.layers[{i}]", n) for i, n in enumerate(layers))
    return ResNetShape(**{**counts, "layers": stages})  # type: ignore[arg-type]


def _check_keys(where: str, given: object, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    if not isinstance(given, Mapping):
        raise ModelError(f"arch: {where or 'it'} must be an object of names and numbers, not {given!r}")
    prefix = f"{where}." if where else ""
    for name in required:
        if name not in given:
            raise ModelError(f"arch: '{prefix}{name}' is missing; add it to the card")
    for name in given:
        if name not in required + optional:
            known = ", ".join(required + optional)
            raise ModelError(f"arch: '{prefix}{name}' is not known; use {known}, or another backend for other models")


def _counts(where: str, given: object, shape: type[VisionShape] | type[ResNetShape] | type[TextShape]) -> dict[str, int]:
    optional = tuple(shape._field_defaults)
    required = tuple(n for n in shape._fields if n not in optional)
    _check_keys(where, given, required, optional)
    assert isinstance(given, Mapping)
    return {name: _count(f"{where}.{name}", value) for name, value in given.items()}


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"arch: '{name}' must be a whole number of at least 1, not {value!r}")
    return value
