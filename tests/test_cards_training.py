"""The demo's model, made small: its tokenizer, its training, the folder it is packed into and what it is examined to."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from clipsight.engines import Image, ModelCard, ModelError, open_engine, open_text, prepare
from clipsight.engines.card import CLIP_MEAN as MEAN
from clipsight.engines.card import CLIP_STD as STD
from clipsight.engines.cards import evaluating, training
from clipsight.engines.cards.__main__ import main
from clipsight.engines.cards.evaluating import Examined, Share, calibrate, evaluate
from clipsight.engines.cards.losses import loss_of
from clipsight.engines.cards.muon import orthogonal
from clipsight.engines.cards.packing import LIMITS, pack
from clipsight.engines.cards.scenes import EXAMINING, SIZE, fingerprint, picture, trained
from clipsight.engines.cards.starting import PATCH
from clipsight.engines.cards.tokenizing import make_tokenizer
from clipsight.engines.cards.training import CONTEXT, Pictures, Settings, Towers, train
from clipsight.engines.cards.words import (
    BACKGROUND,
    COLOR_WORDS,
    NOTHING,
    SHAPES,
    SURFACES,
    Card,
    all_cards,
    corpus,
    indices,
    sentence,
)

SMALL = Settings(
    seed=3,
    pictures=336,
    finish=64,
    rounds=1,
    batch=8,
    width=64,
    layers=1,
    dim=32,
    text_width=32,
    text_layers=1,
    lr=3e-2,
    easy=10.0,
    hard=20.0,
)
SMALLER = dataclasses.replace(SMALL, pictures=24, finish=16)
N = 30  # pictures per figure
WORDS = [word for kind in (SHAPES, COLOR_WORDS, SURFACES) for label, others in kind.items() for word in (label, *others)]
TEXTS = ["a photo of a striped red star", "pink", "outline of a teal lightning bolt on a table", "", "something 猫 else"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: the same sums each time, and small ones are no faster on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 50 steps; it learns little."""
    folder = tmp_path_factory.mktemp("cards") / "new" / "run"
    train(folder, SMALL)
    return folder


@pytest.fixture
def rendered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes to render in: to start them takes longer than a few steps."""

    def loader(pictures: Pictures, *, batch_sampler: list[list[int]], **processes: object) -> DataLoader[tuple[Tensor, ...]]:
        assert processes.keys() >= {"num_workers", "worker_init_fn"}
        return DataLoader(pictures, batch_sampler=batch_sampler)

    monkeypatch.setattr(training, "DataLoader", loader)


@contextlib.contextmanager
def six_cards() -> Iterator[None]:
    """While this lasts six cards are all there are to examine; a model that knows nothing is still right now and then."""
    cards = tuple(card for card in all_cards() if card.color in ("red", "blue") and card.shape == "star")[:6]
    assert len(cards) == 6
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_cards", "trained", "held_out"):
            patch.setattr(evaluating, name, lambda: cards)
        yield


class Packed(NamedTuple):
    folder: Path
    photos: Path
    status: int
    out: str


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    photos = tmp_path_factory.mktemp("photographs")
    for i, shape in enumerate([(300, 260, 3), (230, 400, 3)]):
        cv2.imwrite(str(photos / f"{i}.png"), np.random.default_rng(i).integers(0, 256, shape, np.uint8))
    folder, out = run.parent / "packed", io.StringIO()
    with six_cards(), contextlib.redirect_stdout(out):
        status = main(["pack", str(run), "-o", str(folder), "-n", str(N), "--photographs", str(photos)])
    return Packed(folder, photos, status, out.getvalue())


@pytest.fixture(scope="module")
def halved(run: Path) -> Towers:
    """The towers as they were trained, rounded to float16 as they are packed."""
    model = Towers(SMALL)
    state = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    model.load_state_dict({name: t if "scale" in name else t.half().float() for name, t in state.items()})
    return model.eval().requires_grad_(False)


def some_pictures(n: int, seed: int = 77) -> list[Image]:
    return [picture(seed, i, trained()).image for i in range(n)]


def tensor(images: Sequence[Image]) -> Tensor:
    return torch.from_numpy(np.stack(images))


# The tokenizer


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = make_tokenizer()
    said = {word for text in (*WORDS, *NOTHING, *corpus()) for word in text.split()}
    assert {"star", "turquoise", "polka", "photo"} < said
    assert [word for word in said if len(tokenizer.encode(word).ids) != 3] == []
    assert len(tokenizer.encode("a photo of a Striped RED star").ids) == 2 + 7


def test_any_text_has_tokens_and_they_say_it_again() -> None:
    tokenizer = make_tokenizer()
    for text in ["a red star 🦊", "星形の赤いカード", "naïve café", "ملصق", "\x00\t\u200b", "x" * 100, ""]:
        ids = tokenizer.encode(text).ids
        told = bytes(_byte(piece) for i in ids[1:-1] for piece in tokenizer.id_to_token(i) or "")
        assert told.decode().strip() == text.lower().strip()
        assert (ids[0], ids[-1]) == (tokenizer.token_to_id("<start>"), tokenizer.token_to_id("<end>"))


def _byte(piece: str) -> int:
    """GPT-2's letters for bytes: those that can be printed are themselves, the others follow from 256 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printed]
    return ord(piece) if ord(piece) < 256 else others[ord(piece) - 256]


