"""Model folders that are written: what is in them, how close it is to torch, and that nothing is left of what failed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from safetensors.numpy import load_file

from clipsight.engines import BackendError, ModelCard, ModelError, open_engine, towers
from clipsight.engines.__main__ import main
from clipsight.engines.export import centered_cosine, export, random_ids, random_pictures
from clipsight.engines.random_weights import random_card, random_model
from clipsight.engines.torch_engine import TorchEngine
from clipsight.engines.towers import CLIP

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 90, "width": 48, "heads": 3, "layers": 2},
}
IMAGE_ONLY = {key: value for key, value in TINY.items() if key != "text_cfg"}
ALL = {"card.json", "image.onnx", "image.fp16.onnx", "text.onnx", "image.safetensors"}


@pytest.fixture(scope="module")
def model() -> CLIP:
    return random_model(TINY)


@pytest.fixture(scope="module")
def folder(model: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "new" / "tiny"
    export(model, path, random_card("tiny", TINY, 0))
    return path


def run(path: Path, inputs: torch.Tensor) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: inputs.numpy()}), strict=True))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_folder_holds_a_model_and_nothing_else(folder: Path, model: CLIP) -> None:
    assert names_in(folder) == ALL
    card = ModelCard.load(folder)
    assert (card.size, card.dim, card.context_length, card.arch) == (32, 24, 12, TINY)
    assert set(card.notes["centered_cosine_to_torch"]) == {"image.onnx", "image.fp16.onnx", "text.onnx"}
    tensors = load_file(folder / "image.safetensors")
    state = {name: t.numpy() for name, t in model.state_dict().items() if name.startswith("visual.")}
    assert set(tensors) == set(state)
    assert all(np.array_equal(tensors[name], state[name]) for name in state)
    if os.name == "posix":  # others than its owner may read every file, as far as the umask lets them
        assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", ["image.onnx", "image.fp16.onnx", "text.onnx"])
def test_a_graph_takes_any_batch_and_gives_what_torch_gives(folder: Path, model: CLIP, name: str, n: int) -> None:
    text = name == "text.onnx"
    inputs = random_ids(16, 12, 90, seed=5) if text else random_pictures(16, 32, seed=5)  # not those of the check
    wanted = (model.encode_text(inputs) if text else model.encode_image(inputs)).numpy()
    parts = [run(folder / name, inputs[i : i + n]) for i in range(0, 16, n)]
    assert list(parts[0]) == ["text_embeds" if text else "image_embeds"]
    given = np.concatenate([next(iter(part.values())) for part in parts])
    assert given.dtype == np.float32
    assert given.shape == (16, 24)
    limit, close = (0.999, 0.02) if "fp16" in name else (0.999999, 1e-5)
    assert centered_cosine(given, wanted) > limit
    assert np.abs(given - wanted).max() < close * np.abs(wanted).max()


@pytest.mark.parametrize("length", [2, 3, 7, 11])
def test_the_text_graph_takes_any_length(folder: Path, model: CLIP, length: int) -> None:
    ids = random_ids(16, length, 90, seed=5)
    given, wanted = run(folder / "text.onnx", ids)["text_embeds"], model.encode_text(ids).numpy()
    assert centered_cosine(given, wanted) > 0.999999
    assert np.abs(given - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["image.onnx", "image.fp16.onnx", "text.onnx"])
def test_a_graph_is_one_file_of_the_agreed_form(folder: Path, name: str) -> None:
    graph = onnx.load(folder / name, load_external_data=False)
    onnx.checker.check_model(graph, full_check=True)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
    assert graph.ir_version <= 10  # what ONNX Runtime 1.20 reads, the oldest that is supported
    assert not any(t.external_data for t in graph.graph.initializer)
    (takes,) = graph.graph.input
    ids = name == "text.onnx"
    assert takes.name == ("input_ids" if ids else "pixel_values")
    assert takes.type.tensor_type.elem_type == (TensorProto.INT64 if ids else TensorProto.FLOAT)
    assert [d.dim_value for d in takes.type.tensor_type.shape.dim] == ([0, 0] if ids else [0, 3, 32, 32])
    assert [o.type.tensor_type.elem_type for o in graph.graph.output] == [TensorProto.FLOAT]
    operators = [node.op_type for node in graph.graph.node]
    layers = 2 if ids else 3
    assert operators.count("LayerNormalization") == 2 * layers + (1 if ids else 2)
    assert operators.count("Softmax") == layers
    assert "If" not in operators
    if name != "image.fp16.onnx":
        assert "Cast" not in operators


def test_the_fp16_graph_computes_in_fp16_but_for_softmax_and_layer_norm(folder: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(folder / "image.fp16.onnx"), strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]}
    kinds |= {t.name: t.data_type for t in graph.initializer}
    used: dict[str, set[int]] = {}
    for node in graph.node:
        used.setdefault(node.op_type, set()).update(kinds[name] for name in node.input if name in kinds)
    for operator in ("MatMul", "Conv", "Sigmoid"):
        assert used[operator] == {TensorProto.FLOAT16}, operator
    for operator in ("LayerNormalization", "Softmax"):
        assert used[operator] == {TensorProto.FLOAT}, operator


def test_q_is_scaled_before_its_product_with_k(folder: Path) -> None:
    """In every graph; TensorRT gives wrong results for the other order."""
    for name, skipped in (("image.onnx", []), ("image.fp16.onnx", ["Cast"]), ("text.onnx", ["Add"])):
        nodes = onnx.load(folder / name).graph.node
        made_by = {output: node for node in nodes for output in node.output}
        for softmax in (node for node in nodes if node.op_type == "Softmax"):
            path: list[str] = []
            node = softmax
            while len(path) < 2 + len(skipped):
                node = made_by[node.input[0]]
                path.append(node.op_type)
            assert path == [*skipped, "MatMul", "Mul"], name


def test_patch_embeddings_where_they_are_asked_for(tmp_path: Path) -> None:
    image = random_model(IMAGE_ONLY, 2)
    export(image, tmp_path, random_card("tiny", IMAGE_ONLY, 2), patches=True)
    assert names_in(tmp_path) == ALL - {"text.onnx"}
    pixels = random_pictures(8, 32, seed=5)
    embeds, patches = image.visual(pixels, patches=True)
    for name, limit in (("image.onnx", 0.999999), ("image.fp16.onnx", 0.999)):
        given = run(tmp_path / name, pixels)
        assert list(given) == ["image_embeds", "patch_embeds"]
        assert given["patch_embeds"].shape == (8, 4, 4, 24)
        assert centered_cosine(given["image_embeds"], embeds.numpy()) > limit
        assert centered_cosine(given["patch_embeds"], patches.numpy()) > limit
        assert run(tmp_path / name, pixels[:1])["patch_embeds"].shape == (1, 4, 4, 24)
    with open_engine(tmp_path, "onnx") as engine:
        assert engine.encode([np.zeros((40, 50, 3), np.uint8)]).shape == (1, 24)


def broken(model: CLIP, name: str, factor: float) -> CLIP:
    return towers.load(TINY, {n: t * factor if n.endswith(name) else t.clone() for n, t in model.state_dict().items()})


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("visual.ln_post.bias", float("nan"), "image.onnx: image_embeds differs from torch's, centered cosine nan"),
        ("visual.proj", float("inf"), "image.onnx: image_embeds differs from torch's, centered cosine nan"),
        ("text_projection", float("nan"), "text.onnx: text_embeds differs from torch's, centered cosine nan"),
        ("attn.in_proj_weight", 3000.0, "image.fp16.onnx: these weights overflow float16"),
    ],
)
def test_what_fails_its_check_is_not_kept(model: CLIP, tmp_path: Path, name: str, factor: float, message: str) -> None:
    """Neither as the first export into a folder nor over one that is whole."""
    with pytest.raises(ModelError) as caught:
        export(broken(model, name, factor), tmp_path / "new", random_card("tiny", TINY, 0))
    assert str(caught.value).startswith(message)
    assert "nothing was kept" in str(caught.value)
    assert not (tmp_path / "new").exists()
    for file in ALL:
        (tmp_path / file).write_text("whole")
    with pytest.raises(ModelError):
        export(broken(model, name, factor), tmp_path, random_card("tiny", TINY, 0))
    assert names_in(tmp_path) == ALL
    assert {path.read_text() for path in tmp_path.iterdir()} == {"whole"}


def test_a_graph_that_is_not_the_model_fails_its_check(model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image graph is traced with one gain changed, and the check says how far off it is."""
    module = sys.modules["clipsight.engines.export"]
    write = module._write_graph

    def write_another(graph: Any, *rest: Any) -> None:
        gain = graph.visual.ln_post.weight
        kept = gain.clone()
        gain.mul_(torch.linspace(0.9, 1.1, len(gain)))
        write(graph, *rest)
        gain.copy_(kept)

    monkeypatch.setattr(module, "_write_graph", write_another)
    with pytest.raises(ModelError, match=r"image.onnx: image_embeds .* cosine 0\.9\d+ where 0\.99999 is the least"):
        export(model, tmp_path, random_card("tiny", TINY, 0))
    assert names_in(tmp_path) == set()


