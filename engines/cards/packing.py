"""A training run in, the model folder that is shipped out: exported, calibrated, examined, and told of on its card."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from ..card import CLIP_MEAN, CLIP_STD, ModelCard
from ..errors import ModelError
from ..export import export
from ..towers import CLIP, load
from .evaluating import CALIBRATION, TEST, Examined, Share, calibrate, evaluate, photographs
from .scenes import SIZE, held_out
from .training import CONTEXT, Settings, read_checkpoint
from .words import BACKGROUND, all_cards

LIMITS = "knows printed cards, not the world"


def pack(run: Path, folder: Path, *, n: int = 2000, photos: Path | None = None) -> list[Share]:
    """Write the model folder of the finished or unfinished run in `run`, and return what it was examined to.

    n: pictures for each figure. photos: a folder of photographs to examine it on as well. Raises `ModelError` where there is no
    run.
    """
    path = run / "checkpoint.pt"
    if not path.exists():
        raise ModelError(f"{path}: no such file; train first: python -m clipsight.engines.cards train -o {run}")
    state = read_checkpoint(path)
    clip = _towers(state)
    export(clip, folder, _card(clip, state), ("fp32",))
    (folder / "tokenizer.json").write_text(state["tokenizer"], encoding="utf-8")
    weights = folder / "image.safetensors"
    weights.write_bytes(save({k: t.half() for k, t in load_file(weights).items()}, {"format": "pt"}))  # see _towers
    (folder / "labels.txt").write_text("".join(f"{card}\n" for card in all_cards()), encoding="utf-8")
    card = ModelCard.load(folder)
    with Examined(folder) as model:
        threshold, margin = calibrate(model, n)
    card = dataclasses.replace(card, threshold=threshold, margin=margin)
    card.save(folder)
    shares = evaluate(folder, n=n, photos=photos)
    examined = {"seeds": {"calibration": CALIBRATION, "test": TEST}, "figures": [dataclasses.asdict(s) for s in shares]}
    if photos is not None:
        examined["photographs"] = f"{photos.name}, {len(photographs(photos))} of them, never trained on"
    dataclasses.replace(card, notes={**card.notes, "examined": examined}).save(folder)
    return shares


def _towers(state: Mapping[str, Any]) -> CLIP:
    """The towers, rounded to float16 and back: the file of the torch backend then holds them exactly in half the bytes."""
    tensors = {k.removeprefix("clip."): t for k, t in state["model"].items() if k.startswith("clip.")}
    scale = tensors["logit_scale"]
    tensors = {k: t.half().float() for k, t in tensors.items()} | {"logit_scale": scale}
    return load(state["settings"].arch(len(tensors["token_embedding.weight"])), tensors)


def _card(clip: CLIP, state: Mapping[str, Any]) -> ModelCard:
    settings: Settings = state["settings"]
    weights = hashlib.sha256(b"".join(t.numpy().tobytes() for t in clip.state_dict().values())).hexdigest()
    return ModelCard(
        id="demo",
        space=f"clipsight-cards-{weights[:8]}",
        size=SIZE,
        dim=settings.dim,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        logit_scale=round(min(math.exp(float(clip.logit_scale)), 100.0), 4),
        context_length=CONTEXT,
        arch=settings.arch(len(clip.token_embedding.weight)),
        background=BACKGROUND,
        limits=LIMITS,
        license="Apache-2.0",
        source="trained from scratch on rendered cards: python -m clipsight.engines.cards train",
        notes={
            "data": f"{state['step'] * settings.batch} rendered pictures, of cards and of nothing, each seen once; "
            "no photographs, no other model",
            "world": state["world"],
            "settings": dataclasses.asdict(settings),
            "minutes": round(state["seconds"] / 60, 1),
            "held out of training": [str(card) for card in held_out()],
            "limits": "Trained on 14 printed shapes in 11 colors and 4 surfaces, one card at a time, from about 0.4 of the "
            "picture's width on, mostly turned by less than 35 degrees. Everything else it names wrong or not at all.",
        },
    )