def test_start_and_end_are_the_last_tokens_and_two_tokenizers_are_the_same() -> None:
    tokenizer = make_tokenizer()
    size = tokenizer.get_vocab_size()
    assert (tokenizer.token_to_id("<start>"), tokenizer.token_to_id("<end>")) == (size - 2, size - 1)
    assert 256 < size < 1000
    assert make_tokenizer().to_str() == tokenizer.to_str()


def test_every_sentence_fits_into_the_context() -> None:
    rng, tokenizer = np.random.default_rng(4), make_tokenizer()
    said = [sentence(rng, *card) for card in all_cards() for _ in range(3)]
    assert max(len(tokenizer.encode(text).ids) for text in (*said, *NOTHING)) < CONTEXT


# Training


def test_the_rate_rises_and_falls_to_nothing_and_again_in_every_round_of_the_end() -> None:
    settings = Settings()
    assert settings.steps == settings.first + settings.finish // settings.batch > settings.first > 1000
    rates = [settings.rate_at(step) for step in range(settings.steps)]
    first, end = rates[: settings.first], rates[settings.first :]
    top = first.index(max(first))
    assert 0 < top < settings.first / 10
    assert 0 < first[0] < 0.05 * first[top]
    assert first[: top + 1] == sorted(first[: top + 1])
    assert first[top:] == sorted(first[top:], reverse=True)
    assert first[-1] < 1e-5
    each = len(end) // settings.rounds
    assert each * settings.rounds == len(end)
    for one in (end[i : i + each] for i in range(0, len(end), each)):
        assert one[0] == 0.3
        assert one == sorted(one, reverse=True)
        assert one[-1] < 1e-4


def test_pictures_are_easy_first_and_all_that_they_shall_be_long_before_the_end() -> None:
    settings = Settings()
    strengths = [settings.strength_at(i) for i in range(0, settings.pictures + settings.finish, 1000)]
    assert strengths == sorted(strengths)
    assert strengths[0] == 0.05
    assert strengths.count(1.0) > len(strengths) / 2
    assert 0 < sum(0.05 < s < 1 for s in strengths) < len(strengths) / 2


def test_an_example_is_a_picture_its_words_and_its_patches() -> None:
    pictures = Pictures(SMALL)
    seen = set()
    for i in range(25):
        image, truth, shown = pictures[i]
        made = picture(SMALL.seed, i, trained(), strength=0.05)
        assert np.array_equal(image.numpy(), made.image)
        assert tuple(truth.tolist()) == (indices(made.card) if made.card else (-1, -1, -1))
        patches = shown.numpy().reshape(SIZE // PATCH, SIZE // PATCH)
        seen |= set(patches.ravel().tolist())
        for (y, x), kind in np.ndenumerate(patches):
            share = made.cover[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].mean() / 255
            assert kind == (1 if share > 0.6 else 0 if share < 0.05 else -1)
        assert made.card or not patches.any()
    assert seen == {-1, 0, 1}
    hard = pictures[10_000]
    assert np.array_equal(hard[0].numpy(), picture(SMALL.seed, 10_000, trained()).image)


def test_the_loss_falls(run: Path) -> None:
    made = [picture(55, i, trained(), strength=0.1) for i in range(48)]
    pixels = tensor([m.image for m in made])
    truth = torch.tensor([indices(m.card) if m.card else (-1, -1, -1) for m in made])
    torch.manual_seed(SMALL.seed)
    model = Towers(SMALL)
    losses = []
    for _ in range(2):
        with torch.inference_mode():
            losses.append([float(loss_of(model, model.images(pixels, None), truth, None, step, 5)[0]) for step in range(3)])
        model.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True)["model"])
    before, after = np.mean(losses, 1)
    assert after < 0.9 * before
    (line,) = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    told = json.loads(line)
    assert told["step"] == SMALL.steps == 50
    assert after < told["loss"] < 1.5 * before  # the mean of the run, most of it with the patches' loss
    assert 0 <= told["right"] <= 1


