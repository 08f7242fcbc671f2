"""Rendered cards and sentences in, the demo's CLIP out: both towers from scratch, seeded, and resumed where it stopped.

Most of the training sees a random third of the patches (Li et al. 2023, FLIP), more of the card than of the rest; the end
sees all of them. `losses` says what is asked, `starting` where it begins.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset

from ..base import one_line
from ..card import CLIP_MEAN, CLIP_STD
from ..errors import BackendError, ModelError
from ..towers import CLIP, Block, Transformer, VisionTransformer
from .losses import loss_of, word_loss
from .muon import Muon
from .scenes import EXAMINING, SIZE, fingerprint, picture, trained
from .starting import PATCH, PLACE, initialize, patches_of
from .tokenizing import make_tokenizer
from .words import indices

CONTEXT = 24  # tokens; the longest sentence has fewer
_SAVE_EVERY = 120.0  # seconds


@dataclass(frozen=True)
class Settings:
    """What a run is; a checkpoint goes on only with the same.

    pictures: how many are seen with a share `patch_keep` of their patches. finish: how many more with all of them, in so many
    rounds of falling rates. easy, hard: the shares of the pictures between which they grow from easy to what they shall be.
    lr: of AdamW; muon_lr: of Muon, which has the matrices inside of the blocks.
    """

    seed: int = 1
    pictures: int = 480_000
    finish: int = 122_880
    rounds: int = 3
    batch: int = 128
    width: int = 128
    layers: int = 4
    head_width: int = 32
    dim: int = 128
    text_width: int = 96
    text_layers: int = 2
    lr: float = 1.5e-3
    muon_lr: float = 0.02
    weight_decay: float = 0.05
    patch_keep: float = 0.33
    easy: float = 0.12
    hard: float = 0.45

    def __post_init__(self) -> None:
        """Raise `ModelError` for what cannot be trained."""
        if not PLACE < self.width <= 3 * PATCH * PATCH:
            raise ModelError(f"width {self.width} is not possible; use {2 * PLACE} to {3 * PATCH * PATCH}")
        if self.width % self.head_width:
            raise ModelError(f"width {self.width} must be a multiple of {self.head_width}")
        if self.seed >= EXAMINING:
            raise ModelError(f"seed {self.seed} is of those that models are examined with; use one below {EXAMINING}")

    def arch(self, vocabulary: int) -> dict[str, Any]:
        """The towers' shape in open_clip's layout."""
        vision = {
            "image_size": SIZE,
            "patch_size": PATCH,
            "width": self.width,
            "layers": self.layers,
            "head_width": self.head_width,
        }
        text = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": self.text_width, "layers": self.text_layers}
        text["heads"] = self.text_width // 32
        return {"embed_dim": self.dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.first + self.finish // self.batch

    @property
    def first(self) -> int:
        """Steps that see a share of the patches."""
        return self.pictures // self.batch

    def strength_at(self, index: int) -> float:
        """How hard picture `index` is, see `scenes.picture`: until shapes are seen at all, hard ones teach nothing of them."""
        progress = index / max(self.pictures, 1)
        return min(max((progress - self.easy) / (self.hard - self.easy), 0.05), 1.0)

    def rate_at(self, step: int) -> float:
        """What the rates are multiplied by: up in 100 steps, down a cosine to nothing; then again from 0.3, in each round.

        A tower that has only seen a share of the patches names many pictures wrong when it is shown all of them, and has to
        move to mend that. More rounds take it further (warm restarts, Loshchilov & Hutter 2017).
        """
        each = max((self.steps - self.first) // self.rounds, 1)
        done, of, top = (step, self.first, 1.0) if step < self.first else ((step - self.first) % each, each, 0.3)
        return top * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done / max(of, 1)))


class Towers(nn.Module):
    """The model as it is trained, and the two numbers of the sigmoid."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.tokenizer = make_tokenizer()
        self.clip = CLIP(settings.arch(self.tokenizer.get_vocab_size()))
        self.sigmoid_scale = nn.Parameter(torch.tensor(10.0).log())
        self.sigmoid_bias = nn.Parameter(torch.tensor(-6.0))
        initialize(self.clip, settings.seed)

    def images(self, pictures: Tensor, kept: Tensor | None) -> Tensor:
        """uint8 N x 224 x 224 x 3 BGR, and which patches to look at (int64 N x k) -> unit rows N x 1+k x dim.

        The first row of each is the picture's, the others its patches'. Where kept is None all patches are looked at, and the
        picture's row is the only one.
        """
        visual, patches = self.clip.visual, patches_of(pictures)
        assert isinstance(visual, VisionTransformer)
        positions = visual.positional_embedding[1:].expand(len(patches), -1, -1)
        if kept is not None:  # patches that nobody looks at are not even made to floats
            patches = patches.gather(1, kept[:, :, None].expand(-1, -1, patches.shape[2]))
            positions = positions.gather(1, kept[:, :, None].expand(-1, -1, positions.shape[2]))
        mean, std = (
            pictures.new_tensor(CLIP_MEAN[::-1], dtype=torch.float32),
            pictures.new_tensor(CLIP_STD[::-1], dtype=torch.float32),
        )
        patches = ((patches.view(*patches.shape[:2], -1, 3) / 255.0 - mean) / std).flatten(2)
        weight = visual.conv1.weight.flip(1).permute(0, 2, 3, 1).flatten(1)  # width x (PATCH * PATCH * BGR)
        start = (visual.class_embedding + visual.positional_embedding[0]).expand(len(patches), 1, -1)
        x = visual.ln_pre(torch.cat([start, F.linear(patches, weight) + positions], 1))
        x = visual.ln_post(_through(visual.transformer, x, first_only=kept is None)) @ visual.proj
        return F.normalize(x, dim=-1)

    def texts(self, sentences: Sequence[str]) -> Tensor:
        """n sentences -> unit rows n x dim."""
        clip, device = self.clip, self.sigmoid_scale.device
        encoded = [e.ids for e in self.tokenizer.encode_batch(list(sentences))]
        longest = max(map(len, encoded))
        padded = [row + [0] * (longest - len(row)) for row in encoded]  # causal: what follows is not seen
        ids = torch.tensor(padded, device=device)
        ends = torch.tensor([len(row) - 1 for row in encoded], device=device)
        x = clip.token_embedding(ids) + clip.positional_embedding[:longest]
        x = clip.ln_final(_through(clip.transformer, x, causal=True))
        return F.normalize(x[torch.arange(len(ids), device=device), ends] @ clip.text_projection, dim=-1)


