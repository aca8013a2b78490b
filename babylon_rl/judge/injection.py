"""Defence against injection: escaping of agents' text, and flags on text that addresses a judge.

``escaped`` keeps the structure safe, whatever the text; the flags miss wordings that are not in their list. A flagged group is judged
again with the flagged passages masked (masking.py).
"""

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from babylon_rl.judge.disguises import folded, hidden_characters, mixed_scripts, readings, repetitive
from babylon_rl.judge.injection_words import ANCHORS, EXPRESSIONS, Spoken

FlagKind = Spoken | Literal["encoded", "hidden", "long", "lookalike"]

MOST_CHARACTERS = 6_000  # of one text in a request
LOOKED_AT = 20_000  # characters of a text in which flags are looked for: its first and its last
EXCERPT = 120
_BRACKETS = str.maketrans({"＜": "&lt;", "﹤": "&lt;", "＞": "&gt;", "﹥": "&gt;", "＆": "&amp;", "﹠": "&amp;"})
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


@dataclass(frozen=True)
class Flag:
    """One suspicious passage: its kind, its place (``step 3 response``) and an excerpt."""

    kind: FlagKind
    where: str
    excerpt: str


def escaped(text: str) -> str:
    """Escape a text as data: markup characters as entities, invisible ones as code points.

    Wide and small forms of markup characters count too. Line breaks and tabs stay.
    """
    text = _visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text if text.isascii() else text.translate(_BRACKETS)


def flat(text: str) -> str:
    """Put the text in one line, so that it cannot imitate surrounding lines."""
    return " / ".join(filter(None, (line.strip() for line in text.splitlines()))) if "\n" in text or not text.isprintable() else text


def bounded(text: str, most: int = MOST_CHARACTERS) -> str:
    """Cut the middle out of a text longer than ``most`` characters, and say how much."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]} [{len(text) - most} characters left out] {text[head - most :]}"


def find_flags(text: str, where: str) -> list[Flag]:
    """Find passages that address a judge or hide something; at most one flag per kind."""
    return [Flag(kind, where, excerpt) for kind, excerpt in _found(text)] if text else []


@functools.lru_cache(maxsize=1024)  # prompts and habits come again and again
def _found(text: str) -> tuple[tuple[FlagKind, str], ...]:
    excerpts: dict[FlagKind, str] = {}
    # bound the work: only beginning and end of a very long text are searched
    if len(text) > LOOKED_AT:
        excerpts["long"] = f"{len(text)} characters"
        text = f"{text[: LOOKED_AT // 2]}\n{text[-LOOKED_AT // 2 :]}"
    elif repetitive(text):
        excerpts["long"] = f"{len(text)} characters that repeat themselves"
    # disguises are flagged even where the decoded text is harmless
    hidden = hidden_characters(text)
    if hidden:
        excerpts["hidden"] = _excerpt(hidden)
    mixed = mixed_scripts(text)
    if mixed:
        excerpts["lookalike"] = _excerpt(mixed)
    # the words themselves, in the text and in all its decoded forms
    for reading, disguise in readings(text):
        for kind, excerpt in _spoken(reading):
            excerpts.setdefault(kind, _excerpt(excerpt))
            if disguise and "encoded" not in excerpts:
                excerpts["encoded"] = _excerpt(f"{disguise}: {excerpt}")
    return tuple(excerpts.items())


def _spoken(reading: str) -> Iterator[tuple[Spoken, str]]:
    """Yield the kinds of address in a text, each with its first match."""
    plain = folded(reading)
    # a substring search is far cheaper than the expressions, and decides most texts
    if plain.isascii() and not any(anchor in plain for anchor in ANCHORS):
        return
    for kind, expression in EXPRESSIONS.items():
        match = expression.search(plain)
        if match is not None:
            yield kind, plain[max(0, match.start() - 20) : match.end() + 40]


def _excerpt(text: str) -> str:
    line = " ".join(_visible(text).split())
    return line if len(line) <= EXCERPT else f"{line[: EXCERPT - 1]}…"


def _visible(text: str) -> str:
    """The text with invisible characters written as their code points."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    for character in set(text):
        if character not in "\n\t" and unicodedata.category(character) in _UNSEEN:
            text = text.replace(character, f"[U+{ord(character):04X}]")
    return text
