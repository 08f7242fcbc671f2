"""CLIP's weights in any format they are published in: a file or folder in, tensors under OpenAI's names out.

Nothing that is in a file is run. Formats: OpenAI's TorchScript archives (.pt); open_clip's checkpoints and state dicts (.pt,
.bin, .safetensors); the folders that open_clip and Hugging Face's transformers publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import ModelError
from ..towers import read_arch
from . import configs
from .archives import TORCHSCRIPT, Contents, read_tensors
from .names import NUMBERS, from_hugging_face, from_open_clip, is_hugging_face
from .pickles import printable
from .shapes import arch_of

__all__ = ["HUGGING_FACE", "Weights", "arch_of", "read_weights"]

HUGGING_FACE = "Hugging Face CLIP"

_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")


class Weights(NamedTuple):
    """A CLIP's weights, and what is known of them.

    state: the tensors under OpenAI's names, of the type they are stored in; those of a file are views of it. arch: see
    `towers.ARCHS`. form: "OpenAI TorchScript", "open_clip checkpoint", "open_clip safetensors" or "Hugging Face CLIP".
    facts: under the card's own names what the source states of it (size, mean, std, resize, filter, logit_bias); tokenizer and
    tokenizer_settings where it names a tokenizer; and "assumed" as `quick_gelu` and `head_width` where nothing says them.
    """

    state: dict[str, Tensor]
    arch: dict[str, Any]
    form: str
    facts: dict[str, Any]


def read_weights(path: Path) -> Weights:
    """Read a local file or folder of CLIP weights; raise `ModelError`, one line, for whatever else is there.

    quick_gelu, which no tensor shows, is true for OpenAI's archives, else what a config says, else false and told in `facts`.
    """
    try:
        weights = _read(Path(path))
        shape = read_arch(weights.arch)
        size = weights.facts.get("size", shape.vision.image_size)
        if size != shape.vision.image_size:
            raise ModelError(f"pictures are to be {size} pixels, the weights say {shape.vision.image_size}; correct the config")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return weights


def _read(path: Path) -> Weights:
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ModelError("no such file or folder; give local weights")
    config = path.parent / configs.OPEN_CLIP
    if path.name in _OPEN_CLIP_FILES and config.is_file():
        return _with_config(path, config)
    contents = read_tensors(path)
    if is_hugging_face(contents.tensors):
        raise ModelError("has Hugging Face's names; give its folder, with config.json in it")
    state, facts = from_open_clip(contents.tensors)
    arch = arch_of(state)
    _check_numbers(facts, arch)
    scripted = contents.form == TORCHSCRIPT
    if not scripted:
        facts |= {"quick_gelu": "assumed", "head_width": "assumed"}
    arch = {"embed_dim": arch["embed_dim"], "quick_gelu": scripted and not contents.gelu, **arch}
    return Weights(state, arch, contents.form, facts)


def _read_folder(folder: Path) -> Weights:
    config = folder / configs.OPEN_CLIP
    for name in _OPEN_CLIP_FILES if config.is_file() else ():
        if (folder / name).is_file():
            return _with_config(folder / name, config)
    for name in _HUGGING_FACE_FILES if (folder / configs.HUGGING_FACE).is_file() else ():
        if (folder / name).is_file():
            return _hugging_face(folder, [name])
        if (folder / f"{name}.index.json").is_file():
            return _hugging_face(folder, _shards(folder / f"{name}.index.json"))
    raise ModelError(
        f"neither {configs.OPEN_CLIP} with {' or '.join(_OPEN_CLIP_FILES)} nor {configs.HUGGING_FACE} with "
        f"{' or '.join(_HUGGING_FACE_FILES)} is there; give a file of weights, or a folder with both"
    )


def _with_config(path: Path, config: Path) -> Weights:
    contents = _in_folder(path)
    state, facts = from_open_clip(contents.tensors)
    arch, stated = configs.read_open_clip(config, state)
    _check_numbers(facts, arch)
    return Weights(state, arch, contents.form, {**facts, **stated})


def _hugging_face(folder: Path, names: Sequence[str]) -> Weights:
    tensors: dict[str, Tensor] = {}
    for name in names:
        part = _in_folder(folder / name).tensors
        if tensors.keys() & part.keys():
            raise ModelError(f"{name} holds tensors that another file holds too; get the folder anew")
        tensors |= part
    state = from_hugging_face(tensors)
    arch, facts = configs.read_hugging_face(folder, state)
    return Weights(state, arch, HUGGING_FACE, facts)


def _in_folder(path: Path) -> Contents:
    try:
        return read_tensors(path)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None


def _shards(index: Path) -> list[str]:
    """The files that an index names, which must lie beside it."""
    places = configs.read_json(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ModelError(f"{index.name} names {printable(name)}, which is not there; get the folder anew")
    if not names:
        raise ModelError(f"{index.name} names no files; get the folder anew")
    return names


def _check_numbers(facts: dict[str, Any], arch: dict[str, Any]) -> None:
    """Take the numbers that OpenAI's archives carry out of `facts`, held to what the tensors say."""
    found = (arch["vision_cfg"]["image_size"], *(arch.get("text_cfg", {}).get(key) for key in NUMBERS[1:]))
    for name, value in zip(NUMBERS, found, strict=True):
        if facts.pop(name, value) != value:
            raise ModelError(f"{name} is not {value}, which the tensors say; get the weights anew")
