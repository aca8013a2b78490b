"""Defence against injection: escaping, flags on text to a judge, masks of flagged sentences.

``escaped`` keeps the structure of a prompt safe, whatever the text. Flags are found by a few English wordings, by hidden characters and by
letters that look like others; they only say where to look. Other wordings are missed: what those gain, the look of forms.py measures,
which reads no words.
"""

import base64
import binascii
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Spoken = Literal["override", "begging", "markup", "identity", "system", "scores"]
FlagKind = Spoken | Literal["encoded", "hidden", "long", "lookalike"]

MOST_CHARACTERS = 6_000  # of one text in a request
LOOKED_AT = 20_000  # characters of a text in which flags are looked for: its first and its last
EXCERPT = 120
_ASIDE = r"\b(?:ignor(?:e|ing)|disregard|forget|overrid(?:e|ing)|bypass|do not follow|don'?t follow)\W+"
_RULES = r"(?:instructions?|rubrics?|prompts?|guidelines?|criteria)"
_GIVE = r"\b(?:give|award|assign|grant|rate|score|grade|rank|mark|set)\b"
_ME = r"(?:me|myself|this (?:agent|episode|trajectory|block|run)|my (?:agent|episode|trajectory|run))"
_OTHERS = (
    r"(?:others|everyone else|everybody else|the rest|competitors|rivals|another agent|(?:every|all|any) other \w+"
    r"|(?:each|every) (?:agent|episode)|the (?:first|last) (?:agent|episode))"
)
_NUMBER = r"(?:[01](?:\.\d+)?(?![\d.,]*[\d%])(?! (?:basis|points?|shares?|contracts?|more|percent)))"
_BEST = rf"(?:{_NUMBER}|10/10|(?:the )?(?:highest|maximum|top|perfect|best|full) (?:possible )?(?:score|marks?|grade|rating|reward|points))"
# Sentences that address a judge, in folded English; ordinary words of trading (points, ratings, ranks, rules) do not match.
_WORDINGS: dict[Spoken, str] = {
    "override": rf"{_ASIDE}(?:\w+\W+){{0,3}}?(?:previous|prior|above|earlier|your|system|scoring|grading)\W+(?:\w+\W+){{0,2}}?"
    rf"(?:{_RULES}|rules|messages?|text)\b|{_ASIDE}(?:(?:all|any|the|these)\W+){{0,2}}{_RULES}\b"
    rf"|\bnew instructions\W*:|\b(?:rubric|instructions) (?:has|have|was|were|is|are) (?:been )?(?:changed|replaced|void|a test)",
    "begging": rf"{_GIVE}\W+{_ME}\b(?:\W+\w+){{0,4}}?\W+(?:{_BEST}|first\b)|{_GIVE}\W+(?:\w+\W+){{0,3}}?{_BEST}\W+(?:to|for)\W+{_ME}\b"
    rf"|{_GIVE}\W+(?:\w+\W+){{0,2}}?{_OTHERS}\b(?:\W+\w+){{0,4}}?\W+(?:{_NUMBER}|zero\b|(?:the )?lowest)"
    rf"|\b{_OTHERS}\W+(?:should |must )?(?:gets?|receives?|deserves?)\W+(?:\w+\W+){{0,2}}?(?:{_NUMBER}|zero\b|(?:the )?lowest)"
    rf"|\b(?:my|this agent'?s?) score (?:is|should be|must be)\W+{_BEST}"
    r"|\b(?:dear|hello|hey|note (?:to|for)(?: the)?)\W+(?:llm )?(?:judge|grader|evaluator)\b",
    "markup": r"</?\s*(?:episode|context|common|trajectory|system|user|assistant|instructions?|judge|scores?|rubric)\b[^<>]{0,200}>?"
    r"|&lt;\s*/?\s*(?:episode|context)|<\|[\w ]{2,30}\|>|\[/?(?:inst|sys|system)\]"
    r"|(?:^|[-=#*\n/]\s{0,3})(?:end|begin|start) of (?:the )?(?:episode|trajectory|context|prompt)s?\b",
    "identity": r"\b(?:your|the|this|request'?s?)\s+nonce\b|\bnonce\s*=|\b(?:episode|trajectory) ids?\s*(?:is|=|:|are)",
    "system": r"(?:^|[\n/=|'\"])\s{0,20}(?:system|developer|assistant)(?: message| prompt)?\s*:"
    r"(?=[^.\n]{0,120}\b(?:scor\w*|judg\w*|episodes?|instructions?)\b)"
    r"|\byou are (?:now an?|the judge|a judge)\b|\b(?:system|developer) (?:prompt|message|override)s?\b",
    "scores": r"""["']scores["']\s*:\s*\[?\s*\{|["']score["']\s*:.{0,200}?["'](?:explanation|id)["']\s*:"""
    r"""|["'](?:explanation|id)["']\s*:.{0,200}?["']score["']\s*:|\bfinal score\s*(?:is|:|=)""",
}
_EXPRESSIONS = {kind: re.compile(wording, re.DOTALL) for kind, wording in _WORDINGS.items()}
# Where a sentence of a rendered line begins or ends: the key of a parameter, a result, a quotation, a full stop.
_BORDER = re.compile(r"""(\b\w+=|[{}]| -> | \| | / |(?<=[.!?;])\s+|\n|(?<!\w)["'“‘«(]|["'”’»)](?!\w))""")
_MOST_JOINED = 4  # sentences in a row that may speak to a judge only together
_BRACKETS = str.maketrans({"＜": "&lt;", "﹤": "&lt;", "＞": "&gt;", "﹥": "&gt;", "＆": "&amp;", "﹠": "&amp;"})
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_FORMAT = frozenset(("Cf", "Cc", "Co", "Cn"))
_JOINERS = "\u200c\u200d"
# Letters that look like Latin ones, beyond those that NFKC makes Latin.
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝһӏвкмнтАВЕКМНОРСТУХІЈЅαβγικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɑɡℓ∣օսոցքհ",
    "aeopcyxijsdqwhlbkmhtABEKMHOPCTYXIJSabyiknoptuxwABEZHIKMNOPTYXiagllounggh",
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_WORD = re.compile(r"[^\W\d_]{3,}")
_TAGS = range(0xE0020, 0xE007F)
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{3,}")
MASK = "[passage left out]"


