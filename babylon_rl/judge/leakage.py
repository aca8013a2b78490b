"""Leak check: finds facts in a text that became known only after the hour.

Sentences that a judge reads are found by their own templates (prompt/templates.py), with any value, whatever their letter case, white
space, line breaks, typography and JSON escapes. Raw forms are found as well: recorded gameKnowledge by its keys and its bare values, a
question's own row with its secret answer, a plain statement of that answer, and judges' scores by their column's name. An agent may
guess in its own words: a response leaks only by sentence or by recorded secret. A judge's explanations, which lie where others may read
them (aiJudgeReasoning), are searched for hidden answers in plain words, which errs both ways: a warning, not a proof.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from babylon_rl.judge.prompt.templates import FIELD_TYPES, TEMPLATES, LeakKind, Template, folded

UNRESOLVED = "UNRESOLVED"
_CLAUSES = re.compile(r"(?<=[.;!])\s+|\n")  # a question mark ends a question's name as often as a sentence
_YES = re.compile(r"\b(?:YES|Yes|yes)\b")
_NO = re.compile(r"\bNO\b|[\"'“‘](?:no|No)[\"'”’]")  # in small letters it is a word like any other
_STATED_NO = re.compile(r"\bNO\b|\bNo\b|[\"'“‘]no[\"'”’]|\bno\W*$")
_RIGHT = re.compile(
    r"\b(?:answer\w*|outcome|resol\w+|correct\w*|right\w*|true|truth|turn(?:s|ed) out|prov(?:ed|es|en)|actual\w*|will be)\b", re.I
)
_STATED = re.compile(
    r"\b(?:(?:yes|no)[\"'”]? (?:is|was) the (?:true|correct|right|real|official|actual|final) (?:answer|outcome)|"
    r"(?:true|correct|right|real|official|actual|hidden|final|secret) (?:answer|outcome|result|resolution)|(?:turns?|turned) out|"
    r"resolves? (?:to |as )?[\"'“]?(?:yes|no)\b|(?:is|was) resolved|resolved (?:to |as )|will resolve|"
    r"answer (?:to \S.{0,200}?)?(?:is|was|will be)|outcome (?:of \S.{0,200}?)?(?:is|was|will be))\b",
    re.I,
)
_STATED_ANCHORS = ("answer", "outcome", "result", "resol", "turn")
_GUESSED = re.compile(
    r"\b(?:if|whether|when|would|could|should|might|may|maybe|perhaps|probably|likely|unlikely|think|thinks|believe|believes|expect|expects|"
    r"guess|bet|bets|betting|chance|odds|rumou?r\w*|say|says|said|claims?|predict\w*|until|either|or)\b",
    re.I,
)
_WRONG = re.compile(r"\b(?:wrong\w*|incorrect\w*|mistak\w+|false)\b", re.I)
RESPONSE = "response"
EXCERPT_CHARACTERS = 160
_MOST_ESCAPED = 3  # JSON inside JSON inside JSON
_SHORTEST_KEY, _SHORTEST_NUMBER, _SHORTEST_SECTION, _SHORTEST_TEXT = 6, 5, 12, 16
_LEAST_DECIMALS = 4  # of a bare number: two markets often have the same price in cents
_MOST_NESTED = 6
_DECIMAL = re.compile(r"(?<![\d.])\d{1,9}\.\d{2,}%?")


@dataclass(frozen=True)
class HiddenAnswer:
    """The engine's answer to a question without an official one. ``names`` are the question's names in texts."""

    names: tuple[str, ...]
    answer: bool


def leaks_hidden_answer(explanation: str, hidden: Iterable[HiddenAnswer]) -> bool:
    """True if a clause names a question and says that its hidden answer is right, or that the other is wrong."""
    for clause in _CLAUSES.split(explanation):
        for question in hidden:
            own, other = (_YES, _NO) if question.answer else (_NO, _YES)
            states = (own.search(clause) and _RIGHT.search(clause)) or (other.search(clause) and _WRONG.search(clause))
            if states and any(_named(name, clause) for name in question.names):
                return True
    return False


def stated_answer(text: str, hidden: Iterable[HiddenAnswer]) -> str | None:
    """First clause that names a question and states its answer as a fact, None where no clause does.

    A guess, a condition and both answers in one clause state nothing, nor does the wrong answer.
    """
    small = text.casefold()
    # most texts hold no such word, and the expressions are slow
    if not any(anchor in small for anchor in _STATED_ANCHORS):
        return None
    questions = tuple(hidden)
    for clause in _CLAUSES.split(text):
        stated = _STATED.search(clause)
        if stated is None or _GUESSED.search(clause) is not None:
            continue
        answers = bool(_YES.search(clause, stated.start())), bool(_STATED_NO.search(clause, stated.start()))
        if answers[0] == answers[1]:
            continue
        if any(known.answer == answers[0] and any(_named(name, clause) for name in known.names) for known in questions):
            return clause
    return None


def _named(name: str, clause: str) -> bool:
    return bool(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", clause, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Leak:
    """One leak: its kind, its text (``message 1 (user)`` or ``response``), and an excerpt."""

    kind: LeakKind
    where: str
    excerpt: str


@dataclass(frozen=True)
class LeakContext:
    """Secrets of an hour: questions without an answer in it, and one row's gameKnowledge.

    Of the former ids, numbers and, where it is known by now, the answer; of the latter JSON entries (``knowledge``) and bare numbers.
    """

    market_ids: frozenset[str] = frozenset()
    question_numbers: frozenset[int] = frozenset()
    knowledge: tuple[str, ...] = ()
    answers: tuple[HiddenAnswer, ...] = ()
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Pattern:
    """An expression over folded text, tried only where one of its ``anchors`` occurs."""

    kind: LeakKind
    anchors: tuple[str, ...]
    expression: re.Pattern[str]


def _of_template(template: Template) -> _Pattern:
    # A backslash before the sentence would take its first letter for an escape, so that letter is not asked for.
    pieces = [(folded(literal), kind) for literal, _, kind in template.parts]
    pieces[0] = (pieces[0][0][1:], pieces[0][1])
    anchor = max((part for literal, _ in pieces for part in literal.split('"')), key=len)
    expression = "".join(re.escape(literal) + (FIELD_TYPES[kind] if kind else "") for literal, kind in pieces)
    return _Pattern(template.kind, (anchor,), re.compile(expression, re.DOTALL))


@cache
def _sentences() -> tuple[_Pattern, ...]:
    return tuple(_of_template(template) for template in TEMPLATES)


_VALUE = r"""[:=]["']?(?:[{\[](?=[^}\]])|[-+]?\.?\d|(?:true|false|yes|no)(?![a-z]))"""
_RAW = (
    _Pattern(
        "game_knowledge",
        ("probabilities", "outcomes"),
        re.compile(rf"""(?:true_?probabilities|actual_?outcomes|future_?outcomes)["']?{_VALUE}"""),
    ),
    _Pattern(
        "game_knowledge",
        ("gameknowledge",),
        re.compile(r"""gameknowledge["']?[:=]\{(?!(?:["']?\w+["']?:(?:\{\}|\[\]|null|""),?)*\})"""),
    ),
    _Pattern(
        "score",
        ("aijudge", "ai_judge", "rulerscore", "rulerreward", "rulerrank", "ruler_", "normalizedscore", "overallscore"),
        re.compile(
            r"""(?:ai_?judge_?(?:reward|score)|ruler_?(?:score|reward|rank)s?|["'](?:normalized|overall)score)["']?"""
            r"""(?:[:=(]|is|was|are|of|min|max|avg|mean)+["']?[-+]?\.?\d"""
            r"""|ai_?judge_?reasoning["']?[:=]["']?(?!null|none|undefined|["'])[^\s,}]"""
        ),
    ),
    _Pattern(
        "outcome",
        ("groundtruth", "ground_truth", "marketoutcomes", "optimalactions"),
        re.compile(
            r"""ground_?truth(?:\([^)]{0,80}\)["']?:|["']?[:=])(?!null|none|\{\}|\[\]|unknown)"""
            r"""|["'](?:marketoutcomes|optimalactions)["']:[{\[](?=[^}\]])"""
        ),
    ),
)
_SECRET_ANCHOR = '"outcome":'


@cache
def _anchors() -> tuple[str, ...]:
    return (*(anchor for pattern in (*_sentences(), *_RAW) for anchor in pattern.anchors), _SECRET_ANCHOR)


_SECRET = re.compile(r'\{[^{}]{0,4000}?"outcome":(?:true|false)[^{}]{0,4000}\}')
_NUMBER_OF = re.compile(r'"questionnumber":(\d{1,9})(?!\d)')
_ID_OF = re.compile(r'"(?:id|marketid|questionid)":"([^"]{1,200})"')

_LOOKALIKES = {"": "\xad\u200b\u200c\u200d\u2060\ufeff", "-": "‐‑‒–—−", '"': "“”„‟«»", "'": "‘’‚‛"}
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_ESCAPED = {'"': '"', "\\": "\\", "/": "/"}


def find_leaks(messages: Sequence[Mapping[str, str]], response: str, context: LeakContext = LeakContext()) -> list[Leak]:
    """Find the leaks of a sequence, in the order of its texts; none in a sequence that may train.

    ``context`` holds the hour's and the row's own secrets; without it only judges' sentences and named columns are found.
    """
    leaks: list[Leak] = []
    for number, message in enumerate(messages):
        leaks += _in_text(message["content"], f"message {number} ({message['role']})", context, raw=True)
    return leaks + _in_text(response, RESPONSE, context, raw=False)


def knowledge_needles(knowledge: Any) -> tuple[str, ...]:
    """Folded texts by which a recorded gameKnowledge would be recognised, as JSON or bare.

    Entries that anybody could have written are left out: short keys and texts, flags, round numbers.
    """
    needles: list[str] = []
    for entries in knowledge.values() if isinstance(knowledge, Mapping) else ():
        if isinstance(entries, Mapping):
            needles += [_json({key: value})[1:-1] for key, value in entries.items() if len(key) >= _SHORTEST_KEY and _telling(value)]
        if isinstance(entries, Mapping | list) and len(_json(entries)) >= _SHORTEST_SECTION:
            needles.append(_json(entries))
    needles += [text for value in _values(knowledge) if isinstance(value, str) and len(text := folded(value)) >= _SHORTEST_TEXT]
    return tuple(dict.fromkeys(needles))


def knowledge_numbers(knowledge: Any) -> frozenset[str]:
    """Numbers of a gameKnowledge that are unlikely to occur by chance, as they are written. Each in full, in six digits and in percent."""
    numbers: set[str] = set()
    for value in _values(knowledge):
        if isinstance(value, float) and math.isfinite(value):
            for text in (repr(value), f"{value:.6g}", f"{100 * value:.6g}%"):
                whole, _, decimals = text.rstrip("%").partition(".")
                enough = len(decimals) >= _LEAST_DECIMALS - 2 * text.endswith("%")
                if enough and len((whole + decimals).strip("0")) >= _LEAST_DECIMALS and "e" not in text:
                    numbers.add(text)
    return frozenset(numbers)


def _values(knowledge: Any, deep: int = _MOST_NESTED) -> Iterator[Any]:
    """Yield the scalars of a JSON value, at any depth up to ``deep``."""
    if isinstance(knowledge, Mapping | list) and deep:
        for value in knowledge.values() if isinstance(knowledge, Mapping) else knowledge:
            yield from _values(value, deep - 1)
    elif not isinstance(knowledge, Mapping | list):
        yield knowledge


def _telling(value: Any) -> bool:
    if isinstance(value, bool | str):
        return True
    return isinstance(value, int | float) and len(repr(value)) >= _SHORTEST_NUMBER  # 0.5 is every new market's price


def _json(value: Any) -> str:
    return folded(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _in_text(text: str, where: str, context: LeakContext, *, raw: bool) -> list[Leak]:
    """Find the leaks of one text, the first of each kind; ``raw`` forms count in messages and not in a response."""
    leaks: dict[LeakKind, Leak] = {}
    if raw and context.answers and (clause := stated_answer(text, context.answers)):
        leaks["hidden_answer"] = Leak("hidden_answer", where, _line(clause))
    # a trajectory's own secrets hold no fixed words, so with them every text is searched in full
    if not context.knowledge and not context.numbers and _is_clean(text):
        return list(leaks.values())
    for reading in _readings(text):
        plain = folded(reading)
        for kind, start, end in _hits(plain, context, raw):
            if kind not in leaks:
                leaks[kind] = Leak(kind, where, _excerpt(reading, start, end))
    return list(leaks.values())


@lru_cache(maxsize=64)  # system prompts come again and again
def _is_clean(text: str) -> bool:
    """True if no anchor occurs in the text. This does not depend on the hour, so it is cached."""
    return not any(anchor in plain for plain in map(folded, _readings(text)) for anchor in _anchors())


def _hits(plain: str, context: LeakContext, raw: bool) -> Iterator[tuple[LeakKind, int, int]]:
    for pattern in (*_sentences(), *_RAW) if raw else _sentences():
        if any(anchor in plain for anchor in pattern.anchors):
            match = pattern.expression.search(plain)
            if match is not None:
                yield pattern.kind, match.start(), match.end()
    for needle in context.knowledge:
        position = plain.find(needle)
        if position >= 0:
            yield "game_knowledge", position, position + len(needle)
    for number in _DECIMAL.finditer(plain) if context.numbers else ():
        if number[0] in context.numbers or number[0].rstrip("%") in context.numbers:
            yield "game_knowledge", number.start(), number.end()
    # a question's own row, recorded together with its answer
    if raw and (context.market_ids or context.question_numbers) and _SECRET_ANCHOR in plain:
        for row in _SECRET.finditer(plain):
            numbers, ids = map(int, _NUMBER_OF.findall(row[0])), _ID_OF.findall(row[0])
            if not (context.question_numbers.isdisjoint(numbers) and context.market_ids.isdisjoint(ids)):
                yield "hidden_answer", row.start(), row.end()


def _readings(text: str) -> Iterator[str]:
    """Yield the text, the text in plain typography, and with its JSON escapes decoded."""
    yield text
    if text.isascii() and "\\" not in text:
        return
    plain = text
    # one level of escapes a round: JSON may stand as a text within JSON
    for _ in range(_MOST_ESCAPED):
        before = plain
        if not plain.isascii():
            plain = plainly_typed(unicodedata.normalize("NFKC", plain))
            if plain != before:
                yield plain
        if "\\" not in plain:
            return
        opened = _ESCAPE.sub(_open, plain)
        if opened == plain:
            return
        yield opened
        plain = opened


def plainly_typed(text: str) -> str:
    """Replace typographic dashes and quotes by ASCII, and remove invisible characters."""
    # Of a text that is not ASCII, str.translate looks up every character: 40 to 90 times as long as one search per character.
    for plain, characters in _LOOKALIKES.items():
        for character in characters:
            text = text.replace(character, plain)
    return text


def _open(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else _ESCAPED.get(escape[2], " ")


def _excerpt(reading: str, start: int, end: int) -> str:
    """Original text behind characters ``start`` to ``end`` of its folded form, in one line."""
    # walk both texts at once: white space vanishes in folding, some letters become several
    position, first, last = 0, 0, len(reading)
    for index, character in enumerate(reading):
        width = 0 if character.isspace() else len(character.casefold())
        if position <= start < position + width:
            first = index
        position += width
        if position >= end:
            last = index + 1
            break
    return _line(reading[first:last])


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT_CHARACTERS else line[: EXCERPT_CHARACTERS - 1] + "…"