class Ideal(Towers):
    """Towers that understand every sentence: each meaning is an axis, and nothing is one."""

    def __init__(self) -> None:
        super().__init__(SMALL)
        labels = [(label, *others) for kind in (SURFACES, COLOR_WORDS, SHAPES) for label, others in kind.items()]
        self.axes = {word: i for i, same in enumerate(labels) for word in " ".join(same).split()}
        self.nothing = len(labels)

    def texts(self, sentences: Sequence[str]) -> Tensor:
        vectors = torch.zeros(len(sentences), self.nothing + 1)
        for vector, text in zip(vectors, sentences, strict=True):
            vector[[self.axes[word] for word in text.split() if word in self.axes] or [self.nothing]] = 1
        return torch.nn.functional.normalize(vectors, dim=1)


def test_the_loss_is_least_for_what_is_true_of_pictures_and_patches() -> None:
    model = Ideal()
    cards = [Card("plain", "red", "circle"), Card("striped", "green", "cross"), Card("dotted", "blue", "arrow")]
    truth = torch.tensor([*map(indices, cards), (-1, -1, -1)])
    shown = torch.tensor([[1, 0, -1]] * 3 + [[0, 0, 0]])
    images = model.texts([*map(str, cards), "nothing"])
    nothing = images[-1:].expand(4, -1)
    rows = torch.stack([images, images, nothing, images], 1)  # picture, card, background, in between

    def loss(rows: Tensor, truth: Tensor = truth, shown: Tensor = shown, step: int = 0) -> tuple[float, float]:
        with torch.inference_mode():
            value, share = loss_of(model, rows, truth, shown, step, seed=1)
        return float(value), share

    for step in range(3):  # each has other words that are left out of the sentences
        least, share = loss(rows, step=step)
        assert share == 1
        swapped, share = loss(rows, truth[[1, 2, 0, 3]], step=step)
        assert share == 0.25  # nothing is still nothing
        assert swapped > least + 1
        mixed = [0, 1, 3, 2]  # a card where there is none, and the reverse
        unseen, share = loss(rows, truth[mixed], shown[mixed], step)
        assert share == 0.5
        assert unseen > least + 1
    for patch, worse in ((1, True), (2, True), (3, False)):  # what is in between is not asked
        changed = rows.clone()
        changed[:, patch] = images[[1, 2, 0, 0]] if patch == 2 else nothing
        assert (loss(changed)[0] > loss(rows)[0] + 0.1) == worse
        assert loss(changed)[1] == 1
    losses = []
    for bias in (-6.0, 6.0):  # with a slope of 20 what is true has a cosine above 0.57, what is false has 0
        with torch.no_grad():
            model.sigmoid_scale.fill_(float(np.log(20)))
            model.sigmoid_bias.fill_(bias)
        losses.append(loss(rows)[0])
    assert losses[0] < losses[1] - 1


@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (32, 128)])
def test_muon_turns_a_gradient_in_all_directions_alike(shape: tuple[int, int]) -> None:
    gradients = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    gradients[1] *= 1000
    given = orthogonal(gradients)
    u, _, v = torch.linalg.svd(gradients, full_matrices=False)
    sizes = torch.linalg.svdvals(given)
    assert sizes.min() > 0.1
    assert sizes.max() < 1.3
    assert sizes.median() > 0.65
    assert torch.allclose(given, u @ torch.diag_embed((u.mT @ given @ v.mT).diagonal(dim1=1, dim2=2)) @ v, atol=1e-3)


def tensors_of(state: object, name: str = "") -> dict[str, Tensor]:
    """All tensors of a checkpoint, those of the optimizers too, by where they stand."""
    if isinstance(state, Tensor):
        return {name: state}
    inner = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {at: t for key, value in inner for at, t in tensors_of(value, f"{name}/{key}").items()}


