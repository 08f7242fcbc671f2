"""The shape of both towers, in open_clip's config layout, deduced from the shapes of the tensors under OpenAI's names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ModelError

_HEAD = 64  # columns per attention head, nearly everywhere
_HEAD_WIDTHS = {1280: 80}  # by width: open_clip's ViT-H
_STRIDE = 32  # of a ModifiedResNet


def arch_of(state: Mapping[str, Tensor], *, head_width: int | None = None, heads: int | None = None) -> dict[str, Any]:
    """The `arch` (see `towers.ARCHS`) of tensors under OpenAI's names, without `quick_gelu`, which no tensor shows.

    Nor do tensors show how many heads there are: `head_width` of the image tower and `heads` of the text tower may be given,
    and are what CLIP of these widths has where they are not. There is no `text_cfg` where `state` has no text tower. Raises
    `ModelError` naming the tensor that is missing or of a shape that CLIP's towers cannot have.
    """
    arch: dict[str, Any] = {}
    if "visual.layer1.0.conv1.weight" in state:
        arch["embed_dim"] = _size(state, "visual.attnpool.c_proj.weight", 2)[0]
        arch["vision_cfg"] = _resnet(state, head_width or _HEAD)
    else:
        arch["embed_dim"] = _size(state, "visual.proj", 2)[1]
        arch["vision_cfg"] = _vit(state, head_width)
    if arch["vision_cfg"]["head_width"] == _HEAD:  # open_clip's default, which its configs leave out
        del arch["vision_cfg"]["head_width"]
    if any(not name.startswith("visual.") and name != "logit_scale" for name in state):
        arch["text_cfg"] = _text(state, heads)
        dim = _size(state, "text_projection", 2)[1]
        if dim != arch["embed_dim"]:
            raise ModelError(
                f"its image tower gives {arch['embed_dim']} numbers, its text tower {dim}; give weights of one model"
            )
    return arch


def _vit(state: Mapping[str, Tensor], head_width: int | None) -> dict[str, Any]:
    width, _, patch, _ = _size(state, "visual.conv1.weight", 4)
    grid = _grid(state, "visual.positional_embedding")
    layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    head_width = head_width or _HEAD_WIDTHS.get(width, _HEAD)
    return {"image_size": grid * patch, "layers": layers, "width": width, "patch_size": patch, "head_width": head_width}


def _resnet(state: Mapping[str, Tensor], head_width: int) -> dict[str, Any]:
    layers = [_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    width = _size(state, "visual.layer1.0.conv1.weight", 4)[0]
    size = _grid(state, "visual.attnpool.positional_embedding") * _STRIDE
    return {"image_size": size, "layers": layers, "width": width, "head_width": head_width}


def _text(state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    vocabulary, width = _size(state, "token_embedding.weight", 2)
    if heads is None and width % _HEAD:
        raise ModelError(f"its text tower is {width} wide, no multiple of {_HEAD}; give it with the config that says its heads")
    return {
        "context_length": _size(state, "positional_embedding", 2)[0],
        "vocab_size": vocabulary,
        "width": width,
        "heads": heads or width // _HEAD,
        "layers": _count(state, r"transformer\.resblocks\.(\d+)\."),
    }


def _size(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise ModelError(f"{name} is missing, so it is no whole CLIP with a ViT or ModifiedResNet; give weights of one")
    size = tuple(state[name].shape)
    if len(size) != dimensions:
        raise ModelError(f"{name} has {len(size)} dimensions where CLIP's has {dimensions}; give weights of a CLIP")
    return size


def _grid(state: Mapping[str, Tensor], name: str) -> int:
    """Patches along an edge: one position for each patch and one more."""
    positions = _size(state, name, 2)[0]
    grid = math.isqrt(max(positions - 1, 0))
    if grid < 1 or grid**2 + 1 != positions:
        raise ModelError(f"{name} is for {positions} positions, which are no square of patches and one; give weights of a CLIP")
    return grid


def _count(state: Mapping[str, Tensor], numbered: str) -> int:
    return len({match[1] for name in state if (match := re.match(numbered, name))})
