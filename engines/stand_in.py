"""The stand-in for a trained model: an image encoder small enough to write down, which knows nothing but colors.

    python -m clipsight.engines.stand_in FOLDER

writes the model folder that is shipped as `demo`, and labels.npz for `python -m clipsight.labels build`. A picture's
vector says which share of it has which of eleven colors: each pixel is given to the nearest of a palette by a softmax
over distances (one 1 x 1 convolution), then averaged. Grays are in the palette to take the background's pixels, but not
in the vector.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from .base import INPUT, OUTPUT
from .card import ModelCard

# RGB, 0..1
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.05),
    "yellow": (0.95, 0.90, 0.10),
    "green": (0.10, 0.60, 0.15),
    "turquoise": (0.10, 0.80, 0.75),
    "blue": (0.10, 0.20, 0.85),
    "purple": (0.50, 0.10, 0.65),
    "pink": (0.95, 0.50, 0.75),
    "brown": (0.45, 0.25, 0.10),
    "white": (0.97, 0.97, 0.97),
    "black": (0.03, 0.03, 0.03),
}
_GRAYS = (0.2, 0.35, 0.5, 0.65)
_SHARPNESS = 60.0  # one over the squared distance at which a pixel counts as another color
_NOTHING = 0.03  # a picture with less of all colors than this is of nothing

CARD = ModelCard(
    id="demo",
    space="clipsight-demo-colors",
    size=224,
    dim=len(COLORS) + 1,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    logit_scale=10.0,
    license="Apache-2.0",
    source="written by hand, python -m clipsight.engines.stand_in",
    notes={"limits": "names the color of a card; knows nothing else. It stands in for a trained model."},
)


def make(folder: Path) -> None:
    """Write card.json, image.onnx and labels.npz (the vectors of the colors and of nothing) into `folder`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    palette = np.array([*COLORS.values(), *[(g, g, g) for g in _GRAYS]], np.float32) * 2 - 1  # as normalized
    weight = (2 * _SHARPNESS / 4) * palette[:, :, None, None]  # -|p - c|^2 = 2pc - |c|^2 - |p|^2, the last the same for all
    bias = -(_SHARPNESS / 4) * (palette**2).sum(1)
    constants = {
        "weight": weight,
        "bias": bias,
        "colors": np.arange(len(COLORS), dtype=np.int64),
        "flat": np.array([0, -1], np.int64),
        "pads": np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64),
        "floor": np.array(_NOTHING, np.float32),
    }
    nodes = [
        helper.make_node("Conv", [INPUT, "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
        helper.make_node("GlobalAveragePool", ["shares"], ["means"]),
        helper.make_node("Gather", ["means", "colors"], ["kept"], axis=1),
        helper.make_node("Pad", ["kept", "pads", "floor"], ["padded"]),
        helper.make_node("Reshape", ["padded", "flat"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "clipsight-demo",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", 3, CARD.size, CARD.size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", CARD.dim])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image.onnx").write_bytes(model.SerializeToString())
    CARD.save(folder)
    axes = np.eye(CARD.dim, dtype=np.float32)
    np.savez(folder / "labels.npz", names=[f"{color} card" for color in COLORS], vectors=axes[:-1], background=axes[-1:])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
