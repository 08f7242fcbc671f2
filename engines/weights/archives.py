"""One file of tensors in, the tensors by name out: torch's archives, its older pickles, TorchScript, safetensors.

Numbers stay in the file until somebody looks at them: a tensor is a view of a private, copy-on-write map of it. A zip is only
ever an index into that map, so nothing is unpacked, and no name in it becomes a path.
"""

from __future__ import annotations

import io
import math
import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..base import one_line
from ..errors import ModelError
from .pickles import DAMAGED, Module, Pickled, Storage, Stored, printable, read_pickle, state_of

TORCHSCRIPT, CHECKPOINT, SAFETENSORS = "OpenAI TorchScript", "open_clip checkpoint", "open_clip safetensors"

_MOST_PICKLED = 2**24  # bytes; a training checkpoint of ViT-L has half a megabyte
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # how torch's files began before they were zips
_ACTIVATIONS = "__torch__.torch.nn.modules.activation"
_LFS = b"version https://git-lfs"
_TYPES = {
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class Contents(NamedTuple):
    """tensors: by the names they have in the file. form: TORCHSCRIPT, CHECKPOINT or SAFETENSORS. gelu: TorchScript that has
    torch's own GELU, as no archive of OpenAI's does."""

    tensors: dict[str, Tensor]
    form: str
    gelu: bool = False


class Place(NamedTuple):
    """Bytes of the file."""

    start: int
    size: int


def read_tensors(path: Path) -> Contents:
    """Read a file of weights, whatever it is called; raise `ModelError`, without the path, for anything else."""
    try:
        with path.open("rb") as file:
            first = file.read(64)
            if not first:
                raise ModelError("it is empty; get it anew")
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if first.startswith(b"PK"):
                return _read_zip(file, whole)
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror or one_line(error)}); give another file") from None
    if first[8:9] == b"{":
        return Contents(_read_safetensors(path), SAFETENSORS)
    if first.startswith(b"\x80"):
        return Contents(_read_legacy(whole), CHECKPOINT)
    if first.startswith(_LFS):
        raise ModelError("is Git LFS's pointer to the weights, not the weights; run: git lfs pull")
    raise ModelError("is no file of weights; give OpenAI's or open_clip's .pt, a .safetensors file, or a folder of a hub's")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ModelError(f"does not read as safetensors ({printable(one_line(error))}); {DAMAGED}") from None


def _read_zip(file: Any, whole: mmap.mmap) -> Contents:
    """What torch.save and torch.jit.save write: TOP/data.pkl, and each storage as TOP/data/KEY; TorchScript has code too."""
    records = _records(file, whole)
    if "data.pkl" not in records:
        raise ModelError("is a zip without torch's data.pkl, so no archive of weights; give what is packed in it")
    order = records.get("byteorder", Place(0, 0))
    if whole[order.start : order.start + order.size] not in (b"", b"little"):
        raise ModelError("was written on a big-endian machine; save it anew on another")
    place = records["data.pkl"]
    if place.size > _MOST_PICKLED:
        raise ModelError("its pickle is far longer than weights need; give a file of weights alone")
    pickled = read_pickle(io.BytesIO(whole[place.start : place.start + place.size]))
    places = {key: records[f"data/{key}"] for key in pickled.storages if f"data/{key}" in records}
    tensors = _tensors(pickled, places, whole)
    if isinstance(pickled.value, Module):
        gelu = any(name.startswith(_ACTIVATIONS) and name.endswith(" GELU") for name in pickled.names)
        return Contents(tensors, TORCHSCRIPT, gelu)
    return Contents(tensors, CHECKPOINT)


