"""From a model folder to a plan: the real TensorRT for RTX builds here, with no GPU, for every target."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from test_engines import TINY, centered_cosines, export_random, graph_of, pictures

from clipsight.engines import BackendError, ModelCard, ModelError, prepare
from clipsight.engines.compiled import building
from clipsight.engines.compiled.autocast import autocast
from clipsight.engines.compiled.families import Family
from clipsight.engines.pictures import pictures_in
from clipsight.engines.registry import SHIPPED

TARGETS = ["sm80", "sm86", "sm89", "sm120"]  # A100, RTX 30, RTX 40, RTX 50


def refused(error: type[Exception], act: Callable[[], object]) -> str:
    """The message of what `act` raises; it must be one line."""
    with pytest.raises(error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def family(trt: Any) -> Family:
    return Family("tensorrt-rtx", trt)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_random(tmp_path_factory.mktemp("tiny"), "tiny", TINY)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/16, the model this is for, with random weights."""
    from clipsight.engines.towers import ARCHS

    arch = {key: value for key, value in ARCHS["ViT-B-16"].items() if key != "text_cfg"}
    return export_random(tmp_path_factory.mktemp("vit"), "ViT-B-16", arch)


def build(family: Family, folder: Path, precision: str, max_batch: int = 32, target: str = "sm89") -> bytes:
    return building.build(family, folder, ModelCard.load(folder), precision, max_batch, target).data


# A plan is not for reading, but it has text in it: what it is for, and the types it computes in.


def built_for(plan: bytes) -> set[str]:
    return {found.decode() for found in re.findall(rb"accelerators=\{(\w+) \}", plan)}


def types_in(plan: bytes) -> set[str]:
    return {found.decode() for found in re.findall(rb" type=(float|half|bf16) ", plan)}


def takes(plan: bytes, batch: int, size: int) -> bool:
    return struct.pack("<4q", batch, 3, size, size) in plan


# Real models, built


def weights_of(folder: Path) -> int:
    with open(folder / "image.safetensors", "rb") as file:
        tensors = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__")


@pytest.mark.parametrize("target", TARGETS)
def test_vit_in_half_precision_for_every_target(family: Family, vit: Path, target: str) -> None:
    assert building.source(vit, "fp16", strongly_typed=True) == vit / "image.fp16.onnx"
    plan = build(family, vit, "fp16", target=target)
    assert 2 <= len(plan) / weights_of(vit) < 2.5  # bytes a weight, and kernels
    assert built_for(plan) == {target}
    assert "half" in types_in(plan)
    assert takes(plan, 32, 224)


@pytest.mark.parametrize(("name", "size"), [("ViT-B-32", 224), ("RN50x4", 288)])
def test_other_towers_in_half_precision(family: Family, tmp_path: Path, name: str, size: int) -> None:
    from test_engines import export_random

    from clipsight.engines.towers import find_arch

    export_random(tmp_path, name, {key: value for key, value in find_arch(name).items() if key != "text_cfg"})
    plan = build(family, tmp_path, "fp16")
    assert 2 <= len(plan) / weights_of(tmp_path) < 3
    assert "half" in types_in(plan)
    assert takes(plan, 32, size)