def test_a_text_graph_that_is_right_at_one_length_alone_fails_its_check(
    model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch.onnx.export

    def write_fixed(*args: Any, dynamic_axes: dict[str, dict[int, str]], **options: Any) -> None:
        write(*args, dynamic_axes={name: {0: axes[0]} for name, axes in dynamic_axes.items()}, **options)

    def encode_text(self: CLIP, input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = encode(self, input_ids)
        if not torch.onnx.is_in_onnx_export():
            return found
        return found * (1 + (12 - input_ids.shape[1]) * torch.linspace(-0.02, 0.02, 24))  # what torch gives, at 12 tokens

    encode = CLIP.encode_text
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", write_fixed)
        with pytest.raises(ModelError, match=r"text\.onnx: ONNX Runtime does not run it .* nothing was kept"):
            export(model, tmp_path, random_card("tiny", TINY, 0))
    monkeypatch.setattr(CLIP, "encode_text", encode_text)
    with pytest.raises(ModelError, match=r"text\.onnx: text_embeds .* cosine 0\.9\d+ where 0\.99999 is the least"):
        export(model, tmp_path, random_card("tiny", TINY, 0))
    assert names_in(tmp_path) == set()


def test_export_leaves_the_callers_model_as_it_was(model: CLIP, tmp_path: Path) -> None:
    """A model in training, in half precision: still both afterwards."""
    mine = towers.load(TINY, model.state_dict()).half().train().requires_grad_(True)
    export(mine, tmp_path, random_card("tiny", TINY, 0), ["fp32"])
    assert mine.training
    assert all(p.requires_grad and p.dtype == torch.float16 for p in mine.parameters())


def test_a_wrong_request_is_told_before_anything_is_written(model: CLIP, tmp_path: Path) -> None:
    card = random_card("tiny", TINY, 0)
    with pytest.raises(ModelError, match="not the model's"):
        export(model, tmp_path / "a", random_card("tiny", IMAGE_ONLY, 0))
    with pytest.raises(ModelError, match="'size' is 64"):
        export(model, tmp_path / "a", dataclasses.replace(card, size=64))
    for precisions in ([], ["fp32", "int8"]):
        with pytest.raises(ModelError, match="use some of fp32, fp16"):
            export(model, tmp_path / "a", card, precisions)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be made .*give another folder"):
        export(model, tmp_path / "file", card)
    (tmp_path / "image.fp16.onnx").write_text("of other weights")
    with pytest.raises(ModelError, match=r"image\.fp16\.onnx of another export is there; remove it"):
        export(model, tmp_path, card, ["fp32"])


def test_export_is_quiet(model: CLIP, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(model, tmp_path, random_card("tiny", TINY, 0))
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def torch_engine(folder: Path) -> Iterator[TorchEngine]:
    with TorchEngine(folder, ModelCard.load(folder)) as engine:
        yield engine


def test_the_torch_engine_gives_the_towers_embeddings(torch_engine: TorchEngine, model: CLIP) -> None:
    pixels = random_pictures(4, 32)
    given = torch_engine._forward(pixels.numpy())
    np.testing.assert_allclose(given["image_embeds"], model.encode_image(pixels).numpy(), atol=1e-5)


def test_the_torch_engine_works_in_the_thread_it_was_given(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    before = torch.get_num_threads()
    try:
        with TorchEngine(folder, ModelCard.load(folder), threads=3, background=True) as engine:
            if sys.platform == "linux":  # this thread has used torch before and keeps what it had
                assert torch.get_num_threads() == before

            def note(*_: Any) -> None:
                niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) if sys.platform == "linux" else 10
                seen.append((threading.current_thread().name, niceness, torch.get_num_threads()))

            engine._visual.register_forward_hook(note)
            engine.encode([np.zeros((40, 50, 3), np.uint8)])
    finally:
        torch.set_num_threads(before)
    assert seen == [("clipsight-torch_0", 10, 3)]


def test_the_torch_engine_says_what_it_cannot_do(folder: Path, tmp_path: Path) -> None:
    card = ModelCard.load(folder)
    with pytest.raises(BackendError, match="fp16 needs a CUDA GPU; add --device 0, or use --precision fp32"):
        TorchEngine(folder, card, precision="fp16")
    with pytest.raises(BackendError, match="no CUDA"):
        TorchEngine(folder, card, device=99)
    with pytest.raises(ModelError, match="'embed_dim' is missing; add it"):
        TorchEngine(folder, dataclasses.replace(card, arch={}))
    deeper = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 4}}
    with pytest.raises(ModelError, match=r"visual\.transformer\.resblocks\.3\.\S+ is missing"):
        TorchEngine(folder, dataclasses.replace(card, arch=deeper))
    with pytest.raises(ModelError, match=r"image\.safetensors: does not load"):
        TorchEngine(tmp_path, card)
    assert not [t for t in threading.enumerate() if t.name.startswith("clipsight-torch")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 0.9999), ("fp16", 0.999)])
