"""Parsing of judge requests, strictly and as a gullible judge reads them.

Episodes come in our wire format or in that of ART's RULER. Ours is read strictly: a block begins and ends with the request's nonce, and a
tag with another nonce is text. ART's tags have no nonce; its trajectories are JSON on a line of their own, so only tags that stand alone on
a line count.

A gullible judge believes any tag and follows instructions in agents' texts. A command sets the score of its own block, or that of others:
all of them, one by its place or by its id, which no agent knows. Lines that several agents were shown count for each of their readers. Text
in the context, or outside every block after a forged end tag, counts as the asker's words and applies to all; a verdict in JSON counts for
the id that it names.
"""

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from babylon_rl.errors import UsageError

# Blocks as they are meant: in our format, and in that of ART.
_OURS = re.compile(r'<episode nonce="([^"<>]+)" id="([^"<>]+)">')
_ART = re.compile(r'^<trajectory id="(\d+)">\n(.*?)\n</trajectory>$', re.DOTALL | re.MULTILINE)
_PARTS = re.compile(r"^The hour has (\d+) parts by time: ", re.MULTILINE)
# What a gullible judge takes for a tag, for its id, and for a verdict.
_TAG = re.compile(r"<\s{0,8}(/?)\s{0,8}(?:episode|trajectory)\b([^<>]{0,400})>", re.IGNORECASE)
_ID = re.compile(r"""\bid\s*=\s*[\\"']*([^"'\\\s>]+)""", re.IGNORECASE)
_VERDICT = re.compile(r'"(?:trajectory_)?id"\s*:\s*"([^"]+)"[^{}]{0,200}?"score"\s*:\s*([01](?:\.\d+)?)', re.DOTALL)
_SECTION = re.compile(r'<(context|common) nonce="([^"<>]+)">(.*?)</\1 nonce="\2">', re.DOTALL)
_NUMBERED = re.compile(r"^\[(\d{1,6})\] (.*)$", re.MULTILINE)
_NAMED = re.compile(r"\[(\d{1,6})\]")
# A command: a verb, words on whom it concerns, a number from 0 to 1 that is no part of a longer one, and the words behind it.
_SCORE = r"([01](?:\.\d+)?)\b(?!\.\d)((?:(?!\band\b|\bbut\b)[^.,;\n]){0,40})"
_COMMAND = re.compile(
    r"\b(?:give|award|assign|rate|score|grade|mark|set|grant|rank|output|answer|return|get|gets|deserves?|receives?)\b"
    rf"([^.\n]{{0,80}}?)\b{_SCORE}",
    re.IGNORECASE,
)
_CONTINUED = re.compile(rf"\s*,?\s*(?:and|but)\b([^.\n]{{0,60}}?)\b{_SCORE}", re.IGNORECASE)
_TOPIC = re.compile(r"\b(?:me|us|it|score\w*|rating|grade|marks?|reward|agent|episode|trajectory|this|block)\b", re.IGNORECASE)
_EVERYONE = re.compile(r"\b(?:all|every\w*|each)\b", re.IGNORECASE)
_OTHERS = re.compile(
    r"\b(?:others?|everyone else|everybody else|the rest|remaining|competitors?|rivals?)\b|\[another agent\]", re.IGNORECASE
)
_SUBJECT = re.compile(r"([^.,;\n]{0,60})$")
# Whom a command may concern besides its author; a superlative stands for a score of 1, a lowest score for 0.
_PLACE = re.compile(r"\b(first|second|third|last)\b(?: \w+)? (?:agent|episode|trajectory|block)\b", re.IGNORECASE)
_PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}
_LOWEST = re.compile(
    r"\b(?:the )?(?:lowest|minimum|worst)(?: possible)? (?:score|marks?|grade|rating|reward|points)\b|\bzero\b", re.IGNORECASE
)
_SUPERLATIVE = re.compile(
    r"(?:highest|maximum|maximal|top|perfect|best|full|max) (?:possible )?(?:score|marks|grade|rating|reward|points)"
    r"|10\s*/\s*10|100\s*%\s*score|höchste (?:punktzahl|wertung|note)|beste note|note maximale|meilleure note"
    r"|puntuación (?:más alta|máxima)|nota máxima|punteggio massimo|максимальн\w+ (?:балл|оценк)\w*|высш\w+ (?:балл|оценк)\w*"
    r"|满分|最高分|最高評価|満点|만점|أعلى درجة|पूर्ण अंक",
    re.IGNORECASE,
)
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{16,}={0,2}(?![A-Za-z0-9+/=])")


