"""A model folder is held to what it says: its files, its graphs, and real words where it claims to be OpenAI's."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_resnet import SMALL

from clipsight.engines import ModelCard
from clipsight.engines.__main__ import main
from clipsight.engines.export import export
from clipsight.engines.random_weights import random_card, random_model
from clipsight.engines.verifying import NEAR, REAL_SPACE, REAL_WORDS, real_words, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    export(random_model(SMALL, 3), folder, random_card("small", SMALL, 3))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def test_what_was_exported_is_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok    ") for line in lines)
    said = [line[7:].split()[:2] for line in lines]
    assert said[-3:] == [["onnx", "fp32"], ["onnx", "fp16"], ["openvino", "fp32"]]
    assert [name for name, *_ in said[:-3]] == ["image.onnx", "image.fp16.onnx", "image.safetensors", "text.onnx"]


def test_another_graph_is_found_by_its_hash_and_by_its_answers(folder: Path, tmp_path: Path) -> None:
    export(random_model(SMALL, 4), tmp_path / "other", random_card("small", SMALL, 4))
    shutil.copy(tmp_path / "other" / "image.fp16.onnx", folder / "image.fp16.onnx")
    (folder / "text.onnx").unlink()
    lines: list[str] = []
    assert not verify(folder, lines.append)
    wrong = [line for line in lines if line.startswith("WRONG")]
    assert len(wrong) == 3
    assert "image.fp16.onnx is not the file that was exported" in wrong[0]
    assert "text.onnx is not there" in wrong[1]
    assert wrong[2].startswith("WRONG  onnx fp16 beside torch fp32: centered cosine at least ")


def test_a_card_without_hashes_says_so(folder: Path) -> None:
    card = ModelCard.load(folder)
    dataclasses.replace(card, notes={}).save(folder)
    lines: list[str] = []
    assert verify(folder, lines.append)
    assert lines[0].strip().startswith("the card names no hashes")


def test_random_weights_that_claim_to_be_openais_are_found_out(folder: Path) -> None:
    from clipsight.engines.vocabulary import write_tokenizer

    arch = {**SMALL, "text_cfg": {**SMALL["text_cfg"], "vocab_size": 49408, "context_length": 77}}
    claimed = dataclasses.replace(random_card("small", arch, 3), space=REAL_SPACE)
    export(random_model(arch, 3), folder, claimed)
    write_tokenizer(folder)
    lines: list[str] = []
    assert not verify(folder, lines.append)
    assert lines[-1].startswith("WRONG  words: at most ")


def test_real_vectors_pass_and_others_do_not(real: Path) -> None:
    with np.load(real / "text" / "clip-vitb16" / "coco_stuff171_single.npz") as arrays:
        rows = dict(zip(map(str, arrays["names"]), arrays["embeddings"].astype(np.float32), strict=True))
    with np.load(real / "text" / "clip-vitb16" / "voc20_single.npz") as arrays:
        rows |= dict(zip(map(str, arrays["names"]), arrays["embeddings"].astype(np.float32), strict=True))
    words = {f"a photo of a {word}": word for word in REAL_WORDS}
    assert real_words(lambda texts: np.stack([rows[words[text]] for text in texts])) <= NEAR
    turned = dict(zip(REAL_WORDS, [*list(REAL_WORDS)[1:], "bicycle"], strict=True))
    assert real_words(lambda texts: np.stack([rows[turned[words[text]]] for text in texts])) > 10 * NEAR
