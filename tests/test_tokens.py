"""Words to vectors for CLIP itself: token ids against open_clip's, and texts of many lengths through one tower."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from open_clip_reference import open_clip
from tokenizers import Tokenizer

from clipsight.engines import BackendError, ModelCard, open_text
from clipsight.engines.export import export
from clipsight.engines.random_weights import random_card, random_model
from clipsight.engines.text import TextEncoder, clean
from clipsight.engines.vocabulary import FILE, byte_letters, make_tokenizer, read_merges, shorten, write_tokenizer

START, END = 49406, 49407
ARCH: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}
LONG = "a very long label, " * 40
TEXTS = {
    "accents": ["Crème brûlée", "Cre\u0300me bru\u0302le\u0301e", "façade", "İstanbul", "ΟΔΟΣ ΟΔΥΣΣΕΩΣ", "Straße"],
    "emoji": ["🦊", "a fox 🦊🦊 in the snow ❄️!", "👩‍👩‍👧‍👦 family", "👍🏽", "🇮🇱🇫🇷", "x🙂y"],
    "Chinese": ["猫", "一只红色的猫", "红 色,的。猫!", "カタカナとひらがな", "ﾊﾝｶｸ", "Ｆｕｌｌ　ｗｉｄｔｈ", "한국어"],
    "Hebrew": ["חתול", "תמונה של חתול אדום", "שָׁלוֹם עולם", "مرحبا بالعالم", "नमस्ते", "ไทย"],
    "too long": [
        *(LONG, "x" * 500, "猫" * 100, "1234567890" * 20, f"{LONG} <end_of_text>"),
        *("a " * 74 + "b", "a " * 75 + "b", "!" * 80),
    ],
    "HTML": [
        *("cats &amp; dogs", "cats &amp;amp; dogs", "cats &amp;amp;amp; dogs", "&lt;b&gt;"),
        *("&#39;s", "&eacute;", "<b>&amp;</b>", "&#xD800;"),
    ],
    "mojibake": ["schÃ¶n", "âœ” No problems", "donâ€™t", "Â£10", "l’humanitÃ©", "ï¬‚uﬀy ﬁsh"],
    "whitespace": [
        *("  a  cat ", "a\tcat\r\n", "a\u00a0cat\u3000x", "a\u200bcat", "a\u2028b\x0bc\x0cd\x1ce\x85f"),
        *("\ufeffcat", " ", "\n"),
    ],
    "digits": ["2024", "3.14", "a 4x4 car", "no. 7", "٣٤٥", "½ Ⅷ ²", "1,000,000"],
    "contractions": [
        *("it's", "IT'S", "don't they'll we've I'd I'm you're", "rock 'n' roll", "'tis"),
        *("the dogs' 's's", "it'ſ", "o’clock"),
    ],
    "marks": [
        *("#", "...", "?!", "a_b-c/d", "(a)", '"quoted"', "“curly” ‘quotes’"),
        *("$5 + 5% = €6", "a\u0345!\u0345<end_of_text>", "\\n"),
    ],
    "broken": ["\ud800", "a\udfffb", "\x00", "a\x07\x1b[31mb", "\ufffd", "\uffff"],
    "empty": [""],
    "special": [
        *("<start_of_text>", "<end_of_text>", "a <end_of_text> b", "A<END_OF_TEXT>B", "!<end_of_text>"),
        *("!<end_of_text><end_of_text>", "<end_of_text><start_of_text><end_of_text>!", "<end_of_text>" * 90),
        *("1<start_of_text>'s<end_of_text>", "<end_of_text", "&lt;end_of_text&gt;", "<end_of_texts", "<end_of_textS"),
        *("<|startoftext|>", "<|endoftext|>", "a<|endoftext|>b", "</w>", "cat</w>", "S"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with CLIP's own tokenizer, and a text tower that is CLIP's but for its width."""
    path = tmp_path_factory.mktemp("clip")
    export(random_model(ARCH), path, random_card("tiny", ARCH, 0), ["fp32"])
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return open_text(folder)