def test_the_torch_engine_on_a_gpu(folder: Path, model: CLIP, precision: str, limit: float) -> None:
    pixels = random_pictures(8, 32)
    with TorchEngine(folder, ModelCard.load(folder), precision=precision, device=0) as engine:
        given = engine._forward(pixels.numpy())["image_embeds"]
    assert centered_cosine(given, model.encode_image(pixels).numpy()) > limit


def test_the_command_line_makes_a_folder_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(towers.ARCHS, "tiny", TINY)
    command = ["export", "--random", "tiny", "-o", str(tmp_path / "m"), "--precision", "fp32"]
    assert main([*command, "--seed", "7", "--no-text"]) == 0
    out = capsys.readouterr().out
    assert "recognizes nothing" in out
    assert f"{tmp_path / 'm' / 'image.onnx'}: centered cosine to torch 0.99999" in out or "torch 1.0" in out
    assert names_in(tmp_path / "m") == {"card.json", "image.onnx", "image.safetensors"}
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    assert (card["id"], card["notes"]["seed"], card["context_length"]) == ("random-tiny-7", 7, None)
    images = [np.full((40, 50, 3), value, np.uint8) for value in (0, 255)]
    with open_engine(tmp_path / "m", "onnx") as a, open_engine(tmp_path / "m", "torch") as b:
        np.testing.assert_allclose(a.encode(images), b.encode(images), atol=1e-5)
    assert main([*command[:4], str(tmp_path / "n"), "--patches"]) == 0
    assert names_in(tmp_path / "n") == ALL
    assert list(run(tmp_path / "n" / "image.fp16.onnx", random_pictures(1, 32))) == ["image_embeds", "patch_embeds"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["export", "--random", "RN50", "-o", "x"], "no arch 'RN50'; use one of ViT-B-16, ViT-B-32"),
        (["export", "--random", "ViT-B-16"], "required: -o/--output"),
        (["export", "--random", "ViT-B-16", "-o", "x", "--seed", "-1"], "a seed is a whole number from 0"),
        (["export", "--random", "ViT-B-16", "-o", "x", "--seed", "one"], "invalid seed value: 'one'"),
        (["export", "--random", "ViT-B-16", "-o", "x", "--precision", "int8"], "invalid choice: 'int8'"),
        (["exprot"], "invalid choice: 'exprot'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_status_2(
    command: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(command)
    except SystemExit as stop:  # argparse's own way out
        status = stop.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def without(package: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process where `package` cannot be imported."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from clipsight.engines.__main__ import main; sys.exit(main({list(command)!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["torch", "onnxruntime"])
def test_export_without_its_packages_says_the_install_line(package: str, tmp_path: Path) -> None:
    done = without(package, "export", "--random", "ViT-B-16", "-o", str(tmp_path / "m"))
    assert done.returncode == 2
    assert done.stderr == f'clipsight: export needs {package}, which is not installed; run: pip install -e ".[export]"\n'
    assert not (tmp_path / "m").exists()


def test_list_needs_no_runtime_and_names_every_backend() -> None:
    done = without("torch", "list")
    assert done.returncode == 0, done.stderr
    assert {"onnx", "openvino", "torch"} <= {line.split()[0] for line in done.stdout.splitlines()}
