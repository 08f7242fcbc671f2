"""CLIP's weights from every format they come in, against open_clip's own state dicts, and what bad files are told."""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import random
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip_reference import open_clip
from safetensors.torch import save_file
from torch import Tensor, nn

from clipsight.engines import ModelError
from clipsight.engines.export import random_ids, random_pictures
from clipsight.engines.towers import load
from clipsight.engines.weights import arch_of, read_weights
from clipsight.engines.weights.archives import read_tensors
from clipsight.engines.weights.configs import read_open_clip

jit: Any = torch.jit  # without types
TEXT = {"context_length": 12, "vocab_size": 90, "width": 64, "heads": 1, "layers": 2}
ARCHS: dict[str, dict[str, Any]] = {
    "vit": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "rn": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8},
        "text_cfg": TEXT,
    },
}
ASSUMED = {"quick_gelu": "assumed", "head_width": "assumed"}
PREPROCESSING = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}


@lru_cache
def reference(kind: str = "vit", **changes: Any) -> Any:
    """open_clip's model of that arch, with weights of its own drawing."""
    torch.manual_seed(0)
    model = open_clip().model.CLIP(**{**ARCHS[kind], **changes}).eval()
    for name, tensor in model.state_dict().items():
        if "running_" in name:  # else the same in every ResNet
            tensor.uniform_(0.5, 1.5)
    return model


def states(kind: str = "vit") -> dict[str, Tensor]:
    return dict(reference(kind).state_dict())