def _through(transformer: Transformer, x: Tensor, *, causal: bool = False, first_only: bool = False) -> Tensor:
    """n x L x width -> the same, or n x 1 x width. The arithmetic of `towers.Transformer` for any number of tokens.

    `towers` writes attention out, with constant shapes, so that TensorRT takes it; here fused attention is 1.5 times as fast.
    """
    *_, last = transformer.resblocks
    for block in transformer.resblocks:
        assert isinstance(block, Block)
        attn = block.attn
        n, length, width = x.shape
        qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = qkv.view(n, length, 3, attn.heads, width // attn.heads).permute(2, 0, 3, 1, 4)
        if first_only and block is last:
            q, x = q[:, :, :1], x[:, :1]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + attn.out_proj(mixed.transpose(1, 2).reshape(n, -1, width))
        hidden = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(F.silu(1.702 * hidden) / 1.702)  # QuickGELU in one pass
    return x


class Pictures(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Picture i of the training's series, the indices of its words, and which of its patches show the card.

    uint8 224 x 224 x 3; int64 3, -1 thrice for no card; int64 196: 1 the card, 0 the background, -1 in between.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.cards = settings, trained()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        made = picture(self.settings.seed, index, self.cards, strength=self.settings.strength_at(index))
        grid = SIZE // PATCH
        share = made.cover.reshape(grid, PATCH, grid, PATCH).mean((1, 3)).ravel() / 255
        shown = np.where(share > 0.6, 1, np.where(share < 0.05, 0, -1))
        return (
            torch.from_numpy(made.image),
            torch.tensor(indices(made.card) if made.card else (-1, -1, -1)),
            torch.from_numpy(shown),
        )


def teach_words(model: Towers, settings: Settings, steps: int = 120) -> float:
    """Let the text tower tell words apart before it meets pictures; return the loss it ends with."""
    cards = [indices(card) for card in trained()]
    text = [p for n, p in model.clip.named_parameters() if not n.startswith("visual.") and n != "logit_scale"]
    optimizer = torch.optim.AdamW(text, lr=2e-3, weight_decay=settings.weight_decay)
    loss = torch.zeros(())
    for step in range(steps):
        rng = np.random.default_rng((settings.seed, step, 2))
        loss = word_loss(model, rng, [cards[i] for i in rng.choice(len(cards), 48, replace=False)])
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())


def train(folder: Path, settings: Settings, *, device: str = "cpu", minutes: float | None = None) -> int:
    """Train, keeping checkpoint.pt and log.jsonl in `folder`; go on from the checkpoint that is there. Return the steps done.

    minutes: stop after so many, with a checkpoint (to try sizes). Raises `ModelError` for a checkpoint of other settings.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    try:
        model = Towers(settings).to(device)
    except (RuntimeError, AssertionError) as error:
        raise BackendError(f"torch has no device {device!r} here ({one_line(error)}); use --device cpu") from error
    optimizers = _optimizers(model, settings)
    step, spent = _resume(folder, settings, model, optimizers)
    if step and step == settings.steps:
        return step
    began = saved = time.monotonic()
    if not step:
        teach_words(model, settings)

    def save() -> None:
        part = folder / "checkpoint.pt.part"
        state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
        state |= {"settings": dataclasses.asdict(settings), "seconds": spent + time.monotonic() - began}
        torch.save(state | {"tokenizer": model.tokenizer.to_str(), "world": fingerprint()}, part)
        os.replace(part, folder / "checkpoint.pt")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (folder / "log.jsonl").open("a") as log:
        task = progress.add_task("loss", total=settings.steps, completed=step)
        losses: list[tuple[float, float]] = []
        try:
            for batch in _batches(settings, step):
                loss, right = _step(model, optimizers, settings, [tensor.to(device) for tensor in batch], step)
                losses.append((loss, right))
                step += 1
                progress.update(task, completed=step, description=f"loss {loss:.3f}, right {right:.0%}")
                now = time.monotonic()
                if step % 50 == 0:
                    means = {"loss": np.mean(losses, 0)[0], "right": np.mean(losses, 0)[1]}
                    log.write(json.dumps({"step": step, **means, "seconds": round(spent + now - began, 1)}) + "\n")
                    log.flush()
                    losses = []
                if minutes is not None and now - began > 60 * minutes:
                    break
                if now - saved > _SAVE_EVERY:
                    save()
                    saved = now
        finally:
            save()  # also of what Ctrl-C ends
    return step


def _optimizers(model: Towers, settings: Settings) -> list[Any]:
    """Muon for the blocks' matrices, AdamW for the rest.

    With AdamW alone the tower is blind to shapes for the first 30,000 pictures; with Muon (Jordan et al. 2024) it begins to
    see them after 5,000.
    """
    blocks = {n: p for n, p in model.named_parameters() if ".resblocks." in n and p.ndim == 2}
    rest = [p for n, p in model.named_parameters() if n not in blocks]
    matrices = [p for p in rest if p.ndim > 1]
    vectors = [p for p in rest if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay, "peak": settings.lr},
        {"params": vectors, "weight_decay": 0.0, "peak": settings.lr},
    ]
    inner = [{"params": list(blocks.values()), "peak": settings.muon_lr}]
    return [
        torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True),
        Muon(inner, settings.muon_lr, 0.01),
    ]


def _step(
    model: Towers, optimizers: Sequence[Any], settings: Settings, batch: Sequence[Tensor], step: int
) -> tuple[float, float]:
    pictures, truth, shown = batch
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * settings.rate_at(step)
    kept = None
    if step < settings.first:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        # Patches of the card are likelier to be kept: they are what there is to learn from, and most are background.
        luck = torch.rand(shown.shape, generator=generator).to(shown.device) + 0.7 * (shown != 0)
        kept = luck.argsort(1, descending=True)[:, : round(settings.patch_keep * shown.shape[1])]
    rows = model.images(pictures, kept)
    patches = None if kept is None else shown.gather(1, kept)
    loss, right = loss_of(model, rows, truth, patches, step, settings.seed)
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach()), right


def _batches(settings: Settings, step: int) -> Iterator[Any]:
    """The batches from `step` on, rendered in processes of their own."""
    size = settings.batch
    numbers = [list(range(i * size, (i + 1) * size)) for i in range(step, settings.steps)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 8)  # what waits lies in shared memory, 19 MB a batch
    loader = DataLoader(
        Pictures(settings),
        batch_sampler=numbers,
        num_workers=workers,
        prefetch_factor=2,
        worker_init_fn=_alone,
        multiprocessing_context="spawn",  # a fork of a process that has used OpenMP hangs
    )
    return iter(loader)


def _alone(_worker: int) -> None:
    """A rendering process keeps to one core."""
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `train` saves, its settings as `Settings`; raises `ModelError` for anything else. Runs no code that may be in it."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        state["settings"] = Settings(**state["settings"])
        missing = {"model", "optimizers", "step", "seconds", "tokenizer", "world"} - state.keys()
        if missing:
            raise KeyError(*missing)
    except Exception as error:
        raise ModelError(f"{path}: not a checkpoint of this training ({one_line(error)}); remove it and train anew") from error
    return state


def _resume(folder: Path, settings: Settings, model: Towers, optimizers: Sequence[Any]) -> tuple[int, float]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0
    state = read_checkpoint(path)
    if state["settings"] != settings:
        raise ModelError(f"{path} is of another run ({state['settings']}); give its settings, or another folder")
    if (state["world"], state["tokenizer"]) != (fingerprint(), model.tokenizer.to_str()):
        raise ModelError(f"{path} is of a world that was drawn or told otherwise; give another folder")
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return int(state["step"]), float(state["seconds"])