def _records(file: Any, whole: mmap.mmap) -> dict[str, Place]:
    """Where each record that is not compressed lies, by its name below the top folder; torch compresses nothing but code."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError) as error:
        raise ModelError(f"does not read as a zip ({printable(one_line(error))}); {DAMAGED}") from None
    records = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            continue
        header = whole[entry.header_offset : entry.header_offset + 30]
        # The lengths here may differ from those in the zip's directory: torch aligns records by a longer extra field.
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        place = Place(entry.header_offset + 30 + lengths, entry.file_size)
        if entry.header_offset < 0 or header[:4] != b"PK\3\4" or place.start + place.size > len(whole):
            raise ModelError(f"does not read as a zip (a record lies outside it); {DAMAGED}")
        records[entry.filename.partition("/")[2]] = place
    return records


def _read_legacy(whole: mmap.mmap) -> dict[str, Tensor]:
    """torch's format before 1.6: five pickles, and behind them every storage as its length and its numbers."""
    stream = io.BytesIO(whole[:_MOST_PICKLED])
    magic, version = read_pickle(stream).value, read_pickle(stream).value
    system, pickled, keys = read_pickle(stream).value, read_pickle(stream), read_pickle(stream).value
    if (magic, version) != _LEGACY or not isinstance(keys, list):
        raise ModelError(f"is a pickle, but not of torch's; {DAMAGED}")
    if not (isinstance(system, dict) and system.get("little_endian")):
        raise ModelError("was written on a big-endian machine; save it anew on another")
    places, position = {}, stream.tell()
    for key in keys:
        if not isinstance(key, str) or key not in pickled.storages:
            raise ModelError(f"is a pickle, but not of torch's; {DAMAGED}")
        storage = pickled.storages[key]
        if int.from_bytes(whole[position : position + 8], "little") != storage.length:
            raise ModelError(f"a storage is not as long as its tensors say; {DAMAGED}")
        places[key] = Place(position + 8, storage.length * _TYPES[storage.type].itemsize)
        position += 8 + places[key].size
    return _tensors(pickled, places, whole)


def _tensors(pickled: Pickled, places: Mapping[str, Place], whole: mmap.mmap) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, checkpoint or module."""
    value = pickled.value
    if isinstance(value, Module):
        state: dict[Any, Any] = dict(state_of(value))
    else:
        state = value.get("state_dict", value) if isinstance(value, dict) else {}
    stored = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, Stored)} if isinstance(state, dict) else {}
    if not stored:
        raise ModelError("holds no state dict; give a file of weights by name, or a checkpoint with its state_dict")
    for name, tensor in stored.items():  # else a few numbers of the file could stand for more than memory holds
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
        if not 0 < math.prod(tensor.shape) <= tensor.storage.length or last >= tensor.storage.length:
            raise ModelError(f"{printable(name)} does not fit its storage; {DAMAGED}")
    storages = {t.storage.key: t.storage for t in stored.values()}
    in_tensors = sum(math.prod(t.shape) * _TYPES[t.storage.type].itemsize for t in stored.values())
    in_storages = sum(storage.length * _TYPES[storage.type].itemsize for storage in storages.values())
    if max(in_tensors, in_storages) > len(whole):
        raise ModelError(f"its tensors are larger than the file; {DAMAGED}")
    numbers = {key: _numbers(storage, places.get(key), whole) for key, storage in storages.items()}
    return {n: numbers[t.storage.key].as_strided(t.shape, t.stride, t.offset) for n, t in stored.items()}


def _numbers(storage: Storage, place: Place | None, whole: mmap.mmap) -> Tensor:
    """A storage, which is not empty, as a flat tensor that lies in the map."""
    dtype = _TYPES[storage.type]
    if place is None:
        raise ModelError(f"a storage is missing; {DAMAGED}")
    if place.size != storage.length * dtype.itemsize or place.start + place.size > len(whole):
        raise ModelError(f"a storage is not as long as its tensors say; {DAMAGED}")
    if place.start % dtype.itemsize:  # in torch's old format anywhere, in a zip where torch did not write it
        return torch.frombuffer(bytearray(memoryview(whole)[place.start : place.start + place.size]), dtype=dtype)
    return torch.frombuffer(whole, dtype=dtype, count=storage.length, offset=place.start)
