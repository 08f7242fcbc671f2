"""A word list in, labels out: what each is called, the words that are encoded for it, and what was passed over and why.

# a comment
cat
sofa | couch                       other words for the same; the first is shown
Grandma's cup = cup | coffee mug   what is shown, apart from the words
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..engines import LabelError
from ..engines.text import SIMPLE, fill

SHIPPED = Path(__file__).parent / "lists"
TEMPLATES = Path(__file__).parent / "templates"
_LONGEST = 100  # characters of a name; the longest of LVIS has 38


class Label(NamedTuple):
    """name: what is shown, and how it is found. words: what is said of it, at least one."""

    name: str
    words: tuple[str, ...]


class Listed(NamedTuple):
    """labels: of the list, each name once. remarks: one line each on what was passed over."""

    labels: list[Label]
    remarks: list[str]


def parse(lines: Iterable[str], where: str) -> Listed:
    """Labels of the lines of a list; raises `LabelError` naming the line that says nothing, or where there are no labels."""
    labels: dict[str, tuple[int, Label]] = {}
    comments, empty, twice = [], [], []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("#"):
            comments.append(number)
        elif not text:
            empty.append(number)
        else:
            name, equals, said = f"{text} ".partition(" = ")
            words = tuple(dict.fromkeys(w for word in (said if equals else name).split("|") if (w := word.strip())))
            name = name.strip() if equals else words[0] if words else ""
            if not (name and words):
                raise LabelError(
                    f"{where}, line {number}: {text!r} names nothing; write: name, name | other word, or name = words"
                )
            if len(name) > _LONGEST:
                raise LabelError(f"{where}, line {number}: {name[:40]!r}... is no label; a list has a few words on each line")
            if name in labels:
                twice.append(f"line {number}: {name!r} is there already, in line {labels[name][0]}; the first is kept")
            else:
                labels[name] = number, Label(name, words)
    if not labels:
        raise LabelError(f"{where}: holds no labels; write one a line")
    remarks = [f"{_lines(numbers)} {what}" for numbers, what in ((comments, "comments"), (empty, "empty")) if numbers]
    return Listed([label for _, label in labels.values()], [f"{where}: {remark}" for remark in (*remarks, *twice)])


def read_list(source: str | Path) -> Listed:
    """The labels of a text file, or of a shipped list by its name; raises `LabelError` where it cannot be read."""
    path = SHIPPED / f"{source}.txt" if str(source) in shipped_lists() else Path(source)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise LabelError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: not readable as UTF-8 text ({error})") from error
    return parse(lines, str(source))


def shipped_lists() -> list[str]:
    """The names of the word lists that come with clipsight."""
    return sorted(path.stem for path in SHIPPED.glob("*.txt"))


def read_templates(name: str | Path) -> tuple[str, ...]:
    """The sentences a word is put into, {} where it stands.

    name: simple (one plain sentence), imagenet (the 80 that OpenAI averages over), none (the word alone), or a file with one
    a line. Raises `LabelError` for a file that cannot be read, and for a line without {}.
    """
    if str(name) == "simple":
        return (SIMPLE,)
    if str(name) == "none":
        return ("{}",)
    path = TEMPLATES / f"{name}.txt" if str(name) == "imagenet" else Path(name)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: no file of templates ({error}); use simple, imagenet, none or a text file") from error
    kept = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")}
    for number, line in kept.items():
        if line.count("{}") != 1:
            raise LabelError(f"{path}, line {number}: {line!r} needs {{}} once, where the word shall stand")
    if not kept:
        raise LabelError(f"{path}: holds no templates; write one a line, with {{}} where the word shall stand")
    return tuple(kept.values())


def texts(label: Label, templates: Sequence[str]) -> tuple[str, ...]:
    """What is encoded for a label: each of its words in each template, each text once."""
    return tuple(dict.fromkeys(fill(template, word) for word in label.words for template in templates))


def _lines(numbers: Sequence[int]) -> str:
    """Line numbers, runs of them drawn together: "lines 1, 4-6"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"line{'s' if len(numbers) > 1 else ''} {told}"
