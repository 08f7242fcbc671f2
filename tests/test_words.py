"""Words through a text tower: `open_text`, `open_bank`, and the door."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from clipsight.engines import BackendMissing, ModelCard, ModelError, open_text, registry
from clipsight.engines.export import export
from clipsight.engines.random_weights import random_card, random_model
from clipsight.labels import open_bank

ROOT = Path(__file__).parent.parent
WORDS = ["cat", "dog", "red star", "猫"]
ARCH = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 12, "vocab_size": 300, "width": 64, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with both towers and a tokenizer of CLIP's kind: byte pairs, start and end tokens last in the list."""
    folder = tmp_path_factory.mktemp("words")
    export(random_model(ARCH, 0), folder, random_card("tiny", ARCH, 0))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=298, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["a photo of a cat", "a photo of a dog"] * 5, trainer)
    tokenizer.add_special_tokens(["<start>", "<end>"])
    start, end = tokenizer.token_to_id("<start>"), tokenizer.token_to_id("<end>")
    assert end == tokenizer.get_vocab_size() - 1 < 300
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def by_torch(model: Path, texts: list[str]) -> np.ndarray:
    """The same words through the towers themselves; ids laid out as CLIP does: end token kept, zeros behind it."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = np.zeros((len(texts), 12), np.int64)
    for row, text in zip(ids, texts, strict=True):
        found = tokenizer.encode(text).ids
        if len(found) > 12:
            found = [*found[:11], found[-1]]
        row[: len(found)] = found
    with torch.inference_mode():
        embeds = random_model(ARCH, 0).encode_text(torch.from_numpy(ids)).numpy()
    unit: np.ndarray = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
    return unit


def test_words_become_the_towers_unit_vectors(model: Path) -> None:
    texts = [*WORDS, "", "a text that is a good deal longer than the twelve tokens of this tower"]
    vectors = open_text(model).encode(texts)
    assert vectors.shape == (6, 32)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.allclose(vectors, by_torch(model, texts), atol=1e-5)
    assert open_text(model).encode([]).shape == (0, 32)


def test_many_texts_are_each_by_itself(model: Path) -> None:
    texts = [f"a photo of a cat number {i}" for i in range(150)]
    encoder = open_text(model)
    together = encoder.encode(texts)
    assert np.allclose(together[149], encoder.encode([texts[149]])[0], atol=1e-5)


def test_words_on_the_command_line_and_in_a_file_become_the_same_bank(model: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeff# animals\ncat\n\n dog \nred star\n猫\ncat\n", encoding="utf-8")
    typed = open_bank("cat, dog,red star , 猫, cat,", model)
    filed = open_bank(tmp_path / "words.txt", model)
    assert typed.names == filed.names == tuple(WORDS)
    assert typed.prompts[0] == ("a photo of a cat",)
    assert np.array_equal(typed.vectors, filed.vectors)
    assert np.allclose(typed.vectors, by_torch(model, [f"a photo of a {w}" for w in WORDS]), atol=1e-5)
    assert typed.space == "random-tiny-0"


def test_words_compete_with_what_the_card_says_of_a_picture_of_nothing(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        if path.name != "card.json":
            (tmp_path / path.name).symlink_to(path)
    background = ("nothing", "an empty table")
    dataclasses.replace(ModelCard.load(model), background=background, threshold=0.5, margin=0.01).save(tmp_path)
    plain, bank = (open_bank("cat, dog", folder) for folder in (model, tmp_path))
    assert plain.background is None
    assert (plain.threshold, plain.margin) == (None, 0.0)
    assert (bank.threshold, bank.margin) == (0.5, 0.01)
    assert bank.background is not None
    assert np.allclose(bank.background, by_torch(model, list(background)), atol=1e-5)  # as they are, not "a photo of a nothing"
    assert np.array_equal(bank.vectors, plain.vectors)
    assert plain.score(bank.background)[0].label is not None
    assert bank.score(bank.background)[0].label is None
    assert bank.score(bank.vectors)[1].label == "dog"
    assert plain.score(-bank.vectors)[1].label is not None
    assert bank.score(-bank.vectors)[1].label is None


def test_words_reach_the_results(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    words = ["demo", "--every-frame", "--model", str(model), "--labels", "red card, blue card", "--results", str(out)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_camera.py"), *words, "--no-window"],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "DISPLAY"},
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 1  # random weights fail the demo's verdict, and it says so
    assert "FAILED" in done.stdout
    assert '"red card"' in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("gone", ["text.onnx", "tokenizer.json"])
def test_half_a_text_tower_is_one_line(model: Path, tmp_path: Path, gone: str) -> None:
    for path in model.iterdir():
        if path.name != gone:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ModelError, match=gone):
        open_text(tmp_path)


def test_a_damaged_tokenizer_is_one_line(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="does not load") as caught:
        open_text(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gone", ["tokenizers", "ftfy", "onnxruntime"])
def test_what_words_need_and_is_not_installed(model: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    installed = registry._installed
    monkeypatch.setattr(registry, "_installed", lambda package: package != gone and installed(package))
    with pytest.raises(BackendMissing, match=f"words need {gone}, which is not installed; run: pip install {gone}"):
        open_text(model)
