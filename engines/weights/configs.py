"""What stands beside weights on a hub: open_clip's or Hugging Face's JSON in, arch and preparation out.

Settings that CLIP's own towers do not have are refused, not left out: weights run otherwise than they were trained give vectors
that look right and are not.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ModelError
from .pickles import printable
from .shapes import arch_of

OPEN_CLIP = "open_clip_config.json"
HUGGING_FACE = "config.json"

Json = dict[str, Any]

_MOST_BYTES = 2**24
_TRAINING = {  # of no consequence for what the towers give, or seen in the shapes of the tensors
    *("patch_dropout", "output_tokens", "mlp_ratio", "attn_pooler_queries", "attn_pooler_heads", "pad_id", "eos_id"),
    *("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    *("custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "output_dict"),
}
_PLAIN = {
    ("vision_cfg", "pool_type"): "tok",
    ("vision_cfg", "pos_embed_type"): "learnable",
    ("text_cfg", "pool_type"): "argmax",
    ("text_cfg", "proj_type"): "linear",
    ("vision_cfg", "block_type"): "default",
    ("text_cfg", "block_type"): "default",
}
_FILTERS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic", "random": "bicubic"}
# Hugging Face's words -> open_clip's.
_HF_VISION = {"hidden_size": "width", "num_hidden_layers": "layers", "image_size": "image_size", "patch_size": "patch_size"}
_HF_TEXT = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
}


def read_json(path: Path) -> Json:
    """A JSON file's object; raises `ModelError` where it is none."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES)
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not readable as JSON ({printable(str(error))}); get it anew") from None
    return _object(path.name, value)


def read_open_clip(path: Path, state: Mapping[str, Tensor]) -> tuple[Json, Json]:
    """open_clip_config.json and the tensors it belongs to -> arch, facts for the card (see `Weights`)."""
    config = read_json(path)
    model = _object("model_cfg", config.get("model_cfg"))
    vision, text = (_object(key, model.get(key)) for key in ("vision_cfg", "text_cfg"))
    # What is left out stands for open_clip's own defaults.
    head_width = _number("vision_cfg.head_width", vision.get("head_width", 64))
    heads = _number("text_cfg.heads", text.get("heads", 8))
    quick = model.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ModelError(f"{path.name}: quick_gelu must be true or false, not {_short(quick)}; correct it")
    arch = arch_of(state, head_width=head_width, heads=heads)
    arch = {"embed_dim": arch["embed_dim"], "quick_gelu": quick, **arch}
    _check_settings(path.name, "", {k: v for k, v in model.items() if k not in ("vision_cfg", "text_cfg")}, arch)
    _check_settings(path.name, "vision_cfg", vision, {"head_width": head_width, **arch["vision_cfg"]})
    if "text_cfg" in arch:
        _check_settings(path.name, "text_cfg", text, arch["text_cfg"])
    facts = _open_clip_preparation(path.name, _object("preprocess_cfg", config.get("preprocess_cfg", {})))
    for key, fact in (("hf_tokenizer_name", "tokenizer"), ("tokenizer_kwargs", "tokenizer_settings")):
        if text.get(key):
            facts[fact] = text[key]
    return arch, facts