@pytest.mark.parametrize(("precision", "least", "computes_in"), [("fp32", 4, {"float"}), ("bf16", 2, {"float", "bf16"})])
def test_vit_in_other_precisions(
    family: Family, vit: Path, precision: str, least: float, computes_in: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clipsight")
    plan = build(family, vit, precision)
    assert least <= len(plan) / weights_of(vit) < least + 0.6
    assert types_in(plan) == computes_in
    assert b"tf32=0" in plan
    assert b"tf32=1" not in plan
    before, after = (record.getMessage() for record in caplog.records)
    what = f"random-ViT-B-16-0 for sm89, tensorrt-rtx {family.version}, {precision}"
    assert before == f"compiling {what}; this is done once and may take minutes"
    assert re.fullmatch(rf"compiled random-ViT-B-16-0 in \d+ s \({len(plan) / 1e6:.0f} MB\)", after)


@pytest.mark.parametrize("target", TARGETS)
def test_every_shipped_model_for_every_target(family: Family, target: str) -> None:
    folders = [card.parent for card in SHIPPED.glob("*/card.json")]
    assert folders
    for folder in folders:
        plan = build(family, folder, "fp16", target=target)
        assert built_for(plan) == {target}
        assert "half" in types_in(plan)  # by autocast: they have no fp16 file


@pytest.mark.parametrize(("precision", "target"), [("fp16", "sm80"), ("fp32", "sm86"), ("bf16", "sm89"), ("fp16", "sm120")])
def test_a_real_encoder(family: Family, real: Path, precision: str, target: str) -> None:
    plan = build(family, real / "encoder", precision, target=target)
    assert built_for(plan) == {target}
    assert types_in(plan) - {"float"} == {"fp16": {"half"}, "fp32": set(), "bf16": {"bf16"}}[precision]
    weights = (real / "encoder" / "image.onnx").stat().st_size / 4
    assert (len(plan) > 4 * weights) == (precision == "fp32")


def test_a_folders_own_half_precision_is_taken_and_else_it_is_made(family: Family, tiny: Path, tmp_path: Path) -> None:
    assert building.source(tiny, "fp16", strongly_typed=False) == tiny / "image.onnx"  # flags do it there
    for precision in ("fp32", "bf16"):
        assert building.source(tiny, precision, strongly_typed=True) == tiny / "image.onnx"
    cast = b"_fp16_product"  # which autocast puts behind a product's name
    assert cast not in build(family, tiny, "fp16")
    for name in ("card.json", "image.onnx"):
        shutil.copy(tiny / name, tmp_path)
    assert cast in build(family, tmp_path, "fp16")
    (tmp_path / "image.onnx").unlink()
    said = refused(ModelError, lambda: build(family, tmp_path, "fp16"))
    assert said == f"{tmp_path}: image.onnx is not there; a model folder needs it beside card.json"


# Profiles


class Recorder(Family):
    """The real family, which keeps what is asked of its builder."""

    def __init__(self, trt: Any) -> None:
        super().__init__("tensorrt-rtx", trt)
        self.profiles: list[Any] = []
        self.configs: list[Any] = []
        self.plans: list[Any] = []

    def builder(self) -> Any:
        real, profiles, plans = super().builder(), self.profiles, self.plans

        class Builder:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def create_optimization_profile(self) -> Any:
                profiles.append(real.create_optimization_profile())
                return profiles[-1]

            def build_serialized_network(self, network: Any, config: Any) -> Any:
                plans.append(real.build_serialized_network(network, config))
                return plans[-1]

        return Builder()

    def config(self, builder: Any, precision: str, network: Any, target: str | None, progress: Any = None) -> Any:
        self.configs.append(super().config(builder, precision, network, target, progress))
        return self.configs[-1]

    def batches(self) -> list[tuple[int, ...]]:
        """(least, best, most) of each profile, asked of TensorRT."""
        shapes = [[tuple(shape) for shape in profile.get_shape("pixel_values")] for profile in self.profiles]
        assert all(shape[1:] == (3, 8, 8) for three in shapes for shape in three)
        return [tuple(shape[0] for shape in three) for three in shapes]


@pytest.mark.parametrize(
    ("max_batch", "batches"), [(1, [(1, 1, 1)]), (2, [(1, 1, 1), (1, 2, 2)]), (32, [(1, 1, 1), (1, 32, 32)])]
)
def test_a_profile_for_one_picture_and_one_up_to_the_most(
    trt: Any, tmp_path: Path, max_batch: int, batches: list[tuple[int, ...]]
) -> None:
    recorder = Recorder(trt)
    plan = build(recorder, graph_of(tmp_path, 2.0), "fp32", max_batch)
    assert building.profile(max_batch) == batches
    assert recorder.batches() == batches
    assert [config.num_optimization_profiles for config in recorder.configs] == [len(batches)]
    assert (b"pixel_values [profile 1]" in plan) == (max_batch > 1)  # and so it stands in the plan
    assert takes(plan, max_batch, 8)
    assert not takes(plan, max_batch + 1, 8)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_the_only_profile(trt: Any, tmp_path: Path, batch: int) -> None:
    recorder = Recorder(trt)
    plan = build(recorder, graph_of(tmp_path, 2.0, batch=batch), "fp16", 32)
    assert recorder.batches() == [(batch, batch, batch)]
    assert b"[profile 1]" not in plan
    assert takes(plan, batch, 8)
    assert not takes(plan, 32, 8)


# Graphs that will not do


def half_ends(folder: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["m"]),
        helper.make_node("Flatten", ["m"], ["image_embeds"]),
    ]
    ends: dict[str, list[str | int | None]] = {"pixel_values": ["n", 3, 8, 8], "image_embeds": ["n", 3]}
    takes, gives = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in ends.items())
    save(folder, helper.make_graph(nodes, "g", [takes], [gives]))


