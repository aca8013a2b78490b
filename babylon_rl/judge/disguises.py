"""Decoding of hidden text: invisible characters, look-alike letters, encodings.

Each decoded form is searched again.
"""

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from urllib.parse import unquote

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


def folded(text: str) -> str:
    """The text in small letters, without accents and invisible characters."""
    if text.isascii():
        return text.casefold()
    spread = unicodedata.normalize("NFKD", text)
    kept = (character for character in spread if character in "\n\t" or unicodedata.category(character) not in ("Mn", *_FORMAT))
    return unicodedata.normalize("NFC", "".join(kept)).casefold()


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