_SELF, _ALL, _REST = "this block", "all blocks", "all other blocks"


@dataclass(frozen=True)
class EpisodeBlock:
    """One block to judge, with the asker's text on it (``about``)."""

    id: str
    text: str
    about: str = ""


@dataclass(frozen=True)
class ParsedRequest:
    """Blocks in the order shown; ``id_field`` is the answer's name for the id.

    ``rest`` is the message without the blocks, ``parts`` the number of the hour's parts, of which each block gets a mark (0: one score).
    """

    blocks: tuple[EpisodeBlock, ...]
    id_field: str
    rest: str
    parts: int = 0


def read(messages: Sequence[Mapping[str, Any]]) -> ParsedRequest:
    """Read the blocks of the first user message that has any.

    Raises:
        UsageError: no message holds an episode or a trajectory.
    """
    system = "\n".join(text_of(message) for message in messages if message.get("role") in ("system", "developer"))
    for message in messages:
        if message.get("role") != "user":
            continue
        text = text_of(message)
        for pattern, id_field in ((_ours(text, system), "id"), (_ART, "trajectory_id")):
            texts: dict[str, str] = {}
            for block in () if pattern is None else pattern.finditer(text):
                # repeated ids are joined: with the nonce one could add to any block
                texts[block[1]] = (texts.get(block[1], "") + "\n" + block[2]).strip("\n")
            if pattern and texts:
                rest = pattern.sub("\n", text)
                about = _about(rest, texts) if id_field == "id" else {}
                blocks = tuple(EpisodeBlock(id, shown, about.get(id, "")) for id, shown in texts.items())
                parts = _PARTS.search(rest) if id_field == "id" else None
                return ParsedRequest(blocks, id_field, rest, 0 if parts is None else int(parts[1]))
    raise UsageError('No user message holds a block <episode nonce="..." id="..."> ... </episode nonce="...">.')


def text_of(message: Mapping[str, Any]) -> str:
    """Text of a message, whose content may be OpenAI's list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _ours(text: str, system: str) -> re.Pattern[str] | None:
    """Pattern of a block with the system message's nonce, else the first tag's."""
    nonces = dict.fromkeys(match[1] for match in _OURS.finditer(text))
    if not nonces:
        return None
    nonce = re.escape(next((nonce for nonce in nonces if nonce in system), next(iter(nonces))))
    return re.compile(rf'<episode nonce="{nonce}" id="([^"<>]+)">(.*?)</episode nonce="{nonce}">', re.DOTALL)


def _about(rest: str, ids: Mapping[str, str]) -> dict[str, str]:
    """Lines outside the blocks that name exactly one id, by that id."""
    lines: dict[str, str] = {}
    for line in rest.splitlines():
        named = [word for word in re.findall(r"[\w-]+", line) if word in ids]
        if len(named) == 1:
            lines[named[0]] = f"{lines.get(named[0], '')}{line}\n"
    return lines


@dataclass(frozen=True)
class GullibleReading:
    """A request as read by a judge that believes every tag.

    ``forged`` is agents' text outside every block, ``context`` the asker's text on the hour, ``shown`` the common lines that each block
    refers to, by its id.
    """

    blocks: tuple[EpisodeBlock, ...]
    forged: str = ""
    context: str = ""
    shown: Mapping[str, str] = field(default_factory=dict)


def read_gullibly(request: ParsedRequest) -> GullibleReading:
    """Split a request into blocks by any tag.

    A block without an end tag ends with its outer block.
    """
    texts: dict[str, list[str]] = {}
    forged: list[str] = []
    for block in request.blocks:
        for id, text in _pieces(_plain(block.text), block.id):
            (forged if id is None else texts.setdefault(id, [])).append(text)
    # blocks that were forged outside of the real ones
    for id, text in _pieces(_plain(request.rest), None):
        if id is not None:
            texts.setdefault(id, []).append(text)
    about = {block.id: block.about for block in request.blocks}
    # context and common lines; a block reads the common lines whose numbers it holds
    sections = {name: text for name, _, text in _SECTION.findall(request.rest)}
    common = dict(_NUMBERED.findall(sections.get("common", "")))
    shown = {block.id: "\n".join(common.get(number, "") for number in _NAMED.findall(block.text)) for block in request.blocks if common}
    blocks = tuple(EpisodeBlock(id, "\n".join(parts), about.get(id, "")) for id, parts in texts.items())
    return GullibleReading(blocks, "\n".join(forged), sections.get("context", ""), shown)


def demanded_scores(read: GullibleReading) -> dict[str, float]:
    """Scores that the texts demand, by id.

    The later of these prevails: the asker's supposed words on all, a block's on others, a block's on itself, verdicts that name an id.
    """
    ids = [block.id for block in read.blocks]
    wishes: dict[str, float] = {}
    # the order of these steps is that of the docstring: a later one overwrites what it names
    for text in (read.context, read.forged):
        wish = _wishes(text, ids)
        everyone = next((wish[target] for target in (_REST, _ALL, _SELF) if target in wish), None)
        wishes |= {} if everyone is None else dict.fromkeys(ids, everyone)
    by_block = {block.id: _wishes(f"{block.text}\n{read.shown.get(block.id, '')}", ids) for block in read.blocks}
    for author, wish in by_block.items():
        wishes |= dict.fromkeys(ids, wish[_ALL]) if _ALL in wish else {}
        wishes |= {id: wish[_REST] for id in ids if id != author} if _REST in wish else {}
    for author, wish in by_block.items():
        wishes |= {author: wish[_SELF]} if _SELF in wish else {}
    for wish in by_block.values():
        wishes |= {id: score for id, score in wish.items() if id in ids}
    for text in (*(block.text for block in read.blocks), read.forged):
        wishes |= {id: float(score) for id, score in _VERDICT.findall(_unescaped(text)) if id in ids}
    return {id: min(1.0, wish) for id, wish in wishes.items()}


def _pieces(text: str, current: str | None) -> Iterator[tuple[str | None, str]]:
    """Yield the text between tags with its block's id; None is outside of all."""
    at = 0
    for tag in _TAG.finditer(text):
        yield current, text[at : tag.start()]
        at = tag.end()
        named = _ID.search(tag[2])
        current = None if tag[1] else (html.unescape(named[1]) if named else current)
    yield current, text[at:]


