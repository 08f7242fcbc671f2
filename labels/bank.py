"""Vectors in, names and scores out: a `LabelBank` and the `Scores` it gives. numpy alone at run time."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engines import LabelError, ModelCard, SpaceMismatch, Vectors

_FORMAT = "clipsight.bank/1"


class Score(NamedTuple):
    """One label of a picture."""

    name: str
    value: float  # cosine, -1..1; CLIP's lie about 0.15-0.40
    probability: float  # 0..1, over all labels (softmax) or by itself (sigmoid)


@dataclass(frozen=True, eq=False)
class Scores:
    """What one picture scored against every label of a bank.

    names: the labels, n. values: their cosines, float32 n. nothing: the highest cosine of the bank's background prompts,
    None where it has none. bank: where they came from.
    """

    values: NDArray[np.float32]
    bank: LabelBank = field(repr=False)
    nothing: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, in the order of `values`."""
        return self.bank.names

    def top(self, k: int = 5) -> list[Score]:
        """The k labels that fit best, best first (all of them where the bank has fewer)."""
        k = min(k, len(self.values))
        if k <= 0:
            return []
        best = np.argpartition(-self.values, k - 1)[:k]
        return self._list(best[np.argsort(-self.values[best], kind="stable")])

    def above(self, least: float) -> list[Score]:
        """Every label whose cosine is at least `least`, best first."""
        found = np.flatnonzero(self.values >= least)
        return self._list(found[np.argsort(-self.values[found], kind="stable")])

    def probabilities(self) -> NDArray[np.float32]:
        """float32 n in the order of `names`.

        softmax(scale * cosine) over the labels and "none of these" (CLIP), or sigmoid(scale * cosine + bias) of each label by
        itself (SigLIP). "None of these" has the cosine under which nothing is named: the threshold, or the margin above the
        strongest background prompt, whichever is higher; so what is not named never looks sure.
        """
        return self._probabilities

    @cached_property
    def _probabilities(self) -> NDArray[np.float32]:
        shares = self._shares()
        shares.flags.writeable = False
        return shares

    def _shares(self) -> NDArray[np.float32]:
        bank = self.bank
        logits = bank.logit_scale * self.values.astype(np.float64) + bank.logit_bias
        if bank.activation == "sigmoid":
            return (1 / (1 + np.exp(-np.clip(logits, -60, 60)))).astype(np.float32)
        none = max(
            -np.inf if bank.threshold is None else bank.threshold,
            -np.inf if self.nothing is None else self.nothing + bank.margin,
        )
        other = bank.logit_scale * none + bank.logit_bias
        highest = max(float(logits.max()), other)
        weights = np.exp(logits - highest)
        shares: NDArray[np.float32] = (weights / (weights.sum() + np.exp(other - highest))).astype(np.float32)
        return shares

    @property
    def label(self) -> str | None:
        """The best label's display name; None where it misses the bank's threshold, or its margin over the background."""
        best = int(np.argmax(self.values))
        value = float(self.values[best])
        if self.bank.threshold is not None and value < self.bank.threshold:
            return None
        if self.nothing is not None and value - self.nothing <= self.bank.margin:
            return None
        return self.bank.display[best]

    def _list(self, indices: NDArray[np.intp]) -> list[Score]:
        p = self.probabilities()
        return [Score(self.bank.display[i], float(self.values[i]), float(p[i])) for i in indices]


