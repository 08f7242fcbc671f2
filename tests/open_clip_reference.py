"""open_clip, what our towers, tokens and weights are compared with; the product never imports it to run."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from importlib import import_module
from typing import Any

import pytest
import torch

_kept: list[Any] = []  # what a library has defined goes when it goes


@lru_cache(maxsize=1)
def open_clip() -> Any:
    """The module; where it is not installed the test is skipped, where CI=true it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _load_torchvision()
            import_module("open_clip.model")
            return import_module("open_clip")
        except ModuleNotFoundError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(f"open_clip is not here: {error}")
            pytest.skip(f"open_clip is not here: {error}")


def _load_torchvision() -> None:
    """Beside a torch of another build its operators do not load, and it misses two. open_clip runs none of them."""
    try:
        import_module("torchvision")
    except RuntimeError:
        make_library: Any = torch.library.Library
        library = make_library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        import_module("torchvision")