def test_a_run_that_was_stopped_goes_on_to_the_very_same_weights(tmp_path: Path, rendered_here: None) -> None:
    """Bit for bit: with one thread no sum depends on which of them was first."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert (SMALLER.first, SMALLER.steps) == (3, 5)
    train(whole, SMALLER)
    train(parts, SMALLER, minutes=1e-9)
    begun = torch.load(parts / "checkpoint.pt", weights_only=True)
    assert begun["step"] == 1
    assert train(parts, SMALLER) == 5
    wanted, given = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, parts))
    assert wanted["step"] == given["step"] == 5
    assert given["seconds"] > begun["seconds"] > 0
    wanted, given = tensors_of(wanted), tensors_of(given)
    model = Towers(SMALLER)
    assert len(wanted) > 2 * len(model.state_dict())  # the optimizers' too
    assert wanted.keys() == given.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], given[name])] == []
    assert all(f"/model/{name}" in given for name in model.state_dict())
    assert not any(torch.equal(t, given[name]) for name, t in tensors_of(begun).items() if name.endswith("weight"))
    assert {path.name for path in parts.iterdir()} == {"checkpoint.pt", "log.jsonl"}
    before = (parts / "checkpoint.pt").read_bytes()
    assert train(parts, SMALLER) == 5  # there is nothing left to do
    assert (parts / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_other_settings_is_one_line(run: Path) -> None:
    before = (run / "checkpoint.pt").read_bytes()
    with pytest.raises(ModelError, match=r"checkpoint\.pt is of another run") as caught:
        train(run, dataclasses.replace(SMALL, seed=4))
    assert "\n" not in str(caught.value)
    assert (run / "checkpoint.pt").read_bytes() == before


def test_training_on_the_command_line(tmp_path: Path, rendered_here: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "-o", str(tmp_path), "--pictures", "1", "--finish", "1", "--width", "64", "--layers", "1"]
    assert main(command) == 0  # less than a batch: no step
    assert f"cards pack {tmp_path} -o FOLDER" in capsys.readouterr().out
    settings = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["settings"]
    assert Settings(**settings) == Settings(pictures=1, finish=1, width=64, layers=1)
    assert main([*command, "--seed", "2"]) == 2
    err = capsys.readouterr().err
    assert "is of another run" in err
    assert err.count("\n") == 1


# The towers as they are trained, and as they are shipped


def test_patches_know_their_place_whatever_their_order(halved: Towers) -> None:
    pixels, n = tensor(some_pictures(3)), (SIZE // PATCH) ** 2
    order = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    whole, straight, mixed = (halved.images(pixels, kept) for kept in (None, torch.arange(n).expand(3, n), order))
    assert whole.shape == (3, 1, 32)
    assert straight.shape == mixed.shape == (3, 1 + n, 32)
    assert torch.allclose(whole[:, 0], straight[:, 0], atol=1e-5)
    assert torch.allclose(straight[:, 0], mixed[:, 0], atol=1e-5)
    rows = straight[:, 1:].gather(1, order[:, :, None].expand(-1, -1, 32))
    assert torch.allclose(rows, mixed[:, 1:], atol=1e-5)
    few = halved.images(pixels, order[:, :60])
    assert few.shape == (3, 61, 32)
    assert not torch.allclose(few[:, 0], whole[:, 0], atol=1e-4)


def test_a_picture_of_the_models_size_is_only_normalized(packed: Packed) -> None:
    (image,) = some_pictures(1)
    rgb = image[..., ::-1].transpose(2, 0, 1).astype(np.float64) / 255
    wanted = (rgb - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    assert np.abs(prepare([image], ModelCard.load(packed.folder))[0] - wanted).max() < 1e-5


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_the_image_tower_is_shipped_as_it_was_trained(packed: Packed, halved: Towers, backend: str) -> None:
    images = some_pictures(6)
    wanted = halved.images(tensor(images), None)[:, 0].numpy()
    with contextlib.closing(open_engine(packed.folder, backend)) as engine:
        given = engine.encode(images)
    assert np.abs(given - wanted).max() < 1e-5
    assert np.linalg.norm(wanted - wanted.mean(0), axis=1).min() > 1e-3  # and pictures are told apart


def test_the_text_tower_is_shipped_as_it_was_trained(packed: Packed, halved: Towers) -> None:
    given = open_text(packed.folder).encode(TEXTS)
    together = halved.texts(TEXTS).numpy()
    alone = np.concatenate([halved.texts([text]).numpy() for text in TEXTS])
    assert np.abs(given - together).max() < 1e-5
    assert np.abs(given - alone).max() < 1e-5
    assert np.linalg.norm(given - given.mean(0), axis=1).min() > 1e-2  # texts are told apart


# Packing


def test_the_folder_is_whole(packed: Packed) -> None:
    assert packed.status == 0
    files = {"card.json", "image.onnx", "image.safetensors", "text.onnx", "tokenizer.json", "labels.txt"}
    assert {path.name for path in packed.folder.iterdir()} == files
    labels = (packed.folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == [str(card) for card in all_cards()]
    assert (packed.folder / "tokenizer.json").read_text(encoding="utf-8").strip()
    assert packed.out.splitlines()[-1].startswith(f"{packed.folder}: ")


def test_the_card_says_what_the_model_is(packed: Packed) -> None:
    card = ModelCard.load(packed.folder)
    assert card.id == "demo"
    assert re.fullmatch("clipsight-cards-[0-9a-f]{8}", card.space)
    assert (card.size, card.dim, card.context_length) == (SIZE, 32, CONTEXT)
    assert (card.mean, card.std) == (MEAN, STD)
    assert card.background == BACKGROUND
    assert card.limits == LIMITS != ""
    with six_cards():
        assert (card.threshold, card.margin) == calibrate(Examined(packed.folder), N)
    assert 0 < card.logit_scale <= 100
    assert card.notes["settings"] == dataclasses.asdict(SMALL)
    assert card.notes["data"].startswith("400 rendered pictures")
    assert card.notes["world"] == fingerprint()
    assert min(card.notes["centered_cosine_to_torch"].values()) > 0.9999
    assert set(card.notes["centered_cosine_to_torch"]) == {"image.onnx", "text.onnx"}


def test_both_backends_have_the_same_weights(packed: Packed) -> None:
    tensors = load_file(packed.folder / "image.safetensors")
    assert {t.dtype for t in tensors.values()} == {np.dtype(np.float16)}
    graph = onnx.load(packed.folder / "image.onnx").graph
    arrays = [numpy_helper.to_array(initializer) for initializer in graph.initializer]
    weights = [a for a in arrays if a.dtype == np.float32 and a.ndim]
    assert sum(a.size for a in weights) >= sum(t.size for t in tensors.values())
    assert all(np.array_equal(a, a.astype(np.float16).astype(np.float32)) for a in weights)
    conv = next(numpy_helper.to_array(i) for i in graph.initializer if len(i.dims) == 4)
    assert np.array_equal(conv, tensors["visual.conv1.weight"].astype(np.float32))
    images = some_pictures(4, seed=78)
    found = []
    for backend in ("onnx", "torch"):
        with contextlib.closing(open_engine(packed.folder, backend)) as engine:
            found.append(engine.encode(images))
    assert (found[0] * found[1]).sum(1).min() > 0.999999


def test_what_it_was_examined_to_is_on_the_card_and_comes_out_again(packed: Packed, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--model", str(packed.folder), "-n", str(N), "--photographs", str(packed.photos)]
    with six_cards():
        shares = evaluate(packed.folder, n=N, photos=packed.photos)
        assert main(command) == 1  # it misses its goals
    out = capsys.readouterr().out
    assert "MISSED" in out
    assert out.splitlines() == [str(share) for share in shares] == packed.out.splitlines()[:-1]
    told = ModelCard.load(packed.folder).notes["examined"]
    assert told["seeds"] == {"calibration": evaluating.CALIBRATION, "test": evaluating.TEST}
    assert "2 of them" in told["photographs"]
    assert [Share(**figure) for figure in told["figures"]] == shares
    assert [share.of for share in shares if "labels" in share.what] == [N] * 3
    assert [share.of for share in shares if "no card" in share.what] == [N, 2]
    with six_cards():
        assert len(evaluate(packed.folder, n=4)) == len(shares) - 2


def test_a_model_that_meets_its_goals_is_status_0(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [Share("a", 9, 10, 0.9), Share("b", 0, 9, 0.1, least=False)]
    monkeypatch.setattr(evaluating, "evaluate", lambda *_, **__: shares)
    assert main(["evaluate", "--model", str(packed.folder)]) == 0


def test_no_run_and_no_model_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="train first: python -m clipsight") as caught:
        pack(tmp_path / "run", tmp_path / "folder")
    assert "\n" not in str(caught.value)
    for command in (["pack", str(tmp_path / "run"), "-o", str(tmp_path / "folder")], ["evaluate", "--model", str(tmp_path)]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("clipsight: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("wrong", [{"width": 800}, {"width": 100}, {"width": 32}, {"seed": EXAMINING}])
def test_settings_that_cannot_be_trained(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError):
        Settings(**wrong)


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    for begun in (lambda: train(tmp_path, Settings()), lambda: pack(tmp_path, tmp_path / "out")):
        with pytest.raises(ModelError, match="not a checkpoint of this training") as caught:
            begun()
        assert "\n" not in str(caught.value)
