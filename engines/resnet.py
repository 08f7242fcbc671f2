"""CLIP's ModifiedResNet in torch, under OpenAI's tensor names: pixels in, embeddings out, not normalized (RN50x4 and its kin).

What makes it CLIP's (Radford et al. 2021, 2.4): a stem of three convolutions, averaging before every stride (Zhang 2019), and
attention in place of the last average, asked by the mean of all places. Attention is written out as in `towers`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.fusion import fuse_conv_bn_eval

_STRIDE = 32  # input pixels per place of the last feature map
_EXPANSION = 4  # channels a block gives, in its own width


class ResNetShape(NamedTuple):
    image_size: int
    layers: tuple[int, int, int, int]
    width: int  # of the stem; the features are 32 times as wide
    head_width: int = 64


class ModifiedResNet(nn.Module):
    """N x 3 x S x S -> N x dim; with `patches` also each place by itself, N x g x g x dim."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, shape: ResNetShape, embed_dim: int) -> None:
        super().__init__()
        width = shape.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        for i, blocks in enumerate(shape.layers):
            inner = width * 2**i
            stage = [Bottleneck(channels, inner, 1 if i == 0 else 2)]
            stage += [Bottleneck(_EXPANSION * inner, inner, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            channels = _EXPANSION * inner
        self.attnpool = AttentionPool(shape.image_size // _STRIDE, channels, shape.head_width, embed_dim)

    def forward(self, pixel_values: Tensor, patches: bool = False) -> Any:
        x = pixel_values.to(self.conv1.weight.dtype) if pixel_values.dtype != self.conv1.weight.dtype else pixel_values
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)  # N x width x S/4 x S/4
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # N x 32 width x g x g
        return self.attnpool(x, patches)

    def fold(self) -> None:
        """Put every normalization into the convolution before it, in place: what is left has no float32 statistics."""
        for module in self.modules():
            pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)] + [("0", "1")]  # the last is a block's downsample
            for conv_name, norm_name in pairs:
                conv, norm = getattr(module, conv_name, None), getattr(module, norm_name, None)
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(module, conv_name, fuse_conv_bn_eval(conv.eval(), norm.eval()).requires_grad_(False))
                    setattr(module, norm_name, nn.Identity())


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, _EXPANSION * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(_EXPANSION * width)
        self.downsample: nn.ModuleDict | None = None
        if stride > 1 or channels != _EXPANSION * width:
            conv = nn.Conv2d(channels, _EXPANSION * width, 1, bias=False)
            self.downsample = nn.ModuleDict({"0": conv, "1": nn.BatchNorm2d(_EXPANSION * width)})

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        if self.stride > 1:
            y = F.avg_pool2d(y, self.stride)
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
            x = self.downsample["1"](self.downsample["0"](x))
        return F.relu(y + x)


class AttentionPool(nn.Module):
    """N x channels x g x g -> N x dim."""

    def __init__(self, grid: int, channels: int, head_width: int, embed_dim: int) -> None:
        super().__init__()
        self.grid, self.heads, self.head_width = grid, channels // head_width, head_width
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, channels))
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)

    def forward(self, x: Tensor, patches: bool = False) -> Any:
        channels, tokens = self.heads * self.head_width, self.grid**2 + 1
        x = x.reshape(-1, channels, self.grid**2).transpose(1, 2)  # N x g*g x channels
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = self.q_proj(x[:, :1]) * self.head_width**-0.5, self.k_proj(x), self.v_proj(x)
        by_head = [t.reshape(-1, n, self.heads, self.head_width).transpose(1, 2) for t, n in ((q, 1), (k, tokens), (v, tokens))]
        scores = by_head[0] @ by_head[1].transpose(2, 3)  # N x heads x 1 x tokens
        scores = scores.float() if scores.dtype != torch.float32 else scores
        weights = scores.softmax(-1)
        weights = weights.to(v.dtype) if weights.dtype != v.dtype else weights
        embeds = self.c_proj((weights @ by_head[2]).transpose(1, 2).reshape(-1, channels))
        if not patches:
            return embeds
        # Each place as if it alone had been attended to (Zhou et al. 2022, "Extract Free Dense Labels from CLIP").
        return embeds, self.c_proj(v[:, 1:]).reshape(-1, self.grid, self.grid, self.c_proj.out_features)
