"""A float32 graph in, the same graph with its matrix products in half precision out.

For strongly typed TensorRT, where precision has to stand in the ONNX, and a model folder that has no file of it. As torch's
autocast does, only what multiplies matrices is cast; sums, norms, softmax and the residual stream stay in float32, so it is
right for most models, and the gate tells where a product overflows. A model folder's own image.fp16.onnx keeps the stream
itself in half precision, which is faster, and is taken where it is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..base import one_line
from ..errors import ModelError

_PRODUCTS = {"MatMul", "Gemm", "Conv"}


def autocast(path: Path, precision: Literal["fp16", "bf16"]) -> bytes:
    """The serialized graph of `path` with MatMul, Gemm and Conv in `precision`; inputs and outputs are as they were.

    Raises `ModelError` for a file that is no ONNX graph.
    """
    import onnx

    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's own kinds among them
        raise ModelError(f"{path}: does not load ({one_line(error)}); export the model anew") from error
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    floats = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    nodes: list[onnx.NodeProto] = []
    cast: dict[str, str] = {}  # what has been cast already: q, k and v are products of one and the same norm

    def add(source: str, target: str, dtype: int) -> None:
        nodes.append(onnx.helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=dtype))

    known = floats | _float_values(model)
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS or not all(name in known for name in node.input if name):
            nodes.append(node)  # also a product of half-precision or whole numbers
            continue
        for i, name in enumerate(node.input):
            if name and name not in cast:
                cast[name] = f"{name}_{precision}"
                add(name, cast[name], half)
            node.input[i] = cast.get(name, "")
        output = node.output[0]
        node.output[0] = f"{output}_{precision}_product"
        nodes.append(node)
        add(node.output[0], output, onnx.TensorProto.FLOAT)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    try:
        return bytes(model.SerializeToString())
    except Exception as error:  # protobuf's limit of 2 GB
        raise ModelError(f"{path}: is too large to be cast here ({one_line(error)}); use --precision fp32") from error


def _float_values(model: object) -> set[str]:
    """Names of the float32 tensors that flow through the graph."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph  # type: ignore[arg-type]
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
