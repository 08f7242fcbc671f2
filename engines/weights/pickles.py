"""Pickles of weights read as data: a stream in, plain values out; nothing that a pickle names is imported or called.

Python's unpickler imports and calls whatever it is told to. torch's own for weights alone could be led around until torch 2.6
(CVE-2025-32434), and reads no TorchScript. So the few instructions that torch writes are carried out here, on lists and
dicts; a name outside the short lists below ends the reading before anything else is looked at.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..base import one_line
from ..errors import ModelError

DAMAGED = "it is damaged or no file of weights; get it anew"

_MOST_STEPS = 500_000  # each may leave an object behind; a training checkpoint of ViT-L takes some 60,000
_MOST_ATTRIBUTES = 50_000  # a TorchScript ViT-L has some 5,000
_LONGEST_NAME = 500

_TYPES = ("Half", "BFloat16", "Float", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_STORAGES = {f"torch {name}Storage": name for name in _TYPES}
_DATA = {
    *("NONE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "INT", "LONG", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


class Storage(NamedTuple):
    """Numbers of one type, somewhere in the file under `key`."""

    type: str  # of `_TYPES`
    key: str
    length: int


class Stored(NamedTuple):
    """A tensor that has not been read: where its numbers lie in a storage. Not yet checked against it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Module:
    """An object of a TorchScript class: its attributes and nothing else."""

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}


class Pickled(NamedTuple):
    value: Any
    storages: dict[str, Storage]  # by key
    names: set[str]  # of classes and calls, "module name"


class _Name(str):
    """What a pickle calls by name: "module name"."""


def read_pickle(stream: io.BytesIO) -> Pickled:
    """Read one pickle off `stream`; raise `ModelError` where it is damaged, absurdly long, or names anything but weights."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in names
            return _read(stream)
    except ModelError:
        raise
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ModelError(f"its pickle cannot be read ({printable(one_line(error))}); {DAMAGED}") from None


def state_of(module: Module) -> dict[str, Stored]:
    """A TorchScript object's tensors by dotted name; raises `ModelError` for one that contains itself."""
    found: dict[str, Stored] = {}
    waiting = [("", module)]
    seen = 0
    while waiting:
        prefix, module = waiting.pop()
        for attribute, value in module.attributes.items():
            name, seen = f"{prefix}{attribute}", seen + 1
            if len(name) > _LONGEST_NAME or seen > _MOST_ATTRIBUTES:
                raise ModelError(f"its modules have no end; {DAMAGED}")
            if isinstance(value, Stored):
                found[name] = value
            elif isinstance(value, Module):
                waiting.append((f"{name}.", value))
    return found


def printable(text: str) -> str:
    """Words out of a file as they may stand in a message: one line, not long."""
    text = "".join(c if c.isprintable() else "?" for c in text[:81])
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read(stream: io.BytesIO) -> Pickled:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the marks
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}
    names: set[str] = set()

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    argument: Any
    for step, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if step > _MOST_STEPS:
            raise ModelError("its pickle is far longer than weights need; give a file of weights alone")
        match operation.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                below.append(stack)
                stack = []
            case "NEWTRUE" | "NEWFALSE":
                stack.append(operation.name == "NEWTRUE")
            case name if name in _DATA:
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                items = since_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(operation.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                items = [stack.pop()]
                _as(list, stack[-1]).extend(items)
            case "APPENDS":
                items = since_mark()
                _as(list, stack[-1]).extend(items)
            case "SETITEM":
                items = [stack.pop(), stack.pop()][::-1]
                _set(stack[-1], items)
            case "SETITEMS":
                items = since_mark()
                _set(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(argument, names))
            case "STACK_GLOBAL":
                name, module = _as(str, stack.pop()), _as(str, stack.pop())
                stack.append(_named(f"{module} {name}", names))
            case "INST" | "EXT1" | "EXT2" | "EXT4":
                raise _code(str(argument))
            case "NEWOBJ":
                _as(tuple, stack.pop())
                if not _as(_Name, stack.pop()).startswith("__torch__."):
                    raise ValueError("an object of no class")
                stack.append(Module())
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Module):  # a dict's is torch's note of versions
                    stack[-1].attributes = state if isinstance(state, dict) else {}
                else:
                    _as(dict, stack[-1])
            case "BINPERSID":
                storage = _storage(*_as(tuple, stack.pop()))
                if storages.setdefault(storage.key, storage) != storage:
                    raise ValueError("one storage of two kinds")
                stack.append(storage)
            case "REDUCE":
                arguments = _as(tuple, stack.pop())
                stack.append(_call(_as(_Name, stack.pop()), arguments))
            case name:
                raise ValueError(f"{name} in it")
    if below or len(stack) != 1:
        raise ValueError("not one value")
    return Pickled(stack[0], storages, names)


def _named(name: str, names: set[str]) -> _Name:
    if name not in _STORAGES and name not in _CALLS and not name.startswith("__torch__."):
        raise _code(name)
    names.add(name)
    return _Name(name)


def _code(name: str) -> ModelError:
    return ModelError(
        f"holds code, not only weights; nothing in it was run; it names {printable(name.replace(' ', '.'))}; "
        "get the weights as .safetensors, or have their maker save the state dict alone"
    )


def _storage(*identity: Any) -> Storage:
    """What torch calls a storage's persistent id: "storage", type, key, device, length and, long ago, a view."""
    kind, type_, key, _device, count, *view = identity
    if kind != "storage" or not isinstance(type_, _Name) or view not in ([], [None]) or not _is_count(count):
        raise ValueError("a storage of an unknown kind")
    return Storage(_STORAGES[type_], _as(str, key), count)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_rest: Any) -> Stored:
    shape, stride = _as(tuple, shape), _as(tuple, stride)
    if not (len(shape) == len(stride) <= 8 and all(map(_is_count, (offset, *shape, *stride)))):
        raise ValueError("a tensor of an impossible shape")
    return Stored(_as(Storage, storage), offset, shape, stride)


def _call(name: str, arguments: Sequence[Any]) -> Any:
    match _CALLS.get(name):
        case "tensor":
            return _tensor(*arguments)
        case "first":
            return arguments[0]
        case "dict" if not arguments:
            return {}
    raise ValueError(f"{name} called")


# What torch's calls stand for here; the lists of a TorchScript module hold no weights.
_CALLS = {
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_parameter": "first",
    "torch Size": "first",
    "collections OrderedDict": "dict",
    "torch.jit._pickle restore_type_tag": "first",
    **{f"torch.jit._pickle build_{kind}list": "first" for kind in ("int", "double", "bool", "tensor")},
}


def _set(target: Any, items: Sequence[Any]) -> None:
    names, values = items[::2], items[1::2]
    if not all(isinstance(name, str | int) for name in names):  # no tuples: their hash goes as deep as they do
        raise ValueError("a dict with keys that are no names")
    _as(dict, target).update(zip(names, values, strict=True))


def _as(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
