"""Weights in, a model folder out: those that are known by name are fetched, those that lie here are read; both are exported."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import hash_file, make_private, model_cache, take_lock
from .card import CLIP_MEAN, CLIP_STD, ModelCard
from .catalog import Entry, catalog, known_file
from .errors import BackendMissing, ModelError

if TYPE_CHECKING:
    from .weights import Weights

log = logging.getLogger("clipsight")

INSTALL = 'pip install -e ".[export,text]"'


def obtain(name: str, *, accept: bool = False) -> Path:
    """The model folder of a model of the catalog, or of open_clip's NAME:TAG; the first time it is fetched and exported.

    accept: the user has read a license that does not allow everything. Raises `ModelError` for a name that is not known, a
    license that was not accepted, a fetch that fails (the message says how to do without a network) and weights that are not
    the model's; `BackendMissing` where what exporting needs is not installed.
    """
    if name not in catalog() and ":" not in name:
        raise ModelError(f"no model {name!r} is known; use one of {', '.join(catalog())}, or the path of a model folder")
    folder = model_cache() / name.replace(":", "--")
    if (folder / "card.json").is_file():
        return folder
    _needed(name)
    make_private(model_cache())
    lock = take_lock(model_cache() / f"{folder.name}.lock", log.info, f"another program is making {name}; waiting for it")
    try:
        if not (folder / "card.json").is_file():
            with tempfile.TemporaryDirectory(prefix=".making-", dir=model_cache()) as scratch:
                made = Path(scratch) / folder.name
                left = _make_known(catalog()[name], made) if name in catalog() else _make_open_clips(name, made, accept=accept)
                shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed may have left
                os.replace(made, folder)
            for path in left:  # the folder holds all that is used
                path.unlink()
    finally:
        lock.release()
    return folder


def _make_known(entry: Entry, folder: Path) -> list[Path]:
    """Fetch a model of the catalog and make its folder; return what is not needed any more."""
    from .fetching import fetch

    weights = model_cache() / entry.file
    log.info("%s: about %d MB, license %s, once", entry.name, entry.megabytes, entry.license)
    fetch(entry.url, entry.sha256, weights)
    log.info("%s: making its ONNX graphs and checking them against torch", entry.name)
    make_folder(weights, folder, entry=entry)
    return list(model_cache().glob(f"{entry.file}*"))


def _make_open_clips(name: str, folder: Path, *, accept: bool) -> list[Path]:
    from .open_clip_models import fetch_weights, is_free, license_of, make_other, split

    model, tag = split(name)
    license = license_of(tag)
    if not (accept or is_free(license)):
        raise ModelError(
            f"{name}: its license ({license}) does not allow every use; read it, and if it allows yours: "
            f"python -m clipsight.engines fetch {name} --accept-license"
        )
    log.info("%s: license %s; fetching it by open_clip's way, once", name, license)
    weights = fetch_weights(name, model_cache() / "open_clip")
    log.info("%s: making its ONNX graphs and checking them against torch", name)
    try:
        make_folder(weights, folder, entry=Entry(name, f"{model}/{tag}", weights.name, "", 0, license))
    except ModelError as error:
        log.info("%s: not of our towers (%s); exporting open_clip's own", name, error)
        make_other(name, folder, weights)
    return []


def make_folder(
    source: Path,
    folder: Path,
    *,
    entry: Entry | None = None,
    quick_gelu: bool | None = None,
    precisions: Sequence[str] = ("fp32", "fp16"),
    patches: bool = False,
) -> dict[str, float]:
    """Read weights (see `weights.read_weights`), write them as a model folder and return what `export.export` does.

    entry: what they are; a file of the catalog is known by its sha256 without it. quick_gelu: replaces what the source says,
    or what was assumed where it says nothing. Raises `ModelError` for weights that cannot be used.
    """
    _needed(source.name)
    from .export import export
    from .towers import load
    from .vocabulary import write_tokenizer
    from .weights import read_weights

    sha256 = hash_file(source) if source.is_file() else None
    entry = entry or (known_file(sha256) if sha256 else None)
    weights = read_weights(source)
    if quick_gelu is not None:
        weights.arch["quick_gelu"] = quick_gelu
    elif weights.facts.get("quick_gelu") == "assumed":
        log.warning("%s does not say which GELU its towers use; taken as plain. If names are poor, add --quick-gelu", source)
    clip = load(weights.arch, weights.state)
    figures = export(clip, folder, _card(source, weights, entry, sha256), precisions, patches=patches)
    text = weights.arch.get("text_cfg")
    own = source / "tokenizer.json" if source.is_dir() else None
    if own and own.is_file():
        shutil.copyfile(own, folder / "tokenizer.json")
    elif text and text["vocab_size"] == 49408:
        write_tokenizer(folder)
    elif text:
        log.warning("%s has a vocabulary of its own; put its tokenizer.json into %s so that it can take words", source, folder)
    return figures


def _card(source: Path, weights: Weights, entry: Entry | None, sha256: str | None) -> ModelCard:
    arch, facts = weights.arch, weights.facts
    scale = weights.state.get("logit_scale")
    text = arch.get("text_cfg")
    name = source.stem if source.is_file() else source.resolve().name
    if entry is None:
        digest = sha256 or hashlib.sha256(b"".join(_bytes(weights, n) for n in sorted(weights.state))).hexdigest()
        space = f"{name}-{digest[:12]}"
    else:
        space = entry.space
    return ModelCard(
        id=entry.name if entry else name,
        space=space,
        size=arch["vision_cfg"]["image_size"],
        dim=arch["embed_dim"],
        mean=tuple(facts.get("mean", CLIP_MEAN)),
        std=tuple(facts.get("std", CLIP_STD)),
        resize=facts.get("resize", "crop"),
        filter=facts.get("filter", "bicubic"),
        logit_scale=round(min(math.exp(float(scale)), 100.0), 4) if scale is not None else 100.0,
        context_length=text["context_length"] if text else None,
        arch=arch,
        license=entry.license if entry else "",
        source=entry.url if entry else source.name,
        notes={"form": weights.form, **({"sha256": sha256} if sha256 else {})},
    )


def _bytes(weights: Weights, name: str) -> bytes:
    return weights.state[name].contiguous().numpy().tobytes()


def _needed(what: str) -> None:
    from importlib.util import find_spec

    lacking = [package for package in ("torch", "onnx", "onnxruntime", "tokenizers") if find_spec(package) is None]
    if lacking:
        raise BackendMissing(f"{what} has to be exported once, which needs {', '.join(lacking)}; run: {INSTALL}")