@pytest.fixture(scope="module")
def sentences(real: Path) -> list[str]:
    """ImageNet's 1000 labels, each in three of OpenAI's 80 templates, and so that every template has its turn."""
    facts = json.loads((real / "text" / "openai_imagenet_classes_templates.json").read_text(encoding="utf-8"))
    templates, names = facts["templates"], facts["classes"]
    assert (len(names), len(templates)) == (1000, 80)
    return [templates[(3 * i + k) % 80].format(name) for i, name in enumerate(names) for k in range(3)]


def random_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of up to 40 characters, some from one script, some from all; with spaces, capitals and names of special tokens.

    The characters are those of Unicode 3.2, which every table of letters has known for long, and the emoji since.
    """
    generator = random.Random(seed)
    known = [chr(c) for c in range(0x110000) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")]
    known += [chr(c) for c in range(0x1F300, 0x1FB00)]
    texts = []
    for _ in range(n):
        near = generator.randrange(len(known))
        characters = [*known[near : near + 90], *" '<&;!1aS", *generator.choices(known, k=generator.choice((0, 30)))]
        parts = generator.choices([*characters, "<end_of_text>", "&amp;", "'s"], k=generator.randint(1, 40))
        texts.append("".join(parts))
    return texts


def same_as_open_clip(encoder: TextEncoder, texts: list[str]) -> None:
    """The ids of a whole row, with the start, the end, and zeros behind it; where they differ, the text is shown."""
    wanted = open_clip().tokenize(texts).numpy()  # n x 77
    given = np.zeros_like(wanted)
    for row, ids in zip(given, encoder.tokenize(texts), strict=True):
        row[: len(ids)] = ids
    assert not [text for text, a, b in zip(texts, given, wanted, strict=True) if not np.array_equal(a, b)]


def test_the_shipped_merges_are_openais() -> None:
    original = Path(open_clip().__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    text = gzip.decompress(FILE.read_bytes())  # how small it is packed depends on the packer's version
    assert text == shorten(gzip.decompress(original.read_bytes()))
    assert FILE.stat().st_size < 220_000
    merges = read_merges()
    assert (len(merges), merges[0], merges[-1]) == (48894, ("i", "n"), ("jeky", "ll</w>"))
    assert len({left + right for left, right in merges}) == 48894


def test_the_vocabulary_is_openais() -> None:
    wanted = open_clip().tokenizer._tokenizer.encoder
    tokenizer = make_tokenizer(read_merges())
    assert tokenizer.get_vocab() == wanted
    assert sorted(wanted.values()) == list(range(49408))
    assert [tokenizer.token_to_id(name) for name in ("<start_of_text>", "<end_of_text>")] == [START, END]
    assert len(set(byte_letters())) == 256


def test_a_written_tokenizer_is_the_one_that_was_made(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path)
    assert path == tmp_path / "tokenizer.json"
    read = Tokenizer.from_file(str(path))
    assert read.to_str() == make_tokenizer(read_merges()).to_str()
    assert read.encode("A photo of a cat").ids == [START, 320, 1125, 539, 320, 2368, END]


@pytest.mark.parametrize("kind", TEXTS)
def test_token_ids_are_open_clips(encoder: TextEncoder, kind: str) -> None:
    same_as_open_clip(encoder, TEXTS[kind])


def test_token_ids_of_imagenets_sentences_are_open_clips(encoder: TextEncoder, sentences: list[str]) -> None:
    assert len(set(sentences)) > 2900
    same_as_open_clip(encoder, sentences)


def test_token_ids_of_any_text_are_open_clips(encoder: TextEncoder) -> None:
    same_as_open_clip(encoder, random_texts(1000))


def test_the_end_token_stays_where_a_text_is_cut(encoder: TextEncoder) -> None:
    short, exact, cut = encoder.tokenize(["", "a " * 75, "a " * 76])
    assert short == [START, END]
    assert exact == cut == [START, *[320] * 75, END]


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_is_cleaned_as_by_open_clip(kind: str) -> None:
    theirs = open_clip().tokenizer
    for text in TEXTS[kind]:
        assert clean(text) == theirs.get_clean_fn("lower")(text)
        assert clean(text, lower=False) == theirs.get_clean_fn("whitespace")(text)


def test_a_tokenizer_that_tells_capitals_apart_is_given_them(folder: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    facts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    facts["normalizer"] = None
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
    lower, upper = open_text(tmp_path).tokenize(["cat", " &amp; CAT"])
    assert lower == encoder.tokenize(["cat"])[0] == encoder.tokenize(["CAT"])[0]
    assert upper == [START, 261, *(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("CAT").ids[1:])]
    assert len(upper) > 4


def test_words_to_vectors_are_open_clips(encoder: TextEncoder) -> None:
    """The whole way, with the same weights: text, ids, tower, unit vectors."""
    vision, text = dict(ARCH["vision_cfg"]), dict(ARCH["text_cfg"])
    theirs = open_clip().model.CLIP(ARCH["embed_dim"], vision, text, quick_gelu=True).eval()
    theirs.load_state_dict(random_model(ARCH).state_dict())
    texts = [text for texts in TEXTS.values() for text in texts]
    with torch.inference_mode():
        wanted = theirs.encode_text(open_clip().tokenize(texts), normalize=True).numpy()
    given = encoder.encode(texts)
    np.testing.assert_allclose(given, wanted, atol=1e-5)
    assert np.linalg.norm(given - given.mean(0), axis=1).min() > 1e-2  # texts are told apart


def mixed(n: int = 150) -> list[str]:
    """Texts of 3 to 77 tokens, long and short in turn, none twice."""
    return [" ".join([f"number {i}", *["cat"] * (i * 37 % 80)]) for i in range(n)]


def test_texts_of_any_length_in_any_order_are_each_by_itself(encoder: TextEncoder) -> None:
    texts = mixed()
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    order = np.random.default_rng(0).permutation(len(texts))
    assert {len(ids) for ids in encoder.tokenize(texts)} >= {5, 40, 77}
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode([texts[i] for i in order]), alone[order], atol=1e-5)
    assert np.linalg.norm(alone[1:] - alone[:-1], axis=1).min() > 1e-3  # a row in another's place would be seen


def test_a_graph_of_fixed_length_gives_the_same(folder: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "text.onnx":
            (tmp_path / path.name).symlink_to(path)
    model = onnx.load(folder / "text.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 77
    onnx.save(model, tmp_path / "text.onnx")
    fixed = open_text(tmp_path)
    texts = [*mixed(), "", LONG]
    np.testing.assert_allclose(fixed.encode(texts), encoder.encode(texts), atol=1e-5)
    assert [shapes_of(e, texts[:5]) for e in (fixed, encoder)] == [[(5, 77)], [(1, 4), (2, 41), (2, 77)]]


def shapes_of(encoder: TextEncoder, texts: list[str]) -> list[tuple[int, ...]]:
    """The shapes of the `input_ids` that the graph is given for these texts."""
    shapes = []
    session = encoder._session

    class Watched:
        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> Any:
            shapes.append(inputs["input_ids"].shape)
            return session.run(names, inputs)

    encoder._session = Watched()
    try:
        encoder.encode(texts)
    finally:
        encoder._session = session
    return shapes


def test_texts_go_through_the_tower_64_at_a_time_and_no_longer_than_they_are(encoder: TextEncoder) -> None:
    shapes = shapes_of(encoder, ["a cat", *["a red cat"] * 100, LONG, "cats"])
    assert shapes == [(2, 4), (64, 5), (36, 5), (1, 77)]
    assert shapes_of(encoder, []) == []


def test_a_tower_of_another_dim_than_the_cards_is_one_line(folder: Path) -> None:
    card = dataclasses.replace(ModelCard.load(folder), dim=25)
    with pytest.raises(BackendError, match=r"text_embeds is \(1, 24\), the card says \(1, 25\); correct 'dim'") as caught:
        TextEncoder(folder, card).encode(["cat"])
    assert "\n" not in str(caught.value)
