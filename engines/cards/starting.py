"""Where training begins: a transformer that looks around as a convolution does, at patches that are whitened.

A tower of this size that starts from noise sees no shapes for the first 30,000 pictures; one that starts here tells half of
them apart by then.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..card import CLIP_MEAN, CLIP_STD
from ..towers import CLIP, VisionShape
from .scenes import SIZE, picture, trained

PATCH = 16
PLACE = 32  # of the image tower's channels tell where a patch is when training begins
_SHARP = 0.8  # how much a head looks at its neighbor and not around it
_OFFSETS = ((1, 0), (-1, 0), (0, 1), (0, -1)), ((1, 1), (-1, -1), (1, -1), (-1, 1))  # in patches: x, y of four heads


def patches_of(pictures: Tensor) -> Tensor:
    """N x 224 x 224 x 3 -> N x 196 x (16 * 16 * 3): its patches, row by row."""
    grid = SIZE // PATCH
    return pictures.view(-1, grid, PATCH, grid, PATCH, 3).transpose(2, 3).reshape(-1, grid * grid, PATCH * PATCH * 3)


def initialize(clip: CLIP, seed: int) -> None:
    """Fill both towers, in place. What is not said below is as OpenAI's CLIP begins: width and depth set the scale of a weight.

    seed: of the pictures that the first layer is made for; the rest is drawn from torch's own generator.
    """
    vision, text = clip.shape.vision, clip.shape.text
    assert isinstance(vision, VisionShape)
    assert text is not None
    for name, p in clip.named_parameters():
        image = name.startswith("visual.")
        width, layers = (vision.width, vision.layers) if image else (text.width, text.layers)
        if name == "visual.conv1.weight":
            p.data.copy_(_whitening(seed, width))
        elif name == "visual.positional_embedding":
            p.data.copy_(_positions(SIZE // PATCH, width))
        elif name == "logit_scale":
            nn.init.constant_(p, math.log(1 / 0.07))
        elif name.endswith("bias"):
            nn.init.zeros_(p)
        elif ".ln_" in name or name.startswith("ln_"):
            nn.init.ones_(p)
        elif name.endswith(("out_proj.weight", "c_proj.weight")):
            nn.init.normal_(p, std=width**-0.5 * (2 * layers) ** -0.5)
        elif name.endswith("in_proj_weight"):
            nn.init.normal_(p, std=width**-0.5)
            if image:
                _looking_aside(p.data, int(name.split(".")[-3]), width // vision.head_width)
        elif name.endswith("c_fc.weight"):
            nn.init.normal_(p, std=(2 * width) ** -0.5)
        elif name.endswith(("proj", "projection")):
            nn.init.normal_(p, std=width**-0.5)
        else:
            nn.init.normal_(p, std=0.02)


def _waves() -> Tensor:
    """Frequencies, radians a patch: from a period of 3 patches to one of 40."""
    return 2 * math.pi / torch.logspace(math.log10(3), math.log10(40), PLACE // 4)


def _positions(grid: int, width: int) -> Tensor:
    """Where a patch is, as sines and cosines of its column and row in the last channels: 1 + grid * grid x width."""
    angles = torch.arange(grid)[:, None] * _waves()  # grid x 8
    line = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)  # grid x 16
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    place = torch.cat([columns, rows], 2).flatten(0, 1)  # columns first: x
    everywhere = torch.zeros(1 + grid * grid, width)
    everywhere[1:, width - PLACE :] = 2 * math.sqrt(2) * place  # more than a patch itself: LayerNorm divides by both
    return everywhere


def _looking_aside(weight: Tensor, layer: int, heads: int) -> None:
    """Let each head look at one neighbor at first, as a convolution does: queries are keys that are moved by an offset.

    After Cordonnier et al. 2020 and d'Ascoli et al. 2021 (ConViT): a transformer that starts as a convolution finds shapes in a
    fraction of the pictures. weight: in_proj_weight, 3 * width x width. Heads beyond the first four, and the class token,
    whose place is nowhere, look everywhere alike.
    """
    width = weight.shape[1]
    each, far = width // heads, 1 + layer // 2
    weight[: 2 * width] *= 0.1
    for head, (dx, dy) in enumerate(_OFFSETS[layer % 2][:heads]):
        turns = torch.cat([far * dx * _waves(), far * dy * _waves()])  # 16 pairs of sine and cosine
        turned = torch.zeros(PLACE, PLACE)
        for i, turn in enumerate(turns.tolist()):
            c, s = math.cos(turn), math.sin(turn)
            turned[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, s], [-s, c]])
        rows = slice(head * each, head * each + min(each, PLACE))
        weight[rows, width - PLACE :] += _SHARP * turned[:each]
        weight[width:][rows, width - PLACE :] += _SHARP * torch.eye(PLACE)[:each]


def _whitening(seed: int, width: int) -> Tensor:
    """Patches along their principal axes, each to unit variance: width x 3 x 16 x 16.

    Between neighboring pixels light and color differ seventy times less than between patches; with random weights edges,
    of which shapes and surfaces are made, drown in that.
    """
    cards = trained()
    images = torch.from_numpy(np.stack([picture(seed, i, cards, strength=0.1).image for i in range(256)]))
    patches = patches_of(images).reshape(-1, PATCH * PATCH, 3).flip(2)
    pixels = (patches / 255.0 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    flat = pixels.transpose(1, 2).flatten(1)  # n x (RGB * PATCH * PATCH)
    values, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
    most = values.argsort(descending=True)[:width]
    white: Tensor = (axes[:, most] / (values[most] + 0.01).sqrt()).T.reshape(-1, 3, PATCH, PATCH)
    white[width - PLACE :] = 0  # there the place is told
    return white
