"""Defence against injection: escaping, flags on text that addresses a judge, and masks.

``escaped`` keeps the structure of a prompt safe, whatever the text. Flags are found by wordings (injection_wordings.py) in the text and in
all its decoded forms; other wordings are missed. A flagged group is judged again with the flagged passages masked, to measure what they
gain: an agent's own text is masked as a whole, as its unflagged half may carry the rest of the message; of a prompt only flagged lines are.
"""

import base64
import binascii
import codecs
import functools
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from babylon_rl.judge.prompt.injection_wordings import ANCHORS, Spoken, expressions

FlagKind = Spoken | Literal["encoded", "hidden", "long", "lookalike"]

MOST_CHARACTERS = 6_000  # of one text in a request
LOOKED_AT = 20_000  # characters of a text in which flags are looked for: its first and its last
EXCERPT = 120
_BRACKETS = str.maketrans({"＜": "&lt;", "﹤": "&lt;", "＞": "&gt;", "﹥": "&gt;", "＆": "&amp;", "﹠": "&amp;"})
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_FORMAT = frozenset(("Cf", "Cc", "Co", "Cn"))
_JOINERS = "\u200c\u200d"
# Letters that look like Latin ones, beyond those that NFKC makes Latin.
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝһӏвкмнтАВЕКМНОРСТУХІЈЅαβγικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɑɡℓ∣օսոցքհ",
    "aeopcyxijsdqwhlbkmhtABEKMHOPCTYXIJSabyiknoptuxwABEZHIKMNOPTYXiagllounggh",
)
# These and _HEX, _SPACED begin with one character's class rather than a group: most texts hold none and are passed over quickly.
_LEET_WORD = re.compile(r"[013457@$!|](?<=[a-z].)[013457@$!|]?[a-z]", re.IGNORECASE)
_LEET = str.maketrans("013457@$!|", "oieastasii")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_HEX = re.compile(r"[0-9a-fA-F]{2}[\s:]?(?:[0-9a-fA-F]{2}[\s:]?){11,}")
_ESCAPES = re.compile(r"\\u\{?([0-9a-fA-F]{4,6})\}?|\\x([0-9a-fA-F]{2})")
_SPACED = re.compile(r"\b\w[\s.\-_*·]{1,2}(?:(?<!\w)\w[\s.\-_*·]{1,2}){3,}\w(?!\w)")
_WORD = re.compile(r"[^\W\d_]{3,}")
_MOST_DEEP = 2
_TAGS = range(0xE0020, 0xE007F)
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{3,}")
MASK = "[passage left out]"
NAME = "name"  # where a flag of an agent's own name stands


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
    for kind, expression in expressions().items():
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


def folded(text: str) -> str:
    """The text in small letters, without accents and invisible characters."""
    if text.isascii():
        return text.casefold()
    decomposed = unicodedata.normalize("NFKD", text)
    characters = (character for character in decomposed if character in "\n\t" or unicodedata.category(character) not in ("Mn", *_FORMAT))
    return unicodedata.normalize("NFC", "".join(characters)).casefold()


