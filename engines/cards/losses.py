"""What training asks of a batch: pictures, their patches and sentences in, one number out.

A picture is compared with sentences of three kinds: what is said of it all ("a dotted red star"), of two of the three
("a red star"), and of one ("something red"). Cross entropy over those that exclude each other tells labels apart (CLIP's
loss, in both directions); a sigmoid over every pair of picture and sentence (SigLIP's) says whether a sentence is true at
all, which is what a threshold needs. Each patch is asked as well, and texts among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .words import COLORS, NOTHING, SHAPES, SURFACES, sentence

if TYPE_CHECKING:
    from .training import Towers

_PARTS = (list(SURFACES), list(COLORS), list(SHAPES))


def _said(rng: np.random.Generator, truth: Sequence[Sequence[int]], level: Sequence[int]) -> list[str]:
    """A sentence for each card, about those of its three words that `level` names; about nothing where there is no card."""
    return [
        sentence(rng, *[_PARTS[i][row[i]] if i in level else None for i in range(3)])
        if row[0] >= 0
        else NOTHING[rng.integers(len(NOTHING))]
        for row in truth
    ]


def _singles(rng: np.random.Generator) -> list[str]:
    """A sentence for each single word: surfaces, colors, shapes; and one about nothing."""
    words = [[name if j == i else None for j in range(3)] for i in range(3) for name in _PARTS[i]]
    return [sentence(rng, *three) for three in words] + [NOTHING[rng.integers(len(NOTHING))]]


def word_loss(model: Towers, rng: np.random.Generator, cards: Sequence[Sequence[int]] = ()) -> Tensor:
    """Two paraphrases of the same are more alike than those of different things: a contrast among texts alone.

    Of all single words, and of these cards. Without it the text tower finds its way to telling colors apart, and leaves all
    shapes at one place, where pictures get nothing to learn shapes from.
    """
    scale = model.clip.logit_scale.exp().clamp(max=100)
    pairs = [(_singles(rng), _singles(rng))]
    if cards:
        pairs.append((_said(rng, cards, [0, 1, 2]), _said(rng, cards, [0, 1, 2])))
    total = torch.zeros((), device=scale.device)
    for one, other in pairs:
        texts = model.texts([*one, *other])
        logits = scale * texts[: len(one)] @ texts[len(one) :].T
        same = torch.arange(len(one), device=scale.device)
        total = total + 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))
    return total


def loss_of(model: Towers, rows: Tensor, truth: Tensor, shown: Tensor | None, step: int, seed: int) -> tuple[Tensor, float]:
    """The loss of a batch, and the share of its pictures of which every single thing was named right.

    rows: what `images` gives, N x 1+k x dim. truth: int64 N x 3. shown: int64 N x k, see `Pictures`.
    """
    images = rows[:, 0]
    rng = np.random.default_rng((seed, step, 1))
    names = _PARTS
    two = ([0, 1], [1, 2], [0, 2])[step % 3]
    rows_of = truth.tolist()
    sentences = [*_said(rng, rows_of, [0, 1, 2]), *_said(rng, rows_of, two), *_singles(rng)]
    texts = model.texts(sentences)
    n = len(images)
    cosines = images @ texts.T  # N x (N + N + singles + 1)
    scale = model.clip.logit_scale.exp().clamp(max=100)
    logits = scale * cosines

    same = (truth[:, None] == truth[None]).to(cosines.dtype)  # N x N x 3
    true = [same.prod(2), same[:, :, two].prod(2)]
    total = cosines.new_zeros(())
    for part, target in zip((logits[:, :n], logits[:, n : 2 * n]), true, strict=True):
        share = target / target.sum(1, keepdim=True)
        total = total - 0.5 * ((share * part.log_softmax(1)).sum(1).mean() + (share.T * part.T.log_softmax(1)).sum(1).mean())
    patches = None if shown is None else scale * rows[:, 1:] @ texts[2 * n :].T  # N x k x (singles + 1)
    right, start = torch.ones(n, dtype=torch.bool, device=images.device), 2 * n
    single = []
    for i, part_names in enumerate(names):
        stop = start + len(part_names)
        choices = torch.cat([logits[:, start:stop], logits[:, -1:]], 1)
        wanted = torch.where(truth[:, i] < 0, len(part_names), truth[:, i])
        total = total + F.cross_entropy(choices, wanted)
        if patches is not None and shown is not None:
            total = total + _patch_loss(patches[:, :, start - 2 * n : stop - 2 * n], patches[:, :, -1:], wanted, shown)
        right &= choices.argmax(1) == wanted
        single.append(F.one_hot(wanted, len(part_names) + 1)[:, :-1])
        start = stop
    none = (truth[:, :1] < 0).to(torch.int64)
    every = torch.cat([*true, *single, none], 1)
    signs = 2.0 * every - 1
    total = total + word_loss(model, rng)
    total = total - 0.1 * F.logsigmoid(signs * (model.sigmoid_scale.exp() * cosines + model.sigmoid_bias)).sum(1).mean()
    return total, float(right.float().mean())


def _patch_loss(choices: Tensor, nothing: Tensor, wanted: Tensor, shown: Tensor) -> Tensor:
    """Each patch of the card is asked for the card's word, each of the background for nothing, both sides weighing alike.

    After Jiang et al. 2021, "All tokens matter": fifty answers a picture instead of one.
    """
    logits = torch.cat([choices, nothing], 2)  # N x k x (words + 1)
    last = logits.shape[2] - 1
    target = torch.where(shown == 1, wanted[:, None], last).masked_fill(shown < 0, -1)
    losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none", ignore_index=-1).view(shown.shape)
    card, ground = shown == 1, shown == 0
    return 0.5 * ((losses * card).sum() / card.sum().clamp(min=1) + (losses * ground).sum() / ground.sum().clamp(min=1))
