"""Towers of true shape with random weights that behave like CLIP's: for benchmarks and for tests of precision.

They recognize nothing. What they share with trained CLIP is what makes low precision hard: three channels of the
residual stream about forty times larger than the rest, in every block, and LayerNorm gains that spread over an order of
magnitude. With plain normal weights fp16 and int8 look better than they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .card import CLIP_MEAN, CLIP_STD, ModelCard
from .resnet import ResNetShape
from .towers import CLIP, load, read_arch

OUTLIER = 40.0  # how much larger the three channels are


def random_model(arch: Mapping[str, Any], seed: int = 0, outliers: bool = True) -> CLIP:
    """Towers of `arch` (see `towers.read_arch`) filled from `seed`; raises `ModelError` for a wrong arch.

    The towers are drawn apart: the image tower is the same with and without a text tower beside it.
    """
    shape = read_arch(arch)
    with torch.device("meta"):
        expected = CLIP(arch).state_dict()
    state = {}
    for tower, width in enumerate([shape.vision.width] + ([shape.text.width] if shape.text else [])):
        generator = torch.Generator().manual_seed(2 * seed + tower)
        offset = torch.zeros(width)
        if outliers:
            offset[torch.randperm(width, generator=generator)[:3]] = torch.tensor([OUTLIER, -OUTLIER, OUTLIER])
        for name, like in expected.items():
            if name.startswith("visual.") == (tower == 0):
                z = torch.randn(like.shape, generator=generator)
                resnet = tower == 0 and isinstance(shape.vision, ResNetShape)
                state[name] = _resnet_tensor(name, z) if resnet else _tensor(name, z, offset)
    return load(arch, state)


def random_card(name: str, arch: Mapping[str, Any], seed: int) -> ModelCard:
    """The card of `random_model(arch, seed)`, prepared for as OpenAI's models are."""
    shape = read_arch(arch)
    return ModelCard(
        id=f"random-{name}-{seed}",
        space=f"random-{name}-{seed}",
        size=shape.vision.image_size,
        dim=shape.embed_dim,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        context_length=shape.text.context_length if shape.text else None,
        arch=arch,
        source="random weights",
        notes={"seed": seed, "weights": "random: they recognize nothing; for benchmarks and tests"},
    )


def _tensor(name: str, z: Tensor, offset: Tensor) -> Tensor:
    """Shape the standard normal `z` into the tensor `name` of a tower.

    offset: what the residual stream's channels start at, 0 or an outlier's size; float32 of the stream's width. As in
    trained models an outlier is mostly a constant: it enters by ln_pre's bias or the positions, each block's two output
    layers add to it as the others grow, and their weights give it some dependence on the picture. Were it all
    dependence, LayerNorm would divide by three random numbers and every rounding would grow from block to block.
    """
    parts = name.split(".")
    layer, kind = parts[-2] if len(parts) > 1 else "", parts[-1]
    outlier = offset != 0
    fan_in = z[0].numel() if z.ndim > 1 else 1
    if name == "logit_scale":
        return torch.tensor(100.0).log()
    if kind in ("proj", "text_projection"):  # these two are stored in x out
        z = z * len(z) ** -0.5
    elif kind in ("class_embedding", "positional_embedding"):
        z = 0.3 * z + (0 if layer == "visual" else offset)  # the image tower's pass ln_pre first
    elif layer.startswith("ln_"):
        z = torch.exp(0.5 * z) if kind == "weight" else 0.1 * z
        if layer != "ln_pre":  # trained gains damp outliers too, and leave them larger than the rest
            z = torch.where(outlier, z / 8, z)
        else:
            z = torch.where(outlier, 4 * z, z) if kind == "weight" else z + offset
    elif layer in ("out_proj", "c_proj"):
        if kind == "weight":
            z = 0.4 * fan_in**-0.5 * torch.where(outlier, 4.0, 1.0)[:, None] * z
        else:
            z = 0.04 * z + 0.07 * offset
    elif kind.endswith("bias"):
        z = 0.1 * z
    elif layer == "conv1":
        z = fan_in**-0.5 * z
    elif layer != "token_embedding":
        # in_proj and c_fc: LayerNorm has divided everything by the outliers' size, and these make up for it. At 1.4
        # instead of 1.2 attention is so sharp that int8's rounding is amplified beyond recognition, at 1.0 pictures
        # hardly differ.
        z = 1.2 * fan_in**-0.5 * (1 + offset.square().mean()).sqrt() * z
    return z


def _resnet_tensor(name: str, z: Tensor) -> Tensor:
    """Shape the standard normal `z` into the tensor `name` of a ModifiedResNet.

    No outliers: a ReLU network keeps none. What a block adds is small beside what it is given, so that 26 of them one after
    another neither fade nor overflow.
    """
    *_, layer, kind = ["", *name.split(".")]
    fan_in = z[0].numel() if z.ndim > 1 else 1
    if kind == "running_var":
        return torch.exp(0.3 * z)
    if kind in ("running_mean", "bias"):
        return 0.1 * z
    if z.ndim == 4:
        return math.sqrt(2 / fan_in) * z
    if z.ndim == 2:
        return 0.3 * z if kind == "positional_embedding" else 1.4 / math.sqrt(fan_in) * z
    return (0.3 if layer == "bn3" else 1.0) * torch.exp(0.2 * z)  # of a normalization