def readings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the text and its decoded forms, each with the name of its disguise.

    The name is empty for the text itself and for plain respellings.
    """
    yield text, ""
    if not text.isascii():
        latin = unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)
        if latin != text:
            yield latin, ""
        # Unicode tag characters are an invisible copy of ASCII
        tags = "".join(chr(ord(character) - 0xE0000) for character in text if ord(character) in _TAGS)
        if tags:
            yield tags, "tag characters"
    yield from _decoded(text, _MOST_DEEP)
    yield from _respelled(text)


def _respelled(text: str) -> Iterator[tuple[str, str]]:
    """Yield the text without spaced letters, digits for letters, rot13 and reversal."""
    if _SPACED.search(text):
        yield _SPACED.sub(lambda match: re.sub(r"[\s.\-_*·]", "", match[0]), re.sub(r"(\w)\s{2,}(?=\w)", r"\1  ", text)), "spaced letters"
        yield re.sub(r"(?<=\w)[\s.\-_*·](?=\w\b)", "", text), "spaced letters"
    if _LEET_WORD.search(text):
        yield text.translate(_LEET), ""
    small = text.casefold()
    # "instruc", "score", "ignore", "judge" in rot13, then some of them backwards
    if any(word in small for word in ("vafgehpg", "fpber", "vtaber", "whqtr")):
        yield codecs.encode(text, "rot13"), "rot13"
    if any(word in small for word in ("erocs", "erongi", "snoitcurtsni", "egduj")):
        yield text[::-1], "backwards"


def _decoded(text: str, deep: int) -> Iterator[tuple[str, str]]:
    """Yield the decoded forms of base64, hexadecimal, entities, percent encoding and escapes.

    Decodes again inside a decoded text, up to ``deep`` levels.
    """
    candidates = [*_base64(text), *_hex(text)]
    if "&" in text and (unescaped := html.unescape(text)) != text:
        candidates.append((unescaped, "entities"))
    if "%" in text and (unquoted := unquote(text)) != text:
        candidates.append((unquoted, "percent encoding"))
    if "\\" in text and (opened := _ESCAPES.sub(_open, text)) != text:
        candidates.append((opened, "escapes"))
    for reading, disguise in candidates:
        yield reading, disguise
        if deep > 1:
            yield from ((inner, f"{disguise}, {name}") for inner, name in _decoded(reading, deep - 1))


def _open(match: re.Match[str]) -> str:
    number = int(match[1] or match[2], 16)
    return chr(number) if number <= 0x10FFFF else ""


def _base64(text: str) -> Iterator[tuple[str, str]]:
    """Yield the readable texts in base64; line breaks inside one are joined."""
    joined = re.sub(r"(?<=[A-Za-z0-9+/])\s*\n\s*(?=[A-Za-z0-9+/])", "", text) if "\n" in text else text
    for run in _BASE64.findall(joined):
        if run.islower() or run.isupper() or run.isdigit():
            continue  # a text in base64 has letters of both kinds
        bare = run.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            decoded = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True).decode()
        except (binascii.Error, ValueError):
            continue
        if _is_text(decoded):
            yield decoded, "base64"


def _hex(text: str) -> Iterator[tuple[str, str]]:
    for run in _HEX.findall(text):
        try:
            decoded = bytes.fromhex(re.sub(r"[\s:]", "", run)).decode()
        except ValueError:
            continue
        if _is_text(decoded):
            yield decoded, "hexadecimal"


def _is_text(decoded: str) -> bool:
    """True if most characters are printable; random bytes that decode by chance are not."""
    return len(decoded) >= 8 and sum(character.isprintable() or character.isspace() for character in decoded) >= 0.9 * len(decoded)


def hidden_characters(text: str) -> str:
    """Excerpt around the first invisible character without a purpose; empty if there is none."""
    if text.isascii() and text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return ""
    # a run of variation selectors can hold a message
    selectors = _SELECTORS.search(text)
    if selectors is not None:
        return text[max(0, selectors.start() - 20) : selectors.end() + 20]
    # collect them first: most texts have none, and the loop over places is slow
    odd = {character for character in set(text) if character not in "\n\r\t" and unicodedata.category(character) in _FORMAT}
    for place, character in enumerate(text) if odd else ():
        if character not in odd:
            continue
        if character in _JOINERS and not (_is_latin(text[place - 1 : place]) or _is_latin(text[place + 1 : place + 2])):
            continue  # emoji, Persian and Indic scripts are written with them
        return text[max(0, place - 20) : place + 40]
    return ""


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalpha()


def mixed_scripts(text: str) -> str:
    """First word that mixes Latin with look-alike letters of other scripts; empty if none."""
    if text.isascii():
        return ""
    for word in map(str, _WORD.findall(text)):
        if word.isascii():
            continue
        latin = sum(character.isascii() for character in word)
        other = sum(ord(character) in _LOOKALIKES for character in word)
        styled = sum(unicodedata.normalize("NFKC", character) != character and ord(character) > 0x2000 for character in word)
        if (latin and other) or styled >= 3:
            return word
    return ""


def repetitive(text: str) -> bool:
    """True for a long text made mostly of one repeated line or word."""
    if len(text) < 2_000:
        return False
    for parts in (text.splitlines(), text.split()):
        if len(parts) >= 100 and Counter(parts).most_common(1)[0][1] * 2 > len(parts):
            return True
    return max(map(len, text.split()), default=0) > 1_500


@dataclass
class InjectionScreen:
    """Collects flags of the texts shown to a judge, and masks flagged passages if ``masks``.

    Texts are searched as shown, that is after ``rename``.
    """

    masks: bool = False
    rename: Callable[[str], str] = str  # as it is
    flags: list[Flag] = field(default_factory=list)

    def text(self, text: str, where: str) -> str:
        """A text of one author, or the mask in its place."""
        return MASK if self._speaks(self.rename(text), where) and self.masks else text

    def lines(self, lines: Sequence[str], where: str) -> list[str]:
        """Renamed lines of a text by many authors, flagged ones masked.

        One mask stands for all lines where only the whole text is flagged.
        """
        shown = [self.rename(line) for line in lines]
        if not self._speaks("\n".join(shown), where) or not self.masks:
            return shown
        # a message can be spread over lines: search again after masking
        masked = [MASK if _is_spoken(find_flags(line, where)) else line for line in shown]
        return [MASK] if _is_spoken(find_flags("\n".join(masked), where)) else masked

    def value(self, value: Any, where: str) -> Any:
        """A JSON value with its flagged keys and strings masked."""
        if isinstance(value, str):
            return self.text(value, where)
        if isinstance(value, list):
            return [self.value(entry, where) for entry in value]
        if isinstance(value, dict):
            return {self.text(str(key), where): self.value(entry, where) for key, entry in value.items()}
        return value

    def _speaks(self, shown: str, where: str) -> bool:
        """True for a flagged text; its flags are collected."""
        flags = find_flags(shown, where)
        self.flags += flags
        return _is_spoken(flags)


def _is_spoken(flags: Sequence[Flag]) -> bool:
    """True if a flag is more than length; a long text is cut anyway."""
    return any(flag.kind != "long" for flag in flags)
