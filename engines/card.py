"""What a model folder says of itself: `card.json` in, a frozen `ModelCard` out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from .errors import ModelError

Resize = Literal["crop", "squash", "pad"]
Filter = Literal["bicubic", "bilinear"]
Activation = Literal["softmax", "sigmoid"]

# What OpenAI's CLIP normalizes pictures by: RGB, of values in 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ModelCard:
    """The facts that must travel with weights.

    id: the model's name. space: names the embedding space; fp16, int8 and distilled children of a model share it, a
    retrained model changes it, and a label bank fits a model when their spaces agree. size: input edge in pixels.
    dim: length of an embedding. mean, std: per RGB channel, of values in 0..1. resize: how a frame becomes square
    (see `prepare`). logit_scale, logit_bias, activation: how cosines become probabilities. context_length: tokens a
    text tower takes. background: texts that are true of a picture of nothing on a list; they compete with typed labels.
    threshold: the cosine that a typed label needs to be named. margin: how far it must stand above the strongest background
    text. limits: what the model does not know, in a few words that are shown wherever it runs. arch: the towers' shape where
    this project's torch definition can build them. notes: anything else worth keeping (data, seeds, figures of a check);
    never read by code.
    """

    id: str
    space: str
    size: int
    dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize = "crop"
    filter: Filter = "bicubic"
    logit_scale: float = 100.0
    logit_bias: float = 0.0
    activation: Activation = "softmax"
    context_length: int | None = None
    background: tuple[str, ...] = ()
    threshold: float | None = None
    margin: float = 0.0
    limits: str = ""
    arch: Mapping[str, Any] = field(default_factory=dict, hash=False)
    license: str = ""
    source: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Raise `ModelError` naming the field that is wrong."""
        for name in ("id", "space"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ModelError(f"card: '{name}' must be a text that is not empty")
        for name in ("size", "dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"card: '{name}' must be a whole number of at least 1, not {value!r}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not (isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))):
                raise ModelError(f"card: '{name}' must be three numbers (R, G, B), not {value!r}")
            object.__setattr__(self, name, tuple(float(v) for v in value))
        if min(self.std) <= 0:
            raise ModelError(f"card: 'std' must be above 0, not {list(self.std)}")
        for name in ("logit_scale", "logit_bias"):
            if not _is_number(getattr(self, name)):
                raise ModelError(f"card: '{name}' must be a number, not {getattr(self, name)!r}")
        if not (isinstance(self.background, list | tuple) and all(isinstance(t, str) and t for t in self.background)):
            raise ModelError(f"card: 'background' must be a list of texts, not {self.background!r}")
        object.__setattr__(self, "background", tuple(self.background))
        if not (self.threshold is None or (_is_number(self.threshold) and math.isfinite(self.threshold))):
            raise ModelError(f"card: 'threshold' must be a number or null, not {self.threshold!r}")
        if not (_is_number(self.margin) and math.isfinite(self.margin)):
            raise ModelError(f"card: 'margin' must be a number, not {self.margin!r}")
        if not isinstance(self.limits, str):
            raise ModelError(f"card: 'limits' must be a text, not {self.limits!r}")
        for name, choices in (("resize", Resize), ("filter", Filter), ("activation", Activation)):
            if getattr(self, name) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise ModelError(f"card: '{name}' must be one of {allowed}, not {getattr(self, name)!r}")

    @classmethod
    def load(cls, folder: str | Path) -> ModelCard:
        """Read `folder`/card.json; raise `ModelError` where it is missing or wrong."""
        path = Path(folder) / "card.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; a model folder needs card.json beside image.onnx") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ModelError(f"{path}: not readable as JSON ({error}); write it anew") from error
        if not isinstance(facts, dict):
            raise ModelError(f"{path}: must be a JSON object, not {type(facts).__name__}")
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(facts) - set(known))
        if unknown:
            raise ModelError(f"{path}: unknown field {unknown[0]!r}; known are {', '.join(known)}")
        required = get_type_hints(cls).keys() - {
            n for n, f in known.items() if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        }
        missing = [n for n in known if n in required and n not in facts]
        if missing:
            raise ModelError(f"{path}: field {missing[0]!r} is missing; add it")
        try:
            return cls(**facts)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None

    def save(self, folder: str | Path) -> Path:
        """Write `folder`/card.json and return its path."""
        path = Path(folder) / "card.json"
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
