"""Pictures and words in, unit vectors out: models, runtimes and preparation.

with open_engine("path/to/model") as engine:
    vectors = engine.encode([image])  # n x dim, unit rows
"""

from .base import Engine
from .card import ModelCard
from .errors import (
    BackendError,
    BackendMissing,
    ClipsightError,
    ImageError,
    LabelError,
    ModelError,
    SinkError,
    SourceError,
    SpaceMismatch,
)
from .preparing import Box, Image, Vectors, prepare, seen
from .registry import available, open_engine, open_text

__all__ = [
    "BackendError",
    "BackendMissing",
    "Box",
    "ClipsightError",
    "Engine",
    "Image",
    "ImageError",
    "LabelError",
    "ModelCard",
    "ModelError",
    "SinkError",
    "SourceError",
    "SpaceMismatch",
    "Vectors",
    "available",
    "open_engine",
    "open_text",
    "prepare",
    "seen",
]