@dataclass(frozen=True)
class Flag:
    """One suspicious passage: its kind, its place (``step 3 response``) and an excerpt."""

    kind: FlagKind
    where: str
    excerpt: str


def escaped(text: str) -> str:
    """Escape a text as data: markup characters (wide and small forms too) as entities, invisible ones as code points."""
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
    return [Flag(kind, where, excerpt) for kind, excerpt in _found(text.replace(" / ", "\n"))] if text else []


@functools.lru_cache(maxsize=1024)  # prompts and habits come again and again
def _found(text: str) -> tuple[tuple[FlagKind, str], ...]:
    excerpts: dict[FlagKind, str] = {}
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
    for reading, disguise in readings(text):
        plain = folded(reading)
        for kind, expression in _EXPRESSIONS.items():
            if match := expression.search(plain):
                excerpt = plain[max(0, match.start() - 20) : match.end() + 40]
                excerpts.setdefault(kind, _excerpt(excerpt))
                if disguise:
                    excerpts.setdefault("encoded", _excerpt(f"{disguise}: {excerpt}"))
    return tuple(excerpts.items())


def masked(text: str) -> str:
    """The text with ``MASK`` in the place of each flagged sentence, or of the fewest in a row that are flagged together."""
    if not _addresses(text):
        return text
    pieces = _BORDER.split(text)  # sentences at even places, their borders at odd ones
    for joined in range(1, 2 * _MOST_JOINED, 2):
        for first in range(0, len(pieces) - joined + 1, 2):
            if _addresses("".join(pieces[first : first + joined])):
                pieces[first : first + joined] = [MASK, *[""] * (joined - 1)]
    hidden = "".join(pieces)
    return MASK if _addresses(hidden) else hidden


def masked_once(text: str) -> str:
    """The text with its first sentence of some words masked that is not flagged; the same where it has none."""
    pieces = _BORDER.split(text)
    for place in range(0, len(pieces), 2):
        if pieces[place].count(" ") >= 2 and not _addresses(pieces[place]):
            return "".join([*pieces[:place], MASK, *pieces[place + 1 :]])
    return text


def _addresses(text: str) -> bool:
    """True for a flag that is more than length; a long text is cut anyway."""
    return any(kind != "long" for kind, _ in _found(text.replace(" / ", "\n")))


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
    """Yield the text and its decoded forms, each with the name of its disguise (empty for a plain respelling)."""
    yield text, ""
    if not text.isascii():
        latin = unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)
        if latin != text:
            yield latin, ""
        # Unicode tag characters are an invisible copy of ASCII
        tags = "".join(chr(ord(character) - 0xE0000) for character in text if ord(character) in _TAGS)
        if tags:
            yield tags, "tag characters"
    for run in _BASE64.findall(text):
        if run.islower() or run.isupper() or run.isdigit():
            continue  # a text in base64 has letters of both kinds
        bare = run.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            yield base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True).decode(), "base64"
        except (binascii.Error, ValueError):
            continue


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