def without(state: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def same(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(given) == set(wanted)
    for name, tensor in wanted.items():
        assert given[name].dtype == tensor.dtype, name
        assert given[name].shape == tensor.shape, name
        assert torch.equal(given[name], tensor), name


def refused(path: Path, message: str) -> str:
    """The one line that `path` is refused with."""
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    assert len(line) < 600
    assert re.search(message, line), line
    return line


def scripted(model: nn.Module, how: str, path: Path, edge: int = 32) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        if how == "trace":
            example = (torch.zeros(1, 3, edge, edge), torch.ones(1, 12, dtype=torch.int64))
            jit.save(jit.trace(model, example, check_trace=False), path)
        else:
            jit.save(jit.script(model), path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], to: Path, method: int = zipfile.ZIP_STORED) -> Path:
    """A copy of a zip with its records changed, or left out for None."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", method) as new:
        for name in old.namelist():
            content = change(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return to


# OpenAI's archives


@pytest.mark.parametrize("how", ["trace", "script"])
@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_a_torchscript_archive_gives_what_torch_itself_loads_from_it(kind: str, how: str, tmp_path: Path) -> None:
    size = ARCHS[kind]["vision_cfg"]["image_size"]
    path = scripted(reference(kind), how, tmp_path / "clip.pt", size)
    weights = read_weights(path)
    same(weights.state, states(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(weights.state, without(jit.load(path).state_dict(), "attn_mask"))
    assert (weights.form, weights.arch, weights.facts) == ("OpenAI TorchScript", ARCHS[kind], {})
    model, pixels, ids = load(weights.arch, weights.state), random_pictures(4, size), random_ids(4, 12, 90)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_image(pixels), reference(kind).encode_image(pixels), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.encode_text(ids), reference(kind).encode_text(ids), rtol=1e-4, atol=1e-5)


class OpenAI(nn.Module):
    """A model with the three numbers that OpenAI's archives carry beside the weights."""

    def __init__(self, model: Any, numbers: tuple[int, int, int]) -> None:
        super().__init__()
        for name in ("visual", "transformer", "token_embedding", "ln_final"):
            setattr(self, name, getattr(model, name))
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            self.register_parameter(name, getattr(model, name))
        for name, number in zip(("input_resolution", "context_length", "vocab_size"), numbers, strict=True):
            self.register_buffer(name, torch.tensor(number))

    def forward(self, pixels: Tensor) -> Any:
        return self.visual(pixels)  # type: ignore[operator]


def test_openais_half_precision_stays_and_its_three_numbers_are_held_to_the_tensors(tmp_path: Path) -> None:
    model = open_clip().model.CLIP(**ARCHS["vit"])
    open_clip().model.convert_weights_to_fp16(model)
    path = scripted(OpenAI(model, (32, 12, 90)), "script", tmp_path / "clip.pt")
    weights = read_weights(path)
    same(weights.state, model.state_dict())
    assert {t.dtype for t in weights.state.values()} == {torch.float16, torch.float32}
    assert (weights.arch, weights.facts) == (ARCHS["vit"], {})
    for number, name in ((32, "input_resolution"), (12, "context_length"), (90, "vocab_size")):
        numbers = {struct.pack("<q", number): struct.pack("<q", 5)}
        other = rewritten(path, lambda _, content: numbers.get(content, content), tmp_path / "other.pt")  # noqa: B023
        refused(other, f"{name} is not {number}, which the tensors say; get the weights anew$")


def test_torchscript_with_torchs_own_gelu_is_seen(tmp_path: Path) -> None:
    model = open_clip().model.CLIP(**{**ARCHS["vit"], "quick_gelu": False})
    weights = read_weights(scripted(model, "script", tmp_path / "clip.pt"))
    assert (weights.arch["quick_gelu"], weights.facts) == (False, {})


# open_clip's files


def write_zip(state: Any, path: Path) -> None:
    torch.save(state, path)


def write_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_a_state_dict_by_itself(kind: str, write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    write(reference(kind).state_dict(), tmp_path / "clip.pt")
    weights = read_weights(tmp_path / "clip.pt")
    same(weights.state, states(kind))
    assert (weights.form, weights.facts) == ("open_clip checkpoint", ASSUMED)
    assert weights.arch == {**ARCHS[kind], "quick_gelu": False}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod."])
def test_a_training_checkpoint_with_its_optimizer(prefix: str, write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    model = open_clip().model.CLIP(**ARCHS["vit"])
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    write({"epoch": 3, "name": "a run", "state_dict": state, "optimizer": optimizer.state_dict()}, tmp_path / "epoch_3.pt")
    same(read_weights(tmp_path / "epoch_3.pt").state, model.state_dict())


def test_safetensors(tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in states().items()}
    save_file(half, tmp_path / "clip.safetensors")
    weights = read_weights(tmp_path / "clip.safetensors")
    same(weights.state, half)
    assert (weights.form, weights.facts) == ("open_clip safetensors", ASSUMED)


def test_parameters_doubles_and_views_of_one_storage(tmp_path: Path) -> None:
    whole = torch.arange(4 * 128, dtype=torch.float64)
    given = {
        **states(),
        "visual.ln_pre.weight": nn.Parameter(states()["visual.ln_pre.weight"]),
        "visual.ln_pre.bias": whole[128:256],
        "visual.ln_post.bias": whole[::4],
    }
    torch.save(given, tmp_path / "clip.pt")
    same(read_weights(tmp_path / "clip.pt").state, given)


@pytest.mark.parametrize("linear", [False, True])
def test_the_custom_text_layout(linear: bool, tmp_path: Path) -> None:
    model = open_clip().model.CustomTextCLIP(**ARCHS["vit"])
    state = dict(model.state_dict())
    wanted = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    if linear:
        state["text.text_projection.weight"] = state.pop("text.text_projection").T.contiguous()
    torch.save({**state, "text.attn_mask": torch.zeros(12, 12)}, tmp_path / "clip.pt")
    weights = read_weights(tmp_path / "clip.pt")
    same(weights.state, wanted)
    assert weights.arch["text_cfg"] == TEXT


def test_a_scale_of_one_dimension_and_a_bias_of_the_logits(tmp_path: Path) -> None:
    model = open_clip().model.CLIP(**ARCHS["vit"], nonscalar_logit_scale=True, init_logit_bias=-10)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    weights = read_weights(tmp_path / "clip.pt")
    assert weights.state["logit_scale"].shape == ()
    assert weights.facts == {"logit_bias": -10, **ASSUMED}
    load(weights.arch, weights.state)


def test_an_image_tower_alone(tmp_path: Path) -> None:
    visual = {name: tensor for name, tensor in states().items() if name.startswith("visual.")}
    torch.save(visual, tmp_path / "clip.pt")
    weights = read_weights(tmp_path / "clip.pt")
    same(weights.state, visual)
    assert weights.arch == {**without(ARCHS["vit"], "text_cfg"), "quick_gelu": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text.text_projection.bias": 32}, r"text\.text_projection\.bias is in it, which CLIP's two towers do not have"),
        ({"text.transformer.embeddings.word_embeddings.weight": 5}, r"text\.transformer\.embeddings\S+ is in it"),
        ({"text_decoder.ln_final.weight": 5}, r"text_decoder\.\S+ is in it"),
        ({"text.ln_final.bias": 64}, r"ln_final\.bias is in it twice"),
        ({"visual.a\nb": 1}, r"visual\.a\?b is in it twice or no name"),
        ({"text_projection.weight": 32}, "text_projection.weight has 1 dimensions where CLIP's has 2"),
        ({"visual.proj": None}, r"visual\.proj is missing, so it is no whole CLIP"),
        ({"visual.conv1.weight": None}, r"visual\.conv1\.weight is missing"),
        ({"token_embedding.weight": None}, r"token_embedding\.weight is missing"),
        ({"visual.proj": 5}, r"visual\.proj has 1 dimensions where CLIP's has 2"),
        ({"visual.positional_embedding": (19, 128)}, "for 19 positions, which are no square of patches and one"),
        ({"visual.positional_embedding": (1, 128)}, "for 1 positions"),
        ({"text_projection": (64, 31)}, "its image tower gives 32 numbers, its text tower 31"),
        ({"token_embedding.weight": (90, 60)}, "its text tower is 60 wide, no multiple of 64"),
        ({"visual.conv1.weight": (100, 3, 8, 8)}, r"'vision_cfg\.width' 100 must be a multiple of 'head_width' 64"),
        ({"vision_model.post_layernorm.weight": 5}, "Hugging Face's names; give its folder, with config.json in it"),
    ],
)
def test_tensors_that_are_no_clips_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = states()
    for name, size in changes.items():
        if size is None:
            del state[name]
        else:
            state[name] = torch.zeros(size)
    torch.save(state, tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", message)


# Folders as open_clip publishes them


def open_clip_folder(folder: Path, model_cfg: Any = None, file: str = "open_clip_model.safetensors", **preprocess: Any) -> Path:
    folder.mkdir(exist_ok=True)
    state = states("rn" if model_cfg == ARCHS["rn"] else "vit")
    if file.endswith(".bin"):
        torch.save(state, folder / file)
    else:
        save_file(state, folder / file)
    config = {"model_cfg": ARCHS["vit"] if model_cfg is None else model_cfg, "preprocess_cfg": {**PREPROCESSING, **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_open_clips_folder_says_what_tensors_cannot(kind: str, file: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, ARCHS[kind], file, interpolation="bilinear", resize_mode="squash", size=[64, 64])
    if kind == "vit":
        refused(folder, "pictures are to be 64 pixels, the weights say 32; correct the config")
        open_clip_folder(tmp_path, ARCHS[kind], file, interpolation="bilinear", resize_mode="squash", size=[32, 32])
    for path in (folder, folder / file):
        weights = read_weights(path)
        same(weights.state, states(kind))
        assert weights.arch == ARCHS[kind]
        assert weights.form == ("open_clip checkpoint" if file.endswith(".bin") else "open_clip safetensors")
        assert weights.facts == {
            **{key: tuple(value) for key, value in PREPROCESSING.items()},
            "size": ARCHS[kind]["vision_cfg"]["image_size"],
            "resize": "squash",
            "filter": "bilinear",
        }


def test_what_open_clip_itself_writes_beside_weights(tmp_path: Path) -> None:
    """Its own writer of configs; heads of another width, which no tensor shows, and a tokenizer by name."""
    arch = {
        **ARCHS["vit"],
        "quick_gelu": False,
        "vision_cfg": {**ARCHS["vit"]["vision_cfg"], "head_width": 32},
        "text_cfg": {**TEXT, "heads": 4},
    }
    model = open_clip().model.CLIP(**arch).eval()
    model.visual.image_mean, model.visual.image_std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    model.visual.preprocess_cfg = {"interpolation": "random", "resize_mode": "shortest"}
    text = {
        **arch["text_cfg"],
        "hf_tokenizer_name": "a/b",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "pool_type": "argmax",
    }
    writer = importlib.import_module("open_clip.push_to_hf_hub")
    writer.save_config_for_hf(model, tmp_path / "open_clip_config.json", {**arch, "text_cfg": text, "custom_text": True})
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    weights = read_weights(tmp_path)
    assert weights.arch == arch
    assert weights.facts == {
        "mean": (0.5, 0.4, 0.3),
        "std": (0.1, 0.2, 0.3),
        "filter": "bicubic",
        "resize": "crop",
        "tokenizer": "a/b",
        "tokenizer_settings": {"clean": "canonicalize"},
    }
    pixels, ids = random_pictures(4, 32), random_ids(4, 12, 90)
    with torch.inference_mode():
        ours = load(weights.arch, weights.state)
        torch.testing.assert_close(ours.encode_image(pixels), model.encode_image(pixels), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(ids), model.encode_text(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_cfg": 5}, "model_cfg must be a JSON object, not int"),
        ({"vision_cfg": None}, "vision_cfg must be a JSON object, not NoneType"),
        ({"quick_gelu": "yes"}, "quick_gelu must be true or false, not 'yes'"),
        ({"embed_dim": 33}, "embed_dim is 33, the weights say 32; give the config of these weights"),
        ({"multimodal_cfg": {"width": 5}}, "multimodal_cfg is .*, which CLIP's own towers do not have"),
        ({"vision_cfg.width": 64}, r"vision_cfg\.width is 64, the weights say 128"),
        ({"vision_cfg.image_size": [32, 48]}, r"size \[32, 48\] is no square"),
        ({"vision_cfg.head_width": 0}, r"vision_cfg\.head_width must be a whole number of at least 1, not 0"),
        ({"vision_cfg.pool_type": "avg"}, r"vision_cfg\.pool_type is 'avg', which CLIP's own towers do not have"),
        ({"vision_cfg.timm_model_name": "vit"}, r"vision_cfg\.timm_model_name is 'vit'"),
        ({"text_cfg.pool_type": "eos"}, r"text_cfg\.pool_type is 'eos'"),
        ({"text_cfg.no_causal_mask": True}, r"text_cfg\.no_causal_mask is True"),
        ({"text_cfg.heads": 3}, r"'text_cfg\.width' 64 must be a multiple of 'heads' 3"),
        ({"preprocess_cfg": []}, "preprocess_cfg must be a JSON object, not list"),
        ({"preprocess_cfg.mean": [1, 2]}, r"mean must be three numbers \(R, G, B\), not \[1, 2\]"),
        ({"preprocess_cfg.std": [1, 2, True]}, "std must be three numbers"),
        ({"preprocess_cfg.resize_mode": "longest"}, "resize_mode 'longest' cannot be prepared here"),
        ({"preprocess_cfg.interpolation": "nearest"}, "'nearest' is neither bicubic nor bilinear"),
        ({"preprocess_cfg.interpolation": [3]}, r"\[3\] is neither bicubic nor bilinear"),
    ],
)
def test_settings_of_open_clip_that_our_towers_do_not_have(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    parts = {"model_cfg": config, "preprocess_cfg": config}
    for name, value in changes.items():
        part, _, key = name.rpartition(".")
        place = parts.get(name) or (config if part == "preprocess_cfg" else config["model_cfg"])
        (place[part] if part else place)[key] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refused(folder, message)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        *((name, True) for name in ("RN50", "RN50x64", "ViT-B-16", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14", "ViT-S-16-alt")),
        *((name, False) for name in ("ViT-L-14-CLIPA", "ViT-L-14-worldwide", "ViT-M-16-alt", "coca_ViT-B-32")),
    ],
)
def test_published_shapes_come_out_of_the_tensors_as_their_configs_say_them(name: str, taken: bool, tmp_path: Path) -> None:
    """Those whose towers are CLIP's; the others are refused by their configs."""
    config = open_clip().get_model_config(name)
    with torch.device("meta"):
        state = open_clip().model.CLIP(
            **{key: value for key, value in config.items() if "custom" not in key and "multi" not in key}
        )
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": config}))
    if not taken:
        with pytest.raises(ModelError, match=r"which CLIP's own towers do not have|is missing"):
            read_open_clip(path, state.state_dict())
        return
    arch, facts = read_open_clip(path, state.state_dict())
    vision = {key: value for key, value in config["vision_cfg"].items() if key != "mlp_ratio" and value is not None}
    assert arch == {"quick_gelu": False, **config, "vision_cfg": vision}
    assert not facts
    if config["vision_cfg"].get("mlp_ratio", 4) == 4:  # where no config is needed
        assert arch_of(state.state_dict()) == {key: value for key, value in arch.items() if key != "quick_gelu"}


# Hugging Face's folders

HUGGING_FACE_CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 32,
    "text_config_dict": None,
    "vision_config": {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
        "intermediate_size": 512,
        "layer_norm_eps": 1e-5,
    },
    "text_config": {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 90,
        "max_position_embeddings": 12,
        "hidden_act": "quick_gelu",
    },
}
HUGGING_FACE_ARCH = {
    **ARCHS["vit"],
    "vision_cfg": {**ARCHS["vit"]["vision_cfg"], "head_width": 32},
    "text_cfg": {**TEXT, "heads": 2},
}
PREPROCESSOR = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "resample": 3,
    "size": 32,
    "crop_size": 32,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.1, 0.2, 0.3],
}


def hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names -> Hugging Face's: the published conversion backward."""
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.proj": "visual_projection.weight",
        "text_projection": "text_projection.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    parts = {
        "visual.transformer.resblocks": "vision_model.encoder.layers",
        "transformer.resblocks": "text_model.encoder.layers",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    found = {}
    for name, tensor in state.items():
        if name in names:
            found[names[name]] = tensor.T.contiguous() if name.endswith("proj") or name == "text_projection" else tensor
            continue
        for part, other in parts.items():
            name = re.sub(rf"(^|(?<=\.)){re.escape(part)}(?=\.)", other, name)
        if ".attn.in_proj_" in name:
            block, _, what = name.partition(".attn.in_proj_")
            found |= {f"{block}.self_attn.{x}_proj.{what}": t.clone() for x, t in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[name] = tensor
    found["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    found["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    return found


def hugging_face_folder(
    folder: Path, form: str = "model.safetensors", config: Any = HUGGING_FACE_CONFIG, preprocessor: Any = None
) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = hugging_face(states())
    extension = form.split(".")[1]

    def write(part: dict[str, Tensor], name: str) -> None:
        if extension == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)

    if form.endswith(".index.json"):
        places = {name: f"model-0000{1 + i % 2}-of-00002.{extension}" for i, name in enumerate(tensors)}
        for shard in sorted(set(places.values())):
            write({name: tensor for name, tensor in tensors.items() if places[name] == shard}, shard)
        (folder / form).write_text(json.dumps({"metadata": {"total_size": 5}, "weight_map": places}))
    else:
        write(tensors, form)
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize(
    "form", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
)
def test_hugging_faces_folder_comes_out_under_openais_names(form: str, tmp_path: Path) -> None:
    names = set(hugging_face(states()))
    assert "vision_model.pre_layrnorm.weight" in names
    assert "vision_model.encoder.layers.2.self_attn.q_proj.bias" in names
    assert "text_model.encoder.layers.1.layer_norm2.weight" in names
    weights = read_weights(hugging_face_folder(tmp_path, form, preprocessor=PREPROCESSOR))
    same(weights.state, states())
    assert (weights.form, weights.arch) == ("Hugging Face CLIP", HUGGING_FACE_ARCH)
    assert weights.facts == {
        "mean": (0.5, 0.4, 0.3),
        "std": (0.1, 0.2, 0.3),
        "size": 32,
        "resize": "crop",
        "filter": "bicubic",
    }


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy with entries replaced; a dot reaches into a part, None removes."""
    new: dict[str, Any] = json.loads(json.dumps(base))
    for name, value in changes.items():
        part, _, key = name.rpartition(".")
        place = new[part] if part else new
        place[key] = value
        if value is None:
            del place[key]
    return new


def test_what_hugging_faces_config_leaves_out_has_its_defaults(tmp_path: Path) -> None:
    """12 heads, which do not divide this width; 8; quick_gelu; and the config's first form, whose second name goes ahead."""
    bare = {"model_type": "clip", "vision_config": {"num_attention_heads": 4}, "text_config": None}
    arch = read_weights(hugging_face_folder(tmp_path, config=bare)).arch
    assert arch == {**HUGGING_FACE_ARCH, "text_cfg": {**TEXT, "heads": 8}}
    both = {**bare, "vision_config_dict": {"num_attention_heads": 2}, "text_config_dict": {"num_attention_heads": 4}}
    arch = read_weights(hugging_face_folder(tmp_path, config=both)).arch
    assert arch == {**ARCHS["vit"], "text_cfg": {**TEXT, "heads": 4}}
    refused(hugging_face_folder(tmp_path, config={"model_type": "clip"}), "12 heads do not divide a width of 128")


def test_hugging_faces_gelu(tmp_path: Path) -> None:
    exact = {"vision_config.hidden_act": "gelu", "text_config.hidden_act": "gelu"}
    assert read_weights(hugging_face_folder(tmp_path, config=changed(HUGGING_FACE_CONFIG, exact))).arch["quick_gelu"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, "model_type is 'siglip'; give the folder of a 'clip'"),
        ({"vision_config": 5}, "vision_config must be a JSON object, not int"),
        ({"vision_config.hidden_act": "gelu"}, r"hidden_act is \['gelu', 'quick_gelu'\], not gelu or quick_gelu twice"),
        ({"vision_config.num_attention_heads": 0}, "num_attention_heads must be a whole number of at least 1, not 0"),
        ({"vision_config.num_attention_heads": 256}, "256 heads do not divide a width of 128"),
        ({"text_config.layer_norm_eps": 1e-6}, r"layer_norm_eps is not 0\.00001"),
        ({"vision_config.patch_size": 16}, r"vision_config\.patch_size is 16, the weights say 8"),
        ({"text_config.vocab_size": 91}, r"text_config\.vocab_size is 91, the weights say 90"),
        ({"projection_dim": 512}, "projection_dim is 512, the weights say 32"),
    ],
)
def test_a_config_of_hugging_faces_that_is_another_models(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(hugging_face_folder(tmp_path, config=changed(HUGGING_FACE_CONFIG, changes)), f"config.json: .*{message}|{message}")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, {}),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False, "crop_size": 5}, {"resize": "squash"}),
        ({"resample": 2}, {"filter": "bilinear"}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"image_mean": None, "size": None, "resample": None}, {"mean": None, "resize": None, "filter": None}),
    ],
)
def test_preparation_in_the_words_of_hugging_face(changes: dict[str, Any], facts: dict[str, Any], tmp_path: Path) -> None:
    usual: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "size": 32, "resize": "crop", "filter": "bicubic"}
    wanted = {key: value for key, value in {**usual, **facts}.items() if value is not None}
    folder = hugging_face_folder(tmp_path, preprocessor=changed(PREPROCESSOR, changes))
    assert read_weights(folder).facts == wanted
    nested = {"image_processor": json.loads((folder / "preprocessor_config.json").read_text())}
    (folder / "preprocessor_config.json").unlink()
    assert read_weights(folder).facts == {}
    (folder / "processor_config.json").write_text(json.dumps(nested))  # of newer versions
    assert read_weights(folder).facts == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "do_resize and do_rescale must be true"),
        ({"do_center_crop": False}, "set do_center_crop to true"),
        ({"size": 40}, "size 40 and crop_size 32 cannot be prepared here"),
        ({"size": 40, "crop_size": 40}, "pictures are to be 40 pixels, the weights say 32"),
        ({"size": {"height": 32, "width": 40}}, "is no square"),
        ({"size": "32"}, "size '32' is no square"),
        ({"size": {}}, r"size \{\} is no square"),
        ({"resample": 0}, "0 is neither bicubic nor bilinear"),
        ({"image_std": "x" * 500}, r"std must be three numbers \(R, G, B\), not 'x+\.\.\.x+'; correct it"),
    ],
)
def test_preparation_that_a_card_cannot_say(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(hugging_face_folder(tmp_path, preprocessor=changed(PREPROCESSOR, changes)), message)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "vision_model.encoder.layers.0.self_attn.q_proj.weight",
            None,
            "q, k and v of visual.transformer.resblocks.0.attn.in_proj_",
        ),
        (
            "vision_model.encoder.layers.0.self_attn.q_proj.bias",
            5,
            "q, k and v of .*bias are not all there or not of one shape",
        ),
        (
            "vision_model.encoder.layers.0.self_attn.q_proj.bias",
            (),
            "q, k and v of .*bias are not all there or not of one shape",
        ),
        ("vision_model.head.probe", 5, "vision_model.head.probe is in it, which Hugging Face's CLIP does not have"),
        ("vision_model.encoder.layers.0.lora.weight", 5, "lora.weight is in it, which Hugging Face's CLIP does not have"),
        ("visual_projection.weight", 5, "visual_projection.weight has 1 dimensions"),
        ("vision_model.embeddings.class_embedding", None, "4 heads do not divide a width of 0"),
    ],
)
def test_tensors_that_are_no_hugging_face_clips_are_named(name: str, size: Any, message: str, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path)
    tensors = without(hugging_face(states()), name)
    save_file(tensors if size is None else {**tensors, name: torch.zeros(size)}, folder / "model.safetensors")
    refused(folder, message)