def read_hugging_face(folder: Path, state: Mapping[str, Tensor]) -> tuple[Json, Json]:
    """A folder's config.json (and preprocessor_config.json) and the tensors, by OpenAI's names -> arch, facts for the card."""
    config = read_json(folder / HUGGING_FACE)
    if config.get("model_type") != "clip":
        raise ModelError(f"{HUGGING_FACE}: model_type is {_short(config.get('model_type'))}; give the folder of a 'clip'")
    towers = []
    for tower in ("vision_config", "text_config"):  # the other name is of the first versions, and went ahead in them
        parts = [_object(key, config.get(key) or {}) for key in (tower, f"{tower}_dict")]
        towers.append({**parts[0], **parts[1]})
    vision, text = towers
    # What is left out stands for Hugging Face's own defaults.
    heads = [_number("num_attention_heads", c.get("num_attention_heads", n)) for c, n in ((vision, 12), (text, 8))]
    width = state["visual.class_embedding"].numel() if "visual.class_embedding" in state else 0
    if width % heads[0] or width < heads[0]:
        raise ModelError(f"{HUGGING_FACE}: {heads[0]} heads do not divide a width of {width}; give the config of these weights")
    arch = arch_of(state, head_width=width // heads[0], heads=heads[1])
    for where, stated, names, found in (
        ("", config, {"projection_dim": "embed_dim"}, arch),
        ("vision_config.", vision, _HF_VISION, arch["vision_cfg"]),
        ("text_config.", text, _HF_TEXT, arch.get("text_cfg", {})),
    ):
        for name in names.keys() & stated.keys():
            _agree(HUGGING_FACE, f"{where}{name}", stated[name], found.get(names[name]))
    activations = [c.get("hidden_act", "quick_gelu") for c in towers]
    if activations not in (["gelu", "gelu"], ["quick_gelu", "quick_gelu"]):
        raise ModelError(
            f"{HUGGING_FACE}: hidden_act is {_short(activations)}, not gelu or quick_gelu twice; give another model"
        )
    if any(c.get("layer_norm_eps", 1e-5) != 1e-5 for c in towers):
        raise ModelError(f"{HUGGING_FACE}: layer_norm_eps is not 0.00001, which CLIP's own towers have; give another model")
    arch = {"embed_dim": arch["embed_dim"], "quick_gelu": activations[0] == "quick_gelu", **arch}
    return arch, _hugging_face_preparation(folder)


def _check_settings(where: str, part: str, stated: Json, found: Json) -> None:
    """Hold a part of open_clip's config to what the tensors say, and refuse what is beyond CLIP's own towers."""
    for key, value in stated.items():
        name = f"{part}.{key}" if part else key
        if key in found:
            _agree(where, name, _square(where, value) if key == "image_size" else value, found[key])
        elif key not in _TRAINING and value and value != _PLAIN.get((part, key)):
            raise ModelError(f"{where}: {name} is {_short(value)}, which CLIP's own towers do not have; give another model")


def _open_clip_preparation(where: str, stated: Json) -> Json:
    facts = _mean_and_std(where, stated.get("mean"), stated.get("std"))
    if (size := stated.get("size")) is not None:
        facts["size"] = _square(where, size)
    if (mode := stated.get("resize_mode")) is not None:
        if mode not in ("shortest", "squash"):  # "longest" pads with black; a card's "pad" pads with the mean
            raise ModelError(f"{where}: resize_mode {_short(mode)} cannot be prepared here; set it to 'shortest' or 'squash'")
        facts["resize"] = "crop" if mode == "shortest" else "squash"
    if (name := stated.get("interpolation")) is not None:
        facts["filter"] = _filter(where, name)
    return facts


def _hugging_face_preparation(folder: Path) -> Json:
    where = "preprocessor_config.json"
    if (folder / where).is_file():
        stated = read_json(folder / where)
    elif (folder / "processor_config.json").is_file():  # of newer versions
        where = "processor_config.json"
        stated = _object("image_processor", read_json(folder / where).get("image_processor", {}))
    else:
        return {}
    if not (stated.get("do_resize", True) and stated.get("do_rescale", True)):
        raise ModelError(f"{where}: do_resize and do_rescale must be true; pictures are always prepared here")
    if stated.get("do_normalize", True):
        facts = _mean_and_std(where, stated.get("image_mean"), stated.get("image_std"))
    else:
        facts = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if (number := stated.get("resample")) is not None:
        facts["filter"] = _filter(where, number)
    size, cropped = stated.get("size"), stated.get("do_center_crop", True)
    squashed = isinstance(size, dict) and "shortest_edge" not in size
    if not (squashed or cropped):
        raise ModelError(f"{where}: pictures are not cut to a square; set do_center_crop to true")
    edges = [_square(where, edge) for edge in (size, stated.get("crop_size") if cropped else None) if edge is not None]
    if len(set(edges)) > 1:
        raise ModelError(f"{where}: size {edges[0]} and crop_size {edges[1]} cannot be prepared here; set both to the model's")
    if edges:
        facts["size"] = edges[0]
    if size is not None:
        facts["resize"] = "squash" if squashed else "crop"
    return facts


def _mean_and_std(where: str, mean: object, std: object) -> Json:
    facts: Json = {}
    for key, value in (("mean", mean), ("std", std)):
        if value is None:
            continue
        if not (isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)):
            raise ModelError(f"{where}: {key} must be three numbers (R, G, B), not {_short(value)}; correct it")
        facts[key] = tuple(map(float, value))
    return facts


def _square(where: str, size: object) -> int:
    """224, [224, 224], {"shortest_edge": 224} or {"height": 224, "width": 224} -> 224."""
    sizes: list[Any] = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list) else [size]
    if not sizes or any(type(s) is not int or s != sizes[0] or s < 1 for s in sizes):
        raise ModelError(f"{where}: size {_short(size)} is no square; give a model for square pictures")
    edge: int = sizes[0]
    return edge


def _filter(where: str, name: object) -> str:
    if not isinstance(name, str | int) or name not in _FILTERS:
        raise ModelError(f"{where}: {_short(name)} is neither bicubic nor bilinear; set it to one of them")
    return _FILTERS[name]


def _agree(where: str, name: str, stated: object, found: object) -> None:
    if stated != found:
        raise ModelError(
            f"{where}: {name} is {_short(stated)}, the weights say {_short(found)}; give the config of these weights"
        )


def _object(name: str, value: object) -> Json:
    if not isinstance(value, dict):
        raise ModelError(f"{name} must be a JSON object, not {type(value).__name__}; get it anew")
    return value


def _number(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ModelError(f"{name} must be a whole number of at least 1, not {_short(value)}; correct it")
    return value


def _short(value: object) -> str:
    return printable(reprlib.repr(value))  # which goes no deeper than a few levels
