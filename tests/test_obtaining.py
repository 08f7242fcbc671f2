"""Models by name and from local weights: fetched, exported, checked, opened; and what is said where that cannot be."""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip_reference import open_clip

from clipsight.engines import ModelCard, ModelError, available, catalog, obtaining, open_engine, open_text, prepare, registry
from clipsight.engines import __main__ as door
from clipsight.engines.__main__ import main
from clipsight.engines.catalog import Entry, known_file
from clipsight.engines.compiled.gate import render
from clipsight.engines.obtaining import make_folder, obtain
from clipsight.engines.registry import find_model
from clipsight.labels import open_bank

WORDS = ["a photo of a cat", "two dogs", "a very long sentence about nothing in particular, " * 20]


def clip(**changes: Any) -> Any:
    """open_clip's own model, small, with CLIP's whole vocabulary."""
    torch.manual_seed(1)
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    return (
        open_clip()
        .model.CLIP(**{"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text, **changes})
        .eval()
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in the form OpenAI publishes them."""
    path = tmp_path_factory.mktemp("archive") / "Tiny.pt"
    example = torch.zeros(1, 3, 32, 32), torch.ones(1, 77, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        torch.jit.save(torch.jit.trace(clip(), example, check_trace=False), path)  # type: ignore[no-untyped-call]
    return path


def entry(archive: Path, url: str = "https://example.invalid/Tiny.pt") -> Entry:
    return Entry("Tiny", "Tiny/openai", url, hashlib.sha256(archive.read_bytes()).hexdigest(), 13, "MIT")


@pytest.fixture
def known(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A catalog of one model, on a server of this machine; yields what is asked of it."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form: str, *values: object) -> None:
            asked.append(form % values)

    handler = functools.partial(Handler, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        only = {"Tiny": entry(archive, f"http://127.0.0.1:{server.server_port}/Tiny.pt")}
        for module in (catalog, registry, obtaining, door):
            monkeypatch.setattr(module, "catalog", lambda: only)
        monkeypatch.setenv("CLIPSIGHT_CACHE", str(tmp_path / "cache"))
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield asked
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def folder(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "Tiny"
    figures = make_folder(archive, folder, entry=entry(archive), precisions=("fp32",))
    assert min(figures.values()) >= 0.99999
    return folder


def test_a_model_by_name_is_fetched_once_and_works(known: list[str], tmp_path: Path) -> None:
    folder = find_model("Tiny")
    assert folder == tmp_path / "cache" / "models" / "Tiny"
    assert sum("GET" in line for line in known) == 1
    assert sorted(path.name for path in folder.parent.iterdir() if path.suffix != ".lock") == ["Tiny"]
    card = ModelCard.load(folder)
    assert (card.id, card.space, card.license, card.size, card.dim) == ("Tiny", "Tiny/openai", "MIT", 32, 32)
    assert (card.notes["form"], card.arch["quick_gelu"]) == ("OpenAI TorchScript", True)
    with open_engine("Tiny", "onnx") as engine:
        bank = open_bank("cat, dog", "Tiny")
        assert bank.score(engine.encode(render(1)))[0].top(1)[0].name in ("cat", "dog")
    assert obtain("Tiny") == folder
    assert sum("GET" in line for line in known) == 1


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_pictures_have_open_clips_vectors(folder: Path, backend: str) -> None:
    images = render(6, 60, 80)
    pixels = torch.from_numpy(prepare(images, ModelCard.load(folder)))
    with torch.inference_mode(), open_engine(folder, backend) as engine:
        wanted = clip().encode_image(pixels, normalize=True).numpy()
        assert (engine.encode(images) * wanted).sum(1).min() >= 0.99999


def test_words_have_open_clips_vectors(folder: Path) -> None:
    with torch.inference_mode():
        wanted = clip().encode_text(open_clip().tokenizer.tokenize(WORDS), normalize=True).numpy()
    assert (open_text(folder).encode(WORDS) * wanted).sum(1).min() >= 0.99999


def test_without_a_network_it_says_what_to_put_where_and_then_works(
    known: list[str], archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: whoever comes is refused
        offline = {"Tiny": entry(archive, f"http://127.0.0.1:{taken.getsockname()[1]}/Tiny.pt")}
        for module in (catalog, registry, obtaining, door):
            monkeypatch.setattr(module, "catalog", lambda: offline)
        assert main(["verify", "Tiny"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    there = tmp_path / "cache" / "models" / "Tiny.pt"
    assert offline["Tiny"].sha256 in said
    assert said.endswith(f"put it at {there}")
    assert not (tmp_path / "cache" / "models" / "Tiny").exists()
    shutil.copy(archive, there)
    assert main(["verify", "Tiny"]) == 0
    assert not known


def test_a_model_whose_making_fails_leaves_nothing_half(
    known: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ModelError("the towers are not the model")

    with monkeypatch.context() as patch:
        patch.setattr(obtaining, "make_folder", broken)
        with pytest.raises(ModelError, match="not the model"):
            obtain("Tiny")
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []
    assert obtain("Tiny").is_dir()
    assert sum("GET" in line for line in known) == 1  # the weights were there


def test_local_weights_on_the_command_line(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(archive), "-o", str(tmp_path / "own"), "--precision", "fp32"]
    assert main(command) == 0
    out = capsys.readouterr().out
    card = ModelCard.load(tmp_path / "own")
    assert card.space.startswith("Tiny-")
    assert f"Tiny (OpenAI TorchScript, space {card.space}) is in {tmp_path / 'own'}" in out
    assert (tmp_path / "own" / "tokenizer.json").is_file()
    again = tmp_path / "again"
    make_folder(archive, again, precisions=("fp32",))
    assert ModelCard.load(again).space == card.space  # the same weights, the same space


def test_a_file_of_the_catalog_is_known_wherever_it_came_from(known: list[str], archive: Path, tmp_path: Path) -> None:
    assert known_file(hashlib.sha256(archive.read_bytes()).hexdigest()) is not None
    copied = shutil.copy(archive, tmp_path / "from-a-friend.pt")
    make_folder(Path(copied), tmp_path / "own", precisions=("fp32",))
    card = ModelCard.load(tmp_path / "own")
    assert (card.id, card.space, card.license) == ("Tiny", "Tiny/openai", "MIT")


def test_a_checkpoint_does_not_say_its_gelu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": clip().state_dict()}, tmp_path / "mine.pt")
    command = ["export", str(tmp_path / "mine.pt"), "--precision", "fp32"]
    assert main([*command, "-o", str(tmp_path / "a")]) == 0
    assert "add --quick-gelu" in caplog.text
    assert not ModelCard.load(tmp_path / "a").arch["quick_gelu"]
    caplog.clear()
    assert main([*command, "--quick-gelu", "-o", str(tmp_path / "b")]) == 0
    assert "quick" not in caplog.text
    images = render(4, 60, 80)
    pixels = torch.from_numpy(prepare(images, ModelCard.load(tmp_path / "b")))
    with torch.inference_mode(), open_engine(tmp_path / "b", "onnx") as quick, open_engine(tmp_path / "a", "onnx") as plain:
        wanted = clip().encode_image(pixels, normalize=True).numpy()
        assert (quick.encode(images) * wanted).sum(1).min() >= 0.99999
        assert np.abs(plain.encode(images) - wanted).max() > 1e-4
    capsys.readouterr()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["export", "-o", "x"], "export needs WEIGHTS or --random ARCH, one of them"),
        (["export", "none.pt", "-o", "x"], "none.pt: no such file"),
        (["export", "none.pt", "--random", "ViT-B-16", "-o", "x"], "one of them"),
        (
            ["verify", "ViT-B-64"],
            "no model folder 'ViT-B-64'; give a folder with card.json and image.onnx, or one of: demo, ViT-B-16",
        ),
    ],
)
def test_a_users_mistake_is_one_line(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_list_names_what_is_here_and_what_can_be_fetched(known: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    before = capsys.readouterr().out
    assert "Tiny         about 13 MB, license: MIT" in before
    obtain("Tiny")
    assert main(["list"]) == 0
    assert "Tiny         32 px, 32 numbers a picture, license: MIT" in capsys.readouterr().out


def test_the_catalog_is_open_clips() -> None:
    table = open_clip().pretrained._PRETRAINED
    for name, one in catalog.catalog().items():
        assert one.url == table[name]["openai"]["url"]
        assert one.sha256 in one.url
    assert {"ViT-B-16", "ViT-B-32", "RN50x4"} <= set(catalog.catalog())
    assert set(available()) >= {"torch", "torch-script", "torch-compile"}