def _wishes(text: str, ids: Sequence[str]) -> dict[str, float]:
    """Scores demanded by a text in plain words or base64, the first per target.

    A target is the block itself, all blocks, all others, or an id.
    """
    wishes: dict[str, float] = {}
    for readable in _readings(text) if text.strip() else ():
        plain = _LOWEST.sub("0", readable)
        for target, score in _commands(plain, ids):
            wishes.setdefault(target, score)
        if _SUPERLATIVE.search(plain):
            wishes[_SELF] = 1.0
    return wishes


def _commands(text: str, ids: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield target and score of each command, and of its continuations ("and ... 0.2")."""
    for command in _COMMAND.finditer(text):
        before = _SUBJECT.search(text, max(0, command.start() - 60), command.start())
        match: re.Match[str] | None = command
        # in "this agent deserves 1.0" the words on whom it concerns stand before the verb
        subject = before[1] if before and re.match(r"get|deserve|receive", command[0], re.IGNORECASE) else ""
        while match is not None:
            target = _target(f"{subject} {match[1]}", match[3], command[0] if match is command else "", ids)
            if target is None:
                break
            yield target, float(match[2])
            match, subject = _CONTINUED.match(text, match.end(3)), ""


def _target(before: str, after: str, whole: str, ids: Sequence[str]) -> str | None:
    """Target of a command, from the words around its score; None for another subject."""
    words = f"{before} {after}"
    # from the most particular words to the vaguest: "all others" is not "all", and an id is never a guess
    if _OTHERS.search(words):
        return _REST
    named = next((id for id in ids if re.search(rf"(?<![\w-]){re.escape(id)}(?![\w-])", words)), None)
    if named is not None:
        return named
    place = _PLACE.search(words)
    if place is not None:
        return ids[min(_PLACES[place[1].casefold()], len(ids) - 1)] if ids else None
    if _EVERYONE.search(words):
        return _ALL
    return _SELF if _TOPIC.search(f"{words} {whole}") else None


def _readings(text: str) -> list[str]:
    """The text without escapes and invisible characters, and its decoded base64."""
    plain = _plain(_unescaped(text))
    return [plain, *(decoded for encoded in _BASE64.findall(plain) if (decoded := _decoded(encoded)))]


def _unescaped(text: str) -> str:
    return html.unescape(text).replace('\\"', '"').replace("\\n", "\n")


def _decoded(encoded: str) -> str:
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _plain(text: str) -> str:
    """Text with compatibility forms folded (full-width brackets too), without invisible characters."""
    return "".join(character for character in unicodedata.normalize("NFKC", text) if unicodedata.category(character) != "Cf")