def test_shards_must_lie_beside_their_index(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    folder = hugging_face_folder(tmp_path / "hub", "model.safetensors.index.json")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    for bad in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "gone.safetensors", "", ".."):
        index.write_text(json.dumps({"weight_map": {**places, "x": bad}}))
        refused(folder, "index.json names .*, which is not there; get the folder anew")
    empties: list[Any] = [{}, {"weight_map": {}}, {"weight_map": [1]}]
    for empty in empties:
        index.write_text(json.dumps(empty))
        refused(folder, "names no files")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "again.safetensors")
    index.write_text(json.dumps({"weight_map": {**places, "x": "again.safetensors"}}))
    refused(folder, "holds tensors that another file holds too")


def test_open_clips_config_goes_ahead_where_both_are(tmp_path: Path) -> None:
    """Hubs hold both; one downloaded in part counts by the files that are there."""
    open_clip_folder(hugging_face_folder(tmp_path))
    assert read_weights(tmp_path).form == "open_clip safetensors"
    (tmp_path / "open_clip_model.safetensors").unlink()
    assert read_weights(tmp_path).form == "Hugging Face CLIP"
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "neither open_clip_config.json with .* nor config.json with .* is there; give a file of weights")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"a": ' * 100_000])
def test_a_config_that_is_no_json(text: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path)
    (folder / "open_clip_config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "open_clip_config.json (is not readable as JSON|must be a JSON object)")


# Nothing is run


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def in_torchscript(value: bytes, path: Path) -> None:
    """An archive of TorchScript, one of whose attributes is what the pickle `value` makes."""
    content = b"\x80\x02c__torch__.clip\nCLIP\n)\x81}X\x01\x00\x00\x00a" + value[2:-1] + b"sb."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip/data.pkl", content)
        archive.writestr("clip/constants.pkl", b"\x80\x02).")
        archive.writestr("clip/version", b"3\n")


CODE = r"holds code, not only weights; nothing in it was run; it names \S+; get the weights as \.safetensors"


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("place", ["alone", "beside", "within", "optimizer"])
def test_code_in_a_checkpoint_is_refused_and_not_run(place: str, write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "clip.pt"
    payload: Any = Payload(made)
    value = {
        "alone": payload,
        "beside": {**states(), "epoch": payload},
        "within": {**states(), "logit_scale": payload},
        "optimizer": {"state_dict": states(), "optimizer": {"state": [payload]}},
    }[place]
    write(value, path)
    torch.load(path, weights_only=False)
    assert made.is_dir()  # it does what it is for
    made.rmdir()
    assert f"{os.mkdir.__module__}.mkdir" in refused(path, CODE)
    assert not made.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_bare_pickle_is_not_run(protocol: int, tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "clip.pt"
    path.write_bytes(pickle.dumps(Payload(made), protocol))
    pickle.loads(path.read_bytes())
    made.rmdir()
    refused(path, CODE if protocol >= 2 else "is no file of weights")
    assert not made.exists()


@pytest.mark.parametrize("folder", [open_clip_folder, hugging_face_folder])
def test_code_in_a_hubs_folder_is_not_run(folder: Callable[[Path], Path], tmp_path: Path) -> None:
    made, hub = tmp_path / "made", folder(tmp_path / "hub")
    weights = next(hub.glob("*.safetensors"))
    weights.unlink()
    name = "open_clip_pytorch_model.bin" if "open_clip" in weights.name else "pytorch_model.bin"
    torch.save({**states(), "x": Payload(made)}, hub / name)
    refused(hub, f"{name}: {CODE}")
    assert not made.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cposix\nsystem\nX\x06\x00\x00\x00echo 1\x85R",
        b"\x8c\x05posix\x8c\x06system\x93X\x06\x00\x00\x00echo 1\x85R",  # the names from the stack
        b"(X\x06\x00\x00\x00echo 1iposix\nsystem\n",  # an instance
        b"\x82\x01",  # the registry of extensions
        b"cos\nsystem\n",
        b"c__builtin__\neval\n",
        b"ctorch\nload\n",
        b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n",
        b"cargparse\nNamespace\n)\x81",
        b"cx\x1b[31m\nsys tem\n",
    ],
)
def test_code_in_a_torchscript_archive_is_not_run(code: bytes, tmp_path: Path) -> None:
    in_torchscript(b"\x80\x02" + code + b".", tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", CODE)


def test_torchscripts_own_code_is_never_read(tmp_path: Path) -> None:
    path = scripted(reference(), "script", tmp_path / "clip.pt")
    broken = rewritten(path, lambda name, content: b"\xff" if name.startswith("code/") else content, tmp_path / "broken.pt")
    same(read_weights(broken).state, states())
    with pytest.raises(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jit.load(broken)


def test_names_in_a_zip_are_no_paths(tmp_path: Path) -> None:
    torch.save(states(), tmp_path / "clip.pt")
    with zipfile.ZipFile(tmp_path / "clip.pt", "a") as archive:
        archive.writestr("../escaped", b"x")
        archive.writestr("/escaped", b"x")
        link = zipfile.ZipInfo("clip/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    same(read_weights(tmp_path / "clip.pt").state, states())
    assert [p.name for p in tmp_path.iterdir()] == ["clip.pt"]


# Files that are damaged, or lie


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    path, five = tmp_path / "clip.pt", list[Any]([1, 2, {}, {}, []])
    refused(path, "no such file or folder; give local weights")
    refused(tmp_path, "neither open_clip_config.json .* nor config.json")
    for content, message in (
        (b"", "it is empty"),
        (b"hello", "is no file of weights; give OpenAI's or open_clip's .pt, a .safetensors file, or a folder"),
        (b"<!DOCTYPE html><html>", "is no file of weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "Git LFS's pointer .*; run: git lfs pull"),
        (b"PK\3\4", "does not read as a zip"),
        (b"PK\5\6" + bytes(18), "is a zip without torch's data.pkl"),
        (b"\x80", "its pickle cannot be read"),
        (b"\x80\x02c\\)\nx\n.", CODE),
        (pickle.dumps({"a": 1}), "its pickle cannot be read|not of torch's"),
        (b"".join(pickle.dumps(v, 2) for v in five), "is a pickle, but not of torch's"),
        (b"\x08" + bytes(7) + b'{"a": 1}', "does not read as safetensors"),
        (b"\xff" * 8 + b"{", "does not read as safetensors"),
    ):
        path.write_bytes(content)
        refused(path, message)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "clip.pt").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", no)
    refused(tmp_path / "clip.pt", r"cannot be read \(Permission denied\); give another file")


@pytest.mark.parametrize(
    "value",
    [
        5,
        "weights",
        [1, 2],
        {},
        {"state_dict": 5},
        {"state_dict": {}},
        {"state_dict": [torch.zeros(3)]},
        {"epoch": 3},
        torch.zeros(3),
    ],
)
def test_a_checkpoint_without_a_state_dict(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", "holds no state dict; give a file of weights by name, or a checkpoint with its state_dict")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small file of each form."""
    folder = tmp_path_factory.mktemp("files")
    small = {name: tensor.half() for name, tensor in states().items()}
    torch.save(small, folder / "zip.pt")
    torch.save(small, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(small, folder / "tensors.safetensors")
    scripted(reference(), "script", folder / "script.pt")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["zip", "legacy", "tensors", "script"])
def test_a_truncated_file_is_refused(form: str, files: dict[str, Path], tmp_path: Path) -> None:
    content = files[form].read_bytes()
    path = tmp_path / "clip.pt"
    for length in (1, 2, 7, 8, 9, 30, 31, 100, 1000, 10_000, len(content) // 2, len(content) - 30, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path, "anew|give ")


@pytest.mark.parametrize("form", ["zip", "legacy", "tensors", "script"])
def test_damaged_bytes_never_crash_it(form: str, files: dict[str, Path], tmp_path: Path) -> None:
    """Bytes changed in the parts that are not numbers: read all the same, or refused in one line."""
    content, path = files[form].read_bytes(), tmp_path / "clip.pt"
    chance, outcomes = random.Random(form), set()
    parts = [*range(3000), *range(len(content) - 3000, len(content))]
    if form in ("zip", "script"):
        with zipfile.ZipFile(files[form]) as archive:
            start = next(i.header_offset for i in archive.infolist() if i.filename.endswith("data.pkl"))
        parts += range(start, start + 5000)
    for _ in range(60):
        changed_bytes = bytearray(content)
        for _ in range(chance.choice([1, 1, 3, 30])):
            changed_bytes[chance.choice(parts)] = chance.randrange(256)
        path.write_bytes(changed_bytes)
        try:
            read_weights(path)
            outcomes.add("read")
        except ModelError as error:
            outcomes.add("refused" if str(error).isprintable() else repr(error))
    assert outcomes == {"read", "refused"}


def test_zips_that_are_not_as_torch_writes_them(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    state = read_weights(files["zip"]).state
    same(read_weights(rewritten(files["zip"], lambda _, content: content, path)).state, state)  # numbers at odd places
    refused(rewritten(files["zip"], lambda _, content: content, path, zipfile.ZIP_DEFLATED), "without torch's data.pkl")
    for change, message in (
        (lambda name, content: None if name == "data/3" else content, "a storage is missing"),
        (lambda name, content: content[:-2] if name == "data/3" else content, "a storage is not as long as its tensors say"),
        (lambda name, content: content + b"x" if name == "data/3" else content, "a storage is not as long as its tensors say"),
        (lambda name, content: b"big" if name == "byteorder" else content, "was written on a big-endian machine"),
        (lambda name, content: content + bytes(2**24) if name == "data.pkl" else content, "far longer than weights need"),
    ):
        refused(rewritten(files["zip"], change, path), message)


def tensor(
    storage: bytes = b"FloatStorage",
    offset: int = 0,
    shape: tuple[int, ...] = (3,),
    stride: tuple[int, ...] = (1,),
    length: int = 4,
    key: str = "0",
) -> bytes:
    """A pickle, without head and end, of a tensor in a storage of that type, length and key."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    device = b"X\x03\x00\x00\x00cpu"
    identity = b"(X\x07\x00\x00\x00storagectorch\n" + storage + b"\n" + plain(key) + device + plain(length) + b"tQ"
    rest = plain(offset) + plain(shape) + plain(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + rest + b"tR"


def archive_of(path: Path, *tensors: bytes, numbers: bytes = bytes(16)) -> Path:
    names = [b"X\x01\x00\x00\x00" + bytes([97 + i]) for i in range(len(tensors))]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}(" + b"".join(a + b for a, b in zip(names, tensors, strict=True)) + b"u.")
        archive.writestr("x/data/0", numbers)
    return path


def test_tensors_that_lie_about_their_storage(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    storage = b"FloatStorage"
    read = read_tensors(archive_of(path, tensor(storage), tensor(storage, 3, (), ()), tensor(storage, 0, (2, 2), (1, 2))))
    assert {name: tuple(t.shape) for name, t in read.tensors.items()} == {"a": (3,), "b": (), "c": (2, 2)}
    for lie, message in (
        (tensor(storage, offset=2), "a does not fit its storage"),
        (tensor(storage, shape=(5,)), "a does not fit its storage"),
        (tensor(storage, shape=(0,)), "a does not fit its storage"),
        (tensor(storage, shape=(2, 2), stride=(9, 1)), "a does not fit its storage"),
        (tensor(storage, shape=(2**40, 2**40), stride=(0, 0)), "a does not fit its storage"),  # more than memory holds
        (tensor(storage, shape=(2**61, 2**61)), "a tensor of an impossible shape"),
        (tensor(storage, shape=(-1,)), "a tensor of an impossible shape"),
        (tensor(storage, offset=-1), "a tensor of an impossible shape"),
        (tensor(storage, shape=(1,) * 9, stride=(1,) * 9), "a tensor of an impossible shape"),
        (tensor(storage, length=2**50, shape=(2**50,)), "its tensors are larger than the file"),
        (tensor(storage, length=2**70), "a storage of an unknown kind"),
        (tensor(storage, length=3), "a storage is not as long as its tensors say"),
        (tensor(b"HalfStorage"), "a storage is not as long as its tensors say"),
        (tensor(b"ComplexFloatStorage"), "holds code, not only weights"),
    ):
        refused(archive_of(path, lie), message)
    refused(archive_of(path, tensor(storage), tensor(b"IntStorage")), "one storage of two kinds")
    many = [tensor(storage, shape=(4096,), length=4096)] * 20
    refused(archive_of(path, *many, numbers=bytes(4 * 4096)), "its tensors are larger than the file")
    archive_of(path, *(tensor(storage, length=4096, key=key) for key in "0123456789"), numbers=bytes(4 * 4096))
    with zipfile.ZipFile(path, "a") as archive:  # ten storages in one place
        for key in "123456789":
            archive.filelist.append(copy.copy(archive.getinfo("x/data/0")))
            archive.filelist[-1].filename = f"x/data/{key}"
        archive.writestr("x/version", b"3")
    refused(path, "its tensors are larger than the file")


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"}" * 600_000, "far longer than weights need"),
        (b"((((((((t", "cannot be read"),
        (b"t", "cannot be read"),
        (b"0", "cannot be read .POP in it"),
        (b"h\x05", "cannot be read"),
        (b"}]a", "list where|cannot be read"),
        (b"}))s", "keys that are no names"),
        (b"]))s", "dict belongs|keys that are no names"),
        (b"}(K\x01u", "cannot be read"),
        (b")Q", "cannot be read"),
        (b"K\x01Q", "int where tuple belongs"),
        (b"K\x01)R", "int where _Name belongs"),
        (b"ctorch\nFloatStorage\n)R", "FloatStorage called"),
        (b"ctorch\nFloatStorage\n)\x81", "an object of no class"),
        (b"ccollections\nOrderedDict\nK\x01\x85R", "OrderedDict called"),
        (b"ctorch\nSize\n)R", "cannot be read"),
        (b"K\x01}b", "int where dict belongs"),
        (b"\x93", "cannot be read"),
        (b"K\x01K\x02\x93", "int where str belongs"),
        (b"X\xff\xff\xff\x7fabc", "expected 2147483647 bytes"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc", "cannot be read"),
        (b"r\xff\xff\xff\xff", "cannot be read"),
        (b"]r\xff\xff\xff\xff", "holds no state dict"),  # Python's own unpickler makes room for all four billion
        (b"]" + b"\x85" * 200_000, "holds no state dict"),
        (b"}" + b"]" + b"\x85" * 200_000 + b"K\x01s", "keys that are no names"),
        (b"\x80\x02", "cannot be read"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_pickles_that_torch_does_not_write(pickled: bytes, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + pickled + b".")
    refused(tmp_path / "clip.pt", message)


def test_torchscripts_lists_and_odd_objects_are_passed_over(tmp_path: Path) -> None:
    """Lists of numbers, dicts and quantized objects of a module hold none of a CLIP's weights."""
    lists = b"ctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R"
    tagged = b"ctorch.jit._pickle\nrestore_type_tag\n}X\x01\x00\x00\x00x\x86R"
    odd = b"c__torch__.a\nB\n)\x81K\x01b"
    for value in (lists, tagged, odd, b"N"):
        in_torchscript(b"\x80\x02" + value + b".", tmp_path / "clip.pt")
        refused(tmp_path / "clip.pt", "holds no state dict")


def module(state: bytes) -> bytes:
    return b"c__torch__.a\nB\n)\x81q\x01}(" + state + b"ub"


def test_torchscript_modules_without_end(tmp_path: Path) -> None:
    """One that contains itself, and forty of which each contains the one before twice."""
    long = b"\x8c\xfa" + b"a" * 250
    twice = b"(" + module(b"")
    for i in range(2, 40):
        twice += b"".join((b"q", bytes([i]), module(b"\x8c\x01xh%c\x8c\x01yh%c" % (i, i))))
    all_twice = module(b"\x8c\x01l" + twice + b"q\x63t\x8c\x01mh\x63")
    for value in (module(b"\x8c\x01ah\x01"), module(long + b"h\x01"), all_twice):
        with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
            archive.writestr("x/data.pkl", b"\x80\x02" + value + b".")
        refused(tmp_path / "clip.pt", "its modules have no end")


def test_legacy_files_that_lie(tmp_path: Path) -> None:
    def legacy(value: bytes, version: int = 1001, keys: Any = ("0",), little: bool = True, rest: bytes = b"") -> Path:
        head = [0x1950A86A20F9469CFC6C, version, {"little_endian": little}]
        parts = [*(pickle.dumps(v, 2) for v in head), b"\x80\x02}\x8c\x01a" + value + b"s."]
        path.write_bytes(b"".join([*parts, pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2), rest]))
        return path

    path, storage, whole = tmp_path / "clip.pt", b"FloatStorage", struct.pack("<q4f", 4, 1, 2, 3, 4)
    assert read_tensors(legacy(tensor(storage, 1), rest=whole)).tensors["a"].tolist() == [2, 3, 4]
    lies: list[tuple[bytes, dict[str, Any], str]] = [
        (tensor(storage), {"version": 1000}, "is a pickle, but not of torch's"),
        (tensor(storage), {"keys": 5}, "is a pickle, but not of torch's"),
        (tensor(storage), {"keys": ("0", "1")}, "is a pickle, but not of torch's"),
        (tensor(storage), {"keys": (0,)}, "is a pickle, but not of torch's"),
        (tensor(storage), {"keys": ()}, "a storage is missing"),
        (tensor(storage), {"little": False}, "was written on a big-endian machine"),
        (tensor(storage), {"rest": whole[:-1]}, "a storage is not as long as its tensors say"),
        (tensor(storage, length=3), {}, "a storage is not as long as its tensors say"),
        (tensor(storage, length=2**50, shape=(2**50,)), {"rest": struct.pack("<q", 2**50)}, "its tensors are larger"),
    ]
    for value, changes, message in lies:
        refused(legacy(value, **{"rest": whole, **changes}), message)


# Memory


def test_tensors_are_views_of_the_file_and_writing_them_leaves_it_alone(files: dict[str, Path]) -> None:
    for form in ("zip", "script"):
        before = files[form].read_bytes()
        state = read_weights(files[form]).state
        places = [t.data_ptr() for t in state.values()]
        assert max(places) - min(places) < len(before)  # one map, nothing copied
        for t in state.values():
            t.zero_()
        assert files[form].read_bytes() == before