def save(folder: Path, graph: onnx.GraphProto) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "image.onnx"))
    return folder / "image.onnx"


def changed(
    folder: Path, reads: str = "pixel_values", *, takes: str = "pixel_values", operator: str = "GlobalAveragePool"
) -> None:
    """The graph takes, and its first node reads and is, something else."""
    model = onnx.load(str(graph_of(folder, 2.0) / "image.onnx"))
    first = model.graph.node[0]
    assert first.op_type == "GlobalAveragePool"
    first.op_type, first.input[0], model.graph.input[0].name = operator, reads, takes
    onnx.save(model, str(folder / "image.onnx"))


def cut(folder: Path, bytes_left: int) -> None:
    path = graph_of(folder, 2.0) / "image.onnx"
    path.write_bytes(path.read_bytes()[:bytes_left])


def without_its_weights(folder: Path) -> None:
    model = onnx.load(str(graph_of(folder, 2.0) / "image.onnx"))
    onnx.save(model, str(folder / "image.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "another input's name": (
        lambda f: changed(f, "x", takes="x"),
        "rename them: it must take pixel_values and give image_embeds",
    ),
    "another output's name": (lambda f: graph_of(f, 2.0, name="logits"), "rename them: it must take pixel_values"),
    "another size": (lambda f: graph_of(f, 2.0, size=16), "the card says N x 3 x 8 x 8; correct 'size' in card.json"),
    "another dim": (
        lambda f: ModelCard("g", "g", 8, 5, (0.0,) * 3, (1.0,) * 3).save(graph_of(f, 2.0)),
        "gives image_embeds as [-1, 3], the card says N x 5; correct 'dim' in card.json",
    ),
    "float16 at both ends": (half_ends, "it must be float32; export the model anew"),
    "cut in the middle": (lambda f: cut(f, 100), "export the model anew"),
    "cut at the end": (lambda f: cut(f, -3), "export the model anew"),
    "empty": (lambda f: cut(f, 0), "it must take pixel_values and give image_embeds"),
    "no ONNX": (lambda f: (f / "image.onnx").write_text("not a graph\n" * 9), "export the model anew"),
    "an operator that is not known": (
        lambda f: changed(f, operator="Nonsense"),
        "export the model anew or use --engine onnx",
    ),
    "a tensor from nowhere": (
        lambda f: changed(f, "nowhere"),
        "export the model anew or use --engine onnx",
    ),
    "its external weights are not there": (without_its_weights, "export the model anew"),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])  # one is parsed as it is, one through autocast
@pytest.mark.parametrize("what", BAD)
def test_a_graph_that_will_not_do_is_one_line(family: Family, tmp_path: Path, what: str, precision: str) -> None:
    make, said = BAD[what]
    ModelCard("g", "g", 8, 3, (0.0,) * 3, (1.0,) * 3).save(tmp_path)
    make(tmp_path)
    message = refused(ModelError, lambda: build(family, tmp_path, precision))
    assert str(tmp_path / "image.onnx") in message
    assert said in message
    assert len(message) < 700


@pytest.mark.parametrize("logged", [True, False])
def test_a_build_that_fails_is_one_line(trt: Any, tmp_path: Path, logged: bool) -> None:
    class Failing(Recorder):
        def builder(self) -> Any:
            real = super().builder()

            def nothing(network: Any, config: Any) -> None:
                if logged:
                    self.logger.log(trt.ILogger.Severity.ERROR, "no memory\nfor it")

            real.build_serialized_network = nothing
            return real

    family = Failing(trt)
    said = refused(BackendError, lambda: build(family, graph_of(tmp_path, 2.0), "fp16"))
    why = "no memory for it" if logged else "it does not say why"
    assert said == f"tensorrt-rtx {family.version}: the build failed ({why}); use --engine onnx"


