"""The same towers under other names: tensors by open_clip's or Hugging Face's names in, by OpenAI's out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .pickles import printable

NUMBERS = ("input_resolution", "context_length", "vocab_size")  # beside the weights of OpenAI's archives
_WRAPPERS = ("module.", "_orig_mod.")  # torch's DistributedDataParallel and compile
_TEXT = ("transformer.resblocks.", "token_embedding.weight", "positional_embedding", "ln_final.", "text_projection")

# Hugging Face's names; a block's own follow a number.
_HF_TOWERS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
_HF_BLOCKS = {"vision_model": "visual.transformer.resblocks", "text_model": "transformer.resblocks"}
_HF_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_HF_BLOCK = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def is_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("vision_model.", "text_model.")) for name in tensors)


def from_open_clip(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Names of open_clip (its custom text layout too), or OpenAI's own -> OpenAI's, and facts that are no weights.

    facts: `logit_bias` where there is one, and the numbers of OpenAI's archives. Raises `ModelError` for tensors that CLIP's
    two towers do not have.
    """
    for wrapper in 2 * _WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    state: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for given, tensor in tensors.items():
        name = given.removeprefix("text.")
        if name.endswith("attn_mask"):  # a constant, which TorchScript and some checkpoints keep
            continue
        if name in (*NUMBERS, "logit_bias") and tensor.numel() == 1:
            facts[name] = tensor.item()
            continue
        if name == "text_projection.weight":  # of a Linear
            name, tensor = "text_projection", _transposed(given, tensor)
        elif name == "logit_scale" and tensor.numel() == 1:
            tensor = tensor.reshape(())
        visual = given.startswith("visual.")
        if not (visual or given == name == "logit_scale" or name.startswith(_TEXT)) or name == "text_projection.bias":
            raise ModelError(f"{printable(given)} is in it, which CLIP's two towers do not have; give weights of a CLIP")
        _put(state, name, tensor)
    return state, facts


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of Hugging Face's CLIPModel -> OpenAI's: q, k and v in one, projections the other way round."""
    state: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}  # of in_proj, by q, k, v
    for given, tensor in tensors.items():
        if given.endswith("embeddings.position_ids"):  # 0, 1, 2, ...
            continue
        block = _HF_BLOCK.fullmatch(given)
        if given in _HF_TOWERS:
            turned = given.endswith("l_projection.weight") or given == "text_projection.weight"
            _put(state, _HF_TOWERS[given], _transposed(given, tensor) if turned else tensor)
        elif block and block[3] in _HF_LAYERS:
            _put(state, f"{_HF_BLOCKS[block[1]]}.{block[2]}.{_HF_LAYERS[block[3]]}.{block[4]}", tensor)
        elif block and block[3] in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            name = f"{_HF_BLOCKS[block[1]]}.{block[2]}.attn.in_proj_{block[4]}"
            parts.setdefault(name, {})[block[3][10]] = tensor
        else:
            raise ModelError(f"{printable(given)} is in it, which Hugging Face's CLIP does not have; give the folder of a CLIP")
    for name, part in parts.items():
        sizes = {tuple(t.shape) for t in part.values()}
        if set(part) != set("qkv") or len(sizes) != 1 or len({t.dtype for t in part.values()}) != 1 or () in sizes:
            raise ModelError(f"q, k and v of {name} are not all there or not of one shape; get the weights anew")
        _put(state, name, torch.cat([part[x] for x in "qkv"]))
    return state


def _put(state: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in state or not name.isprintable():
        raise ModelError(f"{printable(name)} is in it twice or no name; get the weights anew")
    state[name] = tensor


def _transposed(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim != 2:
        raise ModelError(f"{printable(name)} has {tensor.ndim} dimensions where CLIP's has 2; give weights of a CLIP")
    return tensor.T.contiguous()
