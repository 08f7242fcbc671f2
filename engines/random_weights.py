"""Towers of true shape with random weights that behave like CLIP's: for benchmarks and for tests of precision.

They recognise nothing. What they share with trained CLIP is what makes low precision hard: three channels of the
residual stream about forty times larger than the rest, in every block, and LayerNorm gains that spread over an order of
magnitude. With plain normal weights fp16 and int8 look better than they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .card import ModelCard
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
        scale = torch.ones(width)  # the size of each channel of the residual stream
        if outliers:
            scale[torch.randperm(width, generator=generator)[:3]] = OUTLIER
        for name, like in expected.items():
            if name.startswith("visual.") == (tower == 0):
                state[name] = _tensor(name, torch.randn(like.shape, generator=generator), scale)
    return load(arch, state)


def random_card(name: str, arch: Mapping[str, Any], seed: int) -> ModelCard:
    """The card of `random_model(arch, seed)`, prepared for as OpenAI's models are."""
    shape = read_arch(arch)
    return ModelCard(
        id=f"random-{name}-{seed}",
        space=f"random-{name}-{seed}",
        size=shape.vision.image_size,
        dim=shape.embed_dim,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        context_length=shape.text.context_length if shape.text else None,
        arch=arch,
        source="random weights",
        notes={"seed": seed, "weights": "random: they recognise nothing; for benchmarks and tests"},
    )


def _tensor(name: str, z: Tensor, scale: Tensor) -> Tensor:
    """Shape the standard normal `z` into the tensor `name` of a tower whose residual stream has the sizes `scale`.

    What writes to the stream (ln_pre, the token embedding, each block's two output layers) writes by `scale`, so the
    three channels stay as large as they are however many blocks add to them. What reads from it (the other LayerNorms)
    damps them, as trained gains do, to a few times the rest: they stand out where activations are quantized and do not
    decide everything. The layers behind those LayerNorms make up for the others having been divided by the outliers.
    """
    parts = name.split(".")
    layer, kind = parts[-2] if len(parts) > 1 else "", parts[-1]
    fan_in = z[0].numel() if z.ndim > 1 else 1
    outlier = scale > 1
    if name == "logit_scale":
        return torch.tensor(100.0).log()
    if kind in ("proj", "text_projection"):  # these two are stored in x out
        return z * len(z) ** -0.5
    if layer == "token_embedding":
        return z * scale
    if kind in ("class_embedding", "positional_embedding"):
        return 0.3 * z * (1 if layer == "visual" else scale)
    if layer.startswith("ln_"):
        z = torch.exp(0.5 * z) if kind == "weight" else 0.1 * z
        if layer == "ln_pre":
            return torch.where(outlier, 1.0, z) * scale if kind == "weight" else z * scale
        return torch.where(outlier, z / 8, z)
    if layer in ("out_proj", "c_proj"):
        return 0.4 * z * (scale[:, None] * fan_in**-0.5 if kind == "weight" else 0.1 * scale)
    if kind.endswith("bias"):
        return 0.1 * z
    return z * fan_in**-0.5 * (1.0 if layer == "conv1" else scale.square().mean().sqrt())
