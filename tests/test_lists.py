"""Word lists: how they are read and what is told of them, templates, and the banks that are made of words and pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
from open_clip_reference import open_clip

from clipsight.engines import LabelError, ModelCard, Vectors, open_engine, open_text
from clipsight.engines.pictures import pictures_in
from clipsight.engines.registry import find_model
from clipsight.engines.text import TextEncoder, fill, prompt
from clipsight.labels import LabelBank, open_bank
from clipsight.labels.__main__ import main
from clipsight.labels.building import bank_of_labels, bank_of_pictures
from clipsight.labels.words import Label, parse, read_list, read_templates, shipped_lists, texts

LIST = """# what is on the desk
cup | mug | coffee mug

Grandma's cup = cup | coffee mug
sofa|couch
# and what is not
cat
cup | beaker


dog | dog
"""


def test_a_list_has_names_words_and_remarks_by_number() -> None:
    labels, remarks = parse(LIST.splitlines(), "desk.txt")
    assert labels == [
        Label("cup", ("cup", "mug", "coffee mug")),
        Label("Grandma's cup", ("cup", "coffee mug")),
        Label("sofa", ("sofa", "couch")),
        Label("cat", ("cat",)),
        Label("dog", ("dog",)),
    ]
    assert remarks == [
        "desk.txt: lines 1, 6 comments",
        "desk.txt: lines 3, 9-10 empty",
        "desk.txt: line 8: 'cup' is there already, in line 2; the first is kept",
    ]


@pytest.mark.parametrize("line", ["|", " | | ", "a = ", "a = |"])
def test_a_line_that_names_nothing_is_told_by_its_number(line: str) -> None:
    with pytest.raises(LabelError, match=r"desk.txt, line 2: .* names nothing"):
        parse(["cat", line], "desk.txt")


def test_prose_is_no_list() -> None:
    prose = "Name a few hundred things in plain words, point a camera at the world, and see what it is looking at, drawn over."
    with pytest.raises(LabelError, match=r"README.md, line 2: 'Name a few hundred things in plain words'\.\.\. is no label"):
        parse(["# clipsight", prose], "README.md")


def test_words_that_a_small_model_was_never_taught_are_told(caplog: pytest.LogCaptureFixture) -> None:
    open_bank("crimson star, an azure drop, zxqv", "demo")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "demo was never taught 'azure', 'zxqv'; what it names so is a guess"
    caplog.clear()
    open_bank("a spotted hoop, blue circles", "demo")
    assert not caplog.records


def test_a_file_with_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffKüche\r\n猫\r\n".encode())
    assert [label.name for label in read_list(tmp_path / "a.txt").labels] == ["Küche", "猫"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabelError, match="not readable as UTF-8"):
        read_list(tmp_path / "b.txt")
    with pytest.raises(LabelError, match="no such file"):
        read_list(tmp_path / "c.txt")


def test_the_shipped_lists_are_whole() -> None:
    counts = {name: len(read_list(name).labels) for name in shipped_lists()}
    assert counts.pop("everyday") == pytest.approx(300, abs=20)
    assert counts == {"coco80": 80, "imagenet1000": 1000, "lvis1203": 1203, "voc20": 20}
    for name in shipped_lists():
        assert all("already" not in remark for remark in read_list(name).remarks), name


def test_imagenets_words_and_templates_are_openais() -> None:
    metadata = open_clip()
    names = metadata.IMAGENET_CLASSNAMES
    assert [label.words[0] for label in read_list("imagenet1000").labels] == list(names)
    assert list(read_templates("imagenet")) == [template("{}") for template in metadata.OPENAI_IMAGENET_TEMPLATES]


def test_lists_are_in_the_order_of_the_real_vectors(real: Path) -> None:
    for name, file in (
        ("lvis1203", "clip-vitb32/lvis_v1"),
        ("coco80", "clip-vitb32/coco80"),
        ("voc20", "clip-vitb16/voc20_single"),
    ):
        with np.load(real / "text" / f"{file}.npz") as arrays:
            assert [label.name for label in read_list(name).labels] == [str(n).replace("_", " ") for n in arrays["names"]]


def test_templates(tmp_path: Path) -> None:
    assert read_templates("none") == ("{}",)
    assert read_templates("simple") == ("a photo of a {}",)
    assert len(set(read_templates("imagenet"))) == 80
    (tmp_path / "mine.txt").write_text("# mine\n\na {} on a table\nthe {} of my aunt\n")
    assert read_templates(tmp_path / "mine.txt") == ("a {} on a table", "the {} of my aunt")
    for text, said in (("a thing\n", "line 1: 'a thing' needs {} once"), ("# none\n", "holds no templates")):
        (tmp_path / "mine.txt").write_text(text)
        with pytest.raises(LabelError, match=said):
            read_templates(tmp_path / "mine.txt")
    with pytest.raises(LabelError, match="no file of templates"):
        read_templates("openai")


def test_an_article_is_not_said_twice() -> None:
    assert fill("a photo of a {}.", "a red star") == "a photo of a red star."
    assert fill("a photo of many {}.", "a red star") == "a photo of many a red star."
    assert fill("itap of the {}.", "the moon") == "itap of the moon."
    assert all(fill("a photo of a {}", word) == prompt(word) for word in ("a cat", "an owl", "the sea", "andiron"))
    assert texts(Label("cup", ("cup", "a cup", "mug")), ("a {}", "{}")) == ("a cup", "cup", "a mug", "mug")


def test_a_label_is_the_mean_of_its_texts() -> None:
    labels = [Label("star", ("star", "five-pointed star")), Label("red ring", ("red ring",))]
    templates = ("a photo of a {}", "{}")
    bank = bank_of_labels(labels, "demo", templates)
    assert bank.names == ("star", "red ring")
    assert bank.prompts[0] == ("a photo of a star", "star", "a photo of a five-pointed star", "five-pointed star")
    text = open_text("demo")
    mean = text.encode(bank.prompts[0]).mean(0)
    assert np.allclose(bank.vectors[0], mean / np.linalg.norm(mean), atol=1e-6)
    card = ModelCard.load(find_model("demo"))
    assert (bank.space, bank.threshold, bank.margin) == (card.space, card.threshold, card.margin)


def test_what_did_not_change_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [Label(name, (name,)) for name in ("star", "ring", "cross")]
    before = bank_of_labels(labels, "demo")
    asked: list[str] = []
    encode = TextEncoder.encode

    def noted(self: TextEncoder, strings: Sequence[str]) -> Vectors:
        asked.extend(strings)
        return encode(self, strings)

    monkeypatch.setattr(TextEncoder, "encode", noted)
    ready: list[int] = []
    changed = [labels[2], Label("ring", ("ring", "hoop")), Label("moon", ("moon",)), labels[0]]
    after = bank_of_labels(changed, "demo", known=before, done=ready.append)
    background = ModelCard.load(find_model("demo")).background
    assert asked == ["a photo of a ring", "a photo of a hoop", "a photo of a moon", *background]
    assert ready == [2, 2]
    assert np.allclose(after.vectors[[0, 3]], before.vectors[[2, 0]], atol=1e-6)
    assert np.allclose(after.vectors, bank_of_labels(changed, "demo").vectors, atol=1e-6)


def test_a_bank_of_another_space_is_not_used_again() -> None:
    labels = [Label("star", ("star",))]
    made = bank_of_labels(labels, "demo")
    other = LabelBank(made.names, -made.vectors, "elsewhere", prompts=made.prompts)
    assert np.allclose(bank_of_labels(labels, "demo", known=other).vectors, made.vectors, atol=1e-6)


@pytest.fixture
def shelves(tmp_path: Path) -> Path:
    """Two goods of three pictures each, which words would not tell apart."""
    rng = np.random.default_rng(0)
    for name, color in (("soap A", (40, 40, 220)), ("soap B", (200, 60, 30))):
        (tmp_path / "shelf" / name).mkdir(parents=True)
        for i in range(3):
            picture = np.full((90, 120, 3), color, np.uint8)
            cv2.circle(picture, (60, 45), 20 + 5 * i, (255, 255, 255), -1)
            cv2.imwrite(
                str(tmp_path / "shelf" / name / f"{i}.png"), cv2.add(picture, rng.integers(0, 30, picture.shape, np.uint8))
            )
    return tmp_path / "shelf"


def test_a_bank_of_pictures_is_their_means(shelves: Path) -> None:
    with open_engine("demo", "onnx") as engine:
        bank = bank_of_pictures(shelves, engine)
        images = pictures_in(shelves / "soap A")
        mean = engine.encode(images).mean(0)
        assert np.allclose(bank.vectors[0], mean / np.linalg.norm(mean), atol=1e-6)
        assert [s.top(1)[0].name for s in bank.score(engine.encode(images))] == ["soap A"] * 3
    assert bank.names == ("soap A", "soap B")
    assert bank.space == ModelCard.load(find_model("demo")).space


def test_pictures_that_are_not_in_folders_of_labels_are_one_line(tmp_path: Path) -> None:
    with open_engine("demo", "onnx") as engine, pytest.raises(LabelError, match="make one for each label"):
        bank_of_pictures(tmp_path, engine)


def test_words_and_their_bank_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "desk.txt").write_text("# of shapes\nstar | five-pointed star\nring\n")
    output = tmp_path / "desk.safetensors"
    command = ["build", str(tmp_path / "desk.txt"), "blue moon, red sun", "--model", "demo", "-o", str(output)]
    assert main([*command, "--templates", "imagenet"]) == 0
    said = capsys.readouterr()
    assert "4 labels of 128 numbers" in said.out
    assert f"{tmp_path / 'desk.txt'}: line 1 comments" in said.err
    bank = LabelBank.load(output)
    assert bank.names == ("star", "ring", "blue moon", "red sun")
    assert [len(said) for said in bank.prompts] == [160, 80, 80, 80]
    assert main(["show", str(output)]) == 0
    out = capsys.readouterr().out
    assert "star  [a bad photo of a star.; a photo of many star.; and 158 more]  nearest: " in out


def test_two_names_for_one_thing_are_shown_as_too_alike(tmp_path: Path) -> None:
    vectors = np.eye(3, 4, dtype=np.float32)
    vectors[1] = vectors[0] + 0.05 * vectors[2]
    LabelBank(("rock", "stone", "cat"), vectors, "s").save(tmp_path / "b.safetensors")
    with redirect_stdout(io.StringIO()) as out:
        assert main(["show", str(tmp_path / "b.safetensors")]) == 0
    assert out.getvalue().splitlines()[-2:] == ["too alike to tell apart (cosine above 0.95): 1 pairs", "  rock - stone 0.999"]


def test_pictures_on_the_command_line(shelves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", "demo", "-o", str(tmp_path / "b.safetensors")]
    assert main(["build", str(shelves), *command]) == 0
    assert "2 labels of 128 numbers" in capsys.readouterr().out
    assert main(["build", str(shelves), "cat, dog", *command]) == 2
    assert "make a bank of each" in capsys.readouterr().err


def test_a_shipped_list_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSIGHT_CACHE", str(tmp_path / "cache"))
    bank = open_bank("coco80", "demo")
    assert len(bank) == 80
    assert bank.prompts[0] == ("a photo of a person",)
    (kept,) = (tmp_path / "cache" / "banks").iterdir()

    def forbidden(*_: object) -> None:
        raise AssertionError("the bank was there already")

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode", forbidden)
        again = open_bank("coco80", "demo")
    assert np.allclose(again.vectors, bank.vectors, atol=1e-6)
    assert (again.names, again.margin, again.background is None) == (bank.names, bank.margin, bank.background is None)
    kept.write_bytes(b"damaged")
    assert np.allclose(open_bank("coco80", "demo").vectors, bank.vectors, atol=1e-6)
    assert LabelBank.load(kept).names == bank.names
    few = open_bank("cat, dog", "demo")
    assert len(list(kept.parent.iterdir())) == 1 < len(few)


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CLIPSIGHT_CACHE", str(tmp_path / "file"))
    assert len(open_bank("voc20", "demo")) == 20
    assert len(open_bank("coco80", "demo")) == 80


def test_leaving_one_out_of_real_classes(real: Path, tmp_path: Path) -> None:
    """20 classes of 5 photographs: from 4 of each the fifth is named, by plain means in a real encoder's space."""
    right = 0
    folders = sorted((real / "images" / "per_class").iterdir())
    with open_engine(real / "encoder", "onnx") as engine:
        for left_out in range(5):
            shelf = tmp_path / str(left_out)
            for folder in folders:
                (shelf / folder.name).mkdir(parents=True)
                for i in range(5):
                    if i != left_out:
                        (shelf / folder.name / f"{i}.jpg").symlink_to(folder / f"{i}.jpg")
            bank = bank_of_pictures(shelf, engine)
            images = [np.asarray(cv2.imread(str(folder / f"{left_out}.jpg")), np.uint8) for folder in folders]
            vectors = np.concatenate([engine.encode([image]) for image in images])
            right += sum(s.top(1)[0].name == folder.name for s, folder in zip(bank.score(vectors), folders, strict=True))
    assert right >= 80