# Ctrl-C


def pressing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is pressed while TensorRT is at its first phase, in Python that it calls."""
    real = building._monitor
    monkeypatch.setattr(building, "_monitor", lambda trt, _: real(trt, lambda _: signal.raise_signal(signal.SIGINT)))


def test_ctrl_c_ends_a_build(trt: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT swallows what its callbacks raise."""
    recorder = Recorder(trt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which it is not where tests run behind a shell's &
    pressing(monkeypatch)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(recorder, tiny, "fp16")
        assert recorder.plans == [None]  # it did not go on to its end
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_program_that_has_its_own_way_with_ctrl_c_keeps_it(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed: list[int] = []
    pressing(monkeypatch)
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        assert build(family, graph_of(tmp_path, 2.0), "fp32")
    except KeyboardInterrupt:
        pytest.fail("it was not kept")
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.SIGINT in pressed


# Autocast

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PRODUCTS = {"MatMul", "Gemm", "Conv"}


def run(graph: bytes, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (embeds,) = session.run(["image_embeds"], {"pixel_values": pixel_values})
    return np.asarray(embeds, np.float32)


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every tensor that is known; checked as strictly as ONNX can, but where something is bf16.

    ONNX has Conv in bf16 from opset 22 on only. TensorRT takes it in all.
    """
    bf16 = any(node.op_type == "Cast" and node.attribute[0].i == TensorProto.BFLOAT16 for node in model.graph.node)
    graph = onnx.shape_inference.infer_shapes(model, check_type=not bf16, strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {i.name: i.data_type for i in graph.initializer}


def only_products_are_half(before: onnx.ModelProto, after: onnx.ModelProto, half: int) -> None:
    """And nothing else has changed, but for the casts before and behind them."""
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert after.graph.initializer == before.graph.initializer
    known = kinds(after)
    casts = [node for node in after.graph.node if node.op_type == "Cast" and node not in before.graph.node]
    products = [node for node in after.graph.node if node.op_type in PRODUCTS]
    assert products
    for node, old in zip([n for n in after.graph.node if n not in casts], before.graph.node, strict=True):
        if node.op_type in PRODUCTS:
            assert (node.name, node.op_type, list(node.attribute)) == (old.name, old.op_type, list(old.attribute))
            assert {known[name] for name in [*node.input, *node.output]} == {half}
        else:
            assert node == old
            assert half not in {known.get(name) for name in [*node.input, *node.output]}
    down = [node.input[0] for node in casts if node.attribute[0].i == half]
    assert len(down) == len(set(down))  # each once
    assert all(known[name] == TensorProto.FLOAT for name in down)
    back = {node.input[0]: node.output[0] for node in casts if node.attribute[0].i == TensorProto.FLOAT}
    olds = [node.output[0] for node in before.graph.node if node.op_type in PRODUCTS]
    assert [back[product.output[0]] for product in products] == olds
    assert len(casts) == len(down) + len(products)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("which", ["tiny", "encoder", "demo"])
def test_autocast_casts_products_and_nothing_else(which: str, precision: Any, request: pytest.FixtureRequest) -> None:
    if which == "encoder":
        folder = request.getfixturevalue("real") / "encoder"
    else:
        folder = request.getfixturevalue("tiny") if which == "tiny" else SHIPPED / "demo"
    before = onnx.load(str(folder / "image.onnx"))
    after = onnx.load_from_string(autocast(folder / "image.onnx", precision))
    onnx.checker.check_model(after)
    only_products_are_half(before, after, HALF[precision])


@pytest.mark.parametrize(("which", "least"), [("tiny", 0.9999), ("encoder", 0.999)])
def test_autocast_stays_the_model(which: str, least: float, request: pytest.FixtureRequest) -> None:
    """ONNX Runtime computes both; centered cosine. Its processor rounds to fp16 around every product."""
    if which == "tiny":
        folder, images = request.getfixturevalue("tiny"), pictures(16)
    else:
        real = request.getfixturevalue("real")
        folder = real / "encoder"
        images = pictures_in(real / "images" / "imagenet")[:16]
    pixel_values = prepare(images, ModelCard.load(folder))
    wanted = run((folder / "image.onnx").read_bytes(), pixel_values)
    given = run(autocast(folder / "image.onnx", "fp16"), pixel_values)
    assert least <= centered_cosines(wanted, given).min()
    assert not np.array_equal(wanted, given)


def value(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def numbers(name: str, *shape: int, kind: type = np.float32) -> onnx.TensorProto:
    values: NDArray[Any] = np.random.default_rng(len(name)).uniform(-4, 4, shape).astype(kind)
    return numpy_helper.from_array(values, name)


def test_what_several_products_share_is_cast_once(tmp_path: Path) -> None:
    names = "qkv"
    nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [n], name=n) for n in names]
    nodes += [helper.make_node("MatMul", ["q", "wq"], ["again"], name="again")]  # the same weights, and a product of a product
    nodes += [helper.make_node("Sum", ["again", "k", "v", "x"], ["y"], name="sum")]
    graph = helper.make_graph(nodes, "g", [value("x", "n", 4)], [value("y", "n", 4)], [numbers(f"w{n}", 4, 4) for n in names])
    path = save(tmp_path, graph)
    after = onnx.load_from_string(autocast(path, "fp16"))
    only_products_are_half(onnx.load(str(path)), after, TensorProto.FLOAT16)
    casts = [node.input[0] for node in after.graph.node if node.op_type == "Cast"]
    assert {name: casts.count(name) for name in ("x", "wq", "wk", "wv", "q")} == {"x": 1, "wq": 1, "wk": 1, "wv": 1, "q": 1}
    assert len(casts) == 5 + 4
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    given, wanted = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (after, onnx.load(str(path)))
    )
    assert np.allclose(given, wanted, rtol=0.01, atol=0.05)


def test_gemm_and_conv_with_and_without_their_bias(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel", "shift"], ["c"], name="c", strides=[2, 2]),
        helper.make_node("Conv", ["c", "kernel1"], ["d"], name="d"),
        helper.make_node("GlobalAveragePool", ["d"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w", ""], ["e"], name="e", transB=1, alpha=0.5),
        helper.make_node("Gemm", ["e", "w", "b"], ["image_embeds"], name="f"),  # the graph's output is a product itself
    ]
    weights = [numbers("kernel", 5, 3, 2, 2), numbers("shift", 5), numbers("kernel1", 4, 5, 1, 1), numbers("w", 4, 4)]
    graph = helper.make_graph(
        nodes, "g", [value("pixel_values", "n", 3, 8, 8)], [value("image_embeds", "n", 4)], [*weights, numbers("b", 4)]
    )
    path = save(tmp_path, graph)
    after = onnx.load_from_string(autocast(path, "fp16"))
    assert after.graph.output == graph.output
    products = [node for node in after.graph.node if node.op_type in PRODUCTS]
    assert [len([name for name in node.input if name]) for node in products] == [3, 2, 2, 3]
    assert products[2].input[2] == ""
    known = kinds(after)
    assert all(known[name] == TensorProto.FLOAT16 for node in products for name in [*node.input, *node.output] if name)
    x = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
    assert centered_cosines(run(path.read_bytes(), x), run(after.SerializeToString(), x)).min() > 0.9999
    onnx.checker.check_model(onnx.load_from_string(autocast(path, "bf16")))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float64, np.float16])
def test_products_of_other_numbers_are_left_alone(tmp_path: Path, kind: type) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], name="whole", to=element),
        helper.make_node("MatMul", ["whole", "w"], ["y"], name="y"),
        helper.make_node("MatMul", ["x", "v"], ["z"], name="z"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", "n", 4)], [value("y", "n", 4, kind=element), value("z", "n", 4)],
        [numbers("w", 4, 4, kind=kind), numbers("v", 4, 4)],
    )  # fmt: skip
    after = onnx.load_from_string(autocast(save(tmp_path, graph), "bf16"))
    assert [node for node in graph.node if node not in after.graph.node] == [graph.node[2]]
    assert after.graph.output == graph.output
    kinds(after)
