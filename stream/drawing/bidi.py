"""Which way letters run and how they join, for faces that cannot tell: `levels`, `turned`, `joined`.

The Unicode bidirectional algorithm as far as one line without explicit marks needs it, and Arabic's shapes as far as
Unicode has characters for them. (The library for the first is under the LGPL, and the overlay must be right without it.)
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_MIRRORED = str.maketrans("()[]{}<>«»‹›", ")(][}{><»«›‹")


def is_mark(char: str) -> bool:
    """Whether a character belongs to the letter before it."""
    return unicodedata.category(char)[0] == "M" or char in "\u200c\u200d"


def levels(text: str) -> list[int]:
    """One embedding level per character: even reads left to right, odd right to left."""
    kinds = [unicodedata.bidirectional(c) for c in text]
    strong = [k for k in kinds if k in ("L", "R", "AL")]
    if "R" not in strong and "AL" not in strong:
        return [0] * len(text)
    base = 0 if strong[0] == "L" else 1
    edge = "R" if base else "L"
    last = edge
    for i, kind in enumerate(kinds):
        if kind in ("L", "R", "AL"):
            last = kind
        elif kind == "EN" and last == "AL":
            kinds[i] = "AN"
    flat: list[str] = []  # L, R, N (a number within right-to-left text), - (takes its direction from both sides)
    around = edge
    for i, kind in enumerate(kinds):
        if kind in ("L", "R", "AL"):
            around = "L" if kind == "L" else "R"
            flat.append(around)
        elif kind in ("EN", "AN") or (kind in ("ES", "CS", "ET") and _within_number(kinds, i)):
            flat.append("L" if around == "L" else "N")
        elif kind in ("NSM", "BN"):
            flat.append(flat[-1] if flat else "-")
        else:
            flat.append("-")
    level = {"L": base * 2, "R": 1, "N": 2}
    result = []
    for i, kind in enumerate(flat):
        if kind == "-":
            before = next((k for k in reversed(flat[:i]) if k != "-"), edge)
            after = next((k for k in flat[i:] if k != "-"), edge)
            agree = (before == "L") == (after == "L")
            result.append(level["L" if before == "L" else "R"] if agree else base)
        else:
            result.append(level[kind])
    return result


def _within_number(kinds: list[str], i: int) -> bool:
    """Whether a sign belongs to a number: a separator between two (3.5), a unit at either side (50%)."""
    before, after = ("" if i == 0 else kinds[i - 1]), (kinds[i + 1] if i + 1 < len(kinds) else "")
    if kinds[i] == "ET":
        return "EN" in (before, after)
    return before == after and (before == "EN" or (before == "AN" and kinds[i] == "CS"))


def turned(text: str) -> str:
    """Right-to-left text in the order in which it stands from left to right, for a face that cannot turn it."""
    clusters: list[str] = []
    for char in text.translate(_MIRRORED):
        if clusters and is_mark(char):
            clusters[-1] += char
        else:
            clusters.append(char)
    return "".join(reversed(clusters))


@lru_cache(maxsize=1)
def _shapes() -> dict[tuple[str, str], str]:
    """(letter, "isolated" | "initial" | "medial" | "final") -> the character of that shape."""
    shapes = {}
    for code in (*range(0xFB50, 0xFC00), *range(0xFE70, 0xFEFD)):
        kind, _, letters = unicodedata.decomposition(chr(code)).partition(" ")
        shapes["".join(chr(int(c, 16)) for c in letters.split()), kind.strip("<>")] = chr(code)
    return shapes


def joined(text: str) -> str:
    """Arabic text -> the same with every letter (and lam + alef, written as one) in its shape."""
    shapes = _shapes()
    letters = re.findall("ل[آأإا]|.", text, re.DOTALL)
    done = []
    open_before = False  # the letter before reaches out to this one
    for i, letter in enumerate(letters):
        if is_mark(letter[0]):
            done.append(letter)
            continue
        following = next((x for x in letters[i + 1 :] if not is_mark(x[0])), "")
        before = open_before and (letter, "final") in shapes
        open_before = (letter, "initial") in shapes
        after = open_before and (following, "final") in shapes
        place = ("medial" if before else "initial") if after else ("final" if before else "isolated")
        done.append(shapes.get((letter, place), letter))
    return "".join(done)