@dataclass(frozen=True, eq=False)
class LabelBank:
    """Names and their vectors, with all that is needed to score a picture against them.

    names: n, unique. vectors: float32 n x dim unit rows (made so where they are not). space: the embedding space they
    belong to. prompts: the texts each vector was made of. display: what to show for each name, by default the name.
    background: float32 m x dim unit rows of "none of these" prompts, which compete but are never named. threshold: the
    cosine under which nothing is named. margin: how far, in cosine, a label must stand above the strongest background
    prompt. logit_scale, logit_bias, activation: as on the model's card.

    Raises `LabelError` for what does not fit together.
    """

    names: tuple[str, ...]
    vectors: Vectors
    space: str
    prompts: tuple[tuple[str, ...], ...] = ()
    display: tuple[str, ...] = ()
    background: Vectors | None = None
    threshold: float | None = None
    margin: float = 0.0
    logit_scale: float = 100.0
    logit_bias: float = 0.0
    activation: Literal["softmax", "sigmoid"] = "softmax"

    def __post_init__(self) -> None:
        """Check, make rows unit and arrays read-only."""

        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("names", tuple(str(n) for n in self.names))
        put("display", tuple(str(n) for n in self.display) or self.names)
        put("prompts", tuple(tuple(p) for p in self.prompts))
        if not self.names:
            raise LabelError("a label bank needs at least one label")
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise LabelError(f"the label {name!r} is there twice; keep one")
            seen.add(name)
        if not self.space:
            raise LabelError("a label bank needs the name of its embedding space")
        put("vectors", _unit_rows(self.vectors, "vectors"))
        if len(self.vectors) != len(self.names):
            raise LabelError(f"{len(self.names)} labels but {len(self.vectors)} vectors")
        if self.background is not None:
            put("background", _unit_rows(self.background, "background"))
            if self.background.shape[1] != self.dim:
                raise LabelError(f"background vectors have {self.background.shape[1]} numbers, labels {self.dim}")
        for name in ("display", "prompts"):
            value: Sequence[object] = getattr(self, name)
            if value and len(value) != len(self.names):
                raise LabelError(f"{len(self.names)} labels but {len(value)} entries of {name}")
        if self.activation not in ("softmax", "sigmoid"):
            raise LabelError(f"activation must be softmax or sigmoid, not {self.activation!r}")

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.names)

    def check(self, card: ModelCard) -> None:
        """Raise `SpaceMismatch` where the bank is of another embedding space than the model of this card."""
        if self.space != card.space or self.dim != card.dim:
            raise SpaceMismatch(
                f"the labels are of space {self.space} ({self.dim} numbers), {card.id} is of {card.space} ({card.dim}); "
                f"build them for it: python -m clipsight.labels build --model {card.id}"
            )

    def score(self, vectors: Vectors) -> list[Scores]:
        """float32 n x dim unit rows of pictures -> n `Scores`; raises `LabelError` for another dim."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise LabelError(f"vectors are {vectors.shape}, the bank scores n x {self.dim}")
        values = _cosines(vectors, self.vectors)
        values.flags.writeable = False
        if self.background is None:
            return [Scores(row, self) for row in values]
        nothing = _cosines(vectors, self.background).max(axis=1)
        return [Scores(row, self, float(n)) for row, n in zip(values, nothing, strict=True)]

    def only(self, names: Iterable[str]) -> LabelBank:
        """The bank of these labels alone, in this order; raises `LabelError` for a name it lacks."""
        index = {name: i for i, name in enumerate(self.names)}
        wanted = list(names)
        missing = [n for n in wanted if n not in index]
        if missing:
            raise LabelError(f"the bank has no label {missing[0]!r}")
        rows = [index[n] for n in wanted]
        return dataclasses.replace(
            self,
            names=tuple(wanted),
            vectors=self.vectors[rows],
            display=tuple(self.display[i] for i in rows),
            prompts=tuple(self.prompts[i] for i in rows) if self.prompts else (),
        )

    def plus(self, other: LabelBank) -> LabelBank:
        """This bank and the labels of `other` that it lacks; settings are this bank's.

        Raises `LabelError` when the spaces differ.
        """
        if other.space != self.space or other.dim != self.dim:
            raise LabelError(f"a bank of space {other.space} cannot be added to one of {self.space}")
        known = set(self.names)
        new = [i for i, name in enumerate(other.names) if name not in known]
        nothing = [b for b in (self.background, other.background) if b is not None]
        mine = self.prompts or ((),) * len(self)
        theirs = other.prompts or ((),) * len(other)
        return dataclasses.replace(
            self,
            names=self.names + tuple(other.names[i] for i in new),
            vectors=np.concatenate([self.vectors, other.vectors[new]]),
            display=self.display + tuple(other.display[i] for i in new),
            prompts=mine + tuple(theirs[i] for i in new) if self.prompts or other.prompts else (),
            background=np.concatenate(nothing) if nothing else None,
        )

    def save(self, path: str | Path) -> Path:
        """Write everything into one .safetensors file; what stood there stays whole until the new file is."""
        from safetensors.numpy import save

        path = Path(path)
        arrays = {"vectors": np.ascontiguousarray(self.vectors)}
        if self.background is not None:
            arrays["background"] = np.ascontiguousarray(self.background)
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("vectors", "background")}
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            # not save_file, which leaves a file that only its owner may read
            part.write_bytes(save(arrays, {"format": _FORMAT, "bank": json.dumps(facts, ensure_ascii=False)}))
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise LabelError(f"{path}: cannot be written ({error.strerror})") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> LabelBank:
        """Read a bank written by `save`; raises `LabelError` where the file is missing, damaged or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "numpy") as file:
                meta = file.metadata() or {}
                arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise LabelError(f"{path}: no such file") from None
        except (OSError, SafetensorError) as error:
            raise LabelError(f"{path}: not a readable .safetensors file ({error}); build the bank anew") from error
        if meta.get("format") != _FORMAT or "vectors" not in arrays:
            raise LabelError(f"{path}: holds tensors but no label bank; build one: python -m clipsight.labels build")
        try:
            return cls(vectors=arrays["vectors"], background=arrays.get("background"), **json.loads(meta["bank"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LabelError(f"{path}: {error}") from error


def _unit_rows(vectors: object, what: str) -> Vectors:
    array = np.array(vectors, np.float32)
    if array.ndim != 2 or array.shape[1] == 0:
        raise LabelError(f"{what} must be n x dim, not {' x '.join(map(str, array.shape))}")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise LabelError(f"{what} hold NaN, infinite or zero rows")
    array /= norms
    array.flags.writeable = False
    return array


def _cosines(vectors: Vectors, labels: Vectors) -> NDArray[np.float32]:
    """n x dim times m x dim -> n x m.

    einsum, not `@`: it runs in the calling thread. A BLAS pool of several threads waits for its slowest member, and
    beside an encoder that fills every core 10,000 labels take ten times as long (`python -m clipsight.labels bench`).
    """
    cosines: NDArray[np.float32] = np.einsum("nd,md->nm", vectors, labels)
    return cosines
