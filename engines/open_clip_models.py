"""Models that open_clip knows, called NAME:TAG: what they are, and a model folder of each. Needs open_clip and torchvision.

Weights of towers that are ours take the way of `obtaining.make_folder`; any other model is exported from open_clip's own
forward.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .base import one_line
from .card import CLIP_MEAN, CLIP_STD, ModelCard
from .errors import BackendMissing, ModelError

INSTALL = 'pip install -e ".[open-clip]"'

# What those who published the weights say, by the beginning of the tag; the longest that fits. Names of models say nothing.
_LICENSES = {
    "openai": "MIT",
    "laion": "MIT",
    "datacomp": "MIT",
    "commonpool": "MIT",
    "mscoco_finetuned_laion": "MIT",
    "frozen_laion": "MIT",
    "merged2b": "MIT",
    "datacomp1b": "Apache-2.0",
    "webli": "Apache-2.0",
    "meta": "Apache-2.0",
    "metaclip": "CC-BY-NC-4.0",
    "datacompdr": "Apple, research only",
    "dfn": "Apple, research only",
    "dfndr": "Apple, research only",
    "v1": "CC-BY-NC-4.0",
    "mrl": "CC-BY-NC-4.0",
}


def license_of(tag: str) -> str:
    """The license of weights by their tag; "not stated" where it is not known here."""
    known = [start for start in _LICENSES if tag.startswith(start)]
    return _LICENSES[max(known, key=len)] if known else "not stated"


def is_free(license: str) -> bool:
    """Whether weights of this license may be used for anything."""
    return license in ("MIT", "Apache-2.0")


def split(name: str) -> tuple[str, str]:
    """ "ViT-B-16:laion2b_s34b_b88k" -> its two parts, both known to open_clip.

    Raises `BackendMissing` where open_clip is not installed, `ModelError` for a name or a tag that it does not know.
    """
    open_clip = _open_clip()
    model, _, tag = name.partition(":")
    if open_clip.get_model_config(model) is None:
        raise ModelError(f"open_clip knows no model {model!r}, see open_clip.list_pretrained()")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise ModelError(f"open_clip has no weights {tag!r} of {model}; use one of {', '.join(f'{model}:{t}' for t in tags)}")
    return model, tag


def fetch_weights(name: str, cache: Path) -> Path:
    """Fetch the weights of NAME:TAG by open_clip's own way and return their file. Raises `ModelError` where that fails."""
    model, tag = split(name)
    open_clip = _open_clip()
    settings = open_clip.get_pretrained_cfg(model, tag)
    where = settings.get("hf_hub") or settings.get("url")
    try:
        return Path(open_clip.download_pretrained(settings, cache_dir=str(cache)))
    except Exception as error:
        raise ModelError(
            f"{name}: cannot be fetched from {where} ({one_line(error)}); run it again, or fetch the weights by other means "
            "and export them: python -m clipsight.engines export WEIGHTS -o FOLDER"
        ) from error


def make_other(name: str, folder: Path, weights: Path | None) -> dict[str, float]:
    """Build NAME:TAG with open_clip, export its own forward into `folder`, and return what `export.export_other` does.

    weights: its file; None leaves the weights that open_clip draws, for tests and for measuring.
    """
    import torch

    from .export import export_other

    open_clip = _open_clip()
    model_name, tag = split(name)
    _plain_attention()
    try:
        model = open_clip.create_model(
            model_name, pretrained=str(weights) if weights else None, load_weights=weights is not None
        )
    except Exception as error:
        raise ModelError(f"{name}: open_clip cannot build it from {weights} ({one_line(error)})") from error
    settings: dict[str, Any] = open_clip.get_pretrained_cfg(model_name, tag)
    config: dict[str, Any] = open_clip.get_model_config(model_name)
    text = config.get("text_cfg", {})
    bias = getattr(model, "logit_bias", None)
    card = ModelCard(
        id=name,
        space=f"{model_name}/{tag}" if weights else f"{model_name}/random",
        size=int(config["vision_cfg"]["image_size"]),
        dim=int(config["embed_dim"]),
        mean=tuple(settings.get("mean", CLIP_MEAN)),
        std=tuple(settings.get("std", CLIP_STD)),
        resize={"squash": "squash", "longest": "pad"}.get(settings.get("resize_mode", ""), "crop"),  # type: ignore[arg-type]
        filter=settings.get("interpolation", "bicubic"),
        logit_scale=round(math.exp(float(model.logit_scale.detach())), 4),
        logit_bias=round(float(bias.detach()), 4) if bias is not None else 0.0,
        activation="sigmoid" if bias is not None else "softmax",
        context_length=text.get("context_length", 77),
        license=license_of(tag),
        source=settings.get("hf_hub") or settings.get("url", ""),
        notes={"form": "open_clip's own forward"},
    )
    with torch.inference_mode():
        return export_other(model.eval().float(), folder, card, text.get("vocab_size", 49408))


def _plain_attention() -> None:
    """Let timm write attention out, q scaled before its product with k: TensorRT gets the fused form wrong.

    And let torch's own attention not take its fast path, which ONNX has no operator for.
    """
    import torch
    from timm.layers.config import set_fused_attn

    set_fused_attn(False)
    torch.backends.mha.set_fastpath_enabled(False)


def _open_clip() -> Any:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise BackendMissing(
            f"NAME:TAG needs open_clip and a torchvision that fits torch ({one_line(error)}); run: {INSTALL}"
        ) from error
    return open_clip
