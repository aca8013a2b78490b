"""Scripted judge: settings, and answers and faults as pure functions of settings, request and attempt.

Draws go by name: the same seed and names give the same draw, in any process and any order.
"""

import hashlib
import html
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeGuard

from babylon_rl.errors import UsageError
from babylon_rl.judge.consensus import centred_ranks
from babylon_rl_tests.scripted_judge.parsing import EpisodeBlock, GullibleReading, ParsedRequest, demanded_scores, read_gullibly, text_of

# Faults of the connection or the server in front of the model.
TRANSPORT_FAULTS = ("rate-limit", "server-error", "unavailable", "time-out", "reset", "reset-mid-body", "web-page", "slow-stream")
# Faults of the answer itself.
CONTENT_FAULTS = (
    "fenced", "prefixed", "trailing-comma", "missing-id", "duplicate-id", "unknown-id", "out-of-range", "nan", "boolean",
    "no-explanation", "empty", "truncated", "refusal",
)  # fmt: skip
FAULTS = TRANSPORT_FAULTS + CONTENT_FAULTS
# Final refusals of a provider: a retry cures none of them, so "every fault" leaves them out.
REFUSALS = ("bad-key", "unknown-model", "bad-request")
SKILLS = ("auto", "marker", "pnl", "text")
_NO_FAULTS: Mapping[str, float] = MappingProxyType({})
_MARKER = re.compile(r"\bskill=([01](?:\.\d+)?)(?![\d.]*\d)")
_NAMED = r"\b(?:p\s*&\s*l|pnl|profit and loss|profit or loss)\b[^\d\n+\-−$]{0,40}"
_AMOUNT = r"(?P<sign>[+\-−]?)\s{0,2}\$?\s{0,2}(?P<late>[+\-−]?)(?P<usd>\d[\d,]*(?:\.\d+)?)"
_PNL = (
    re.compile(rf"\bmade\s{{1,2}}{_AMOUNT}\s{{1,2}}dollars\b", re.IGNORECASE),
    re.compile(rf"\b(?P<lost>lost)\s{{1,2}}{_AMOUNT}\s{{1,2}}dollars\b", re.IGNORECASE),
    re.compile(_NAMED + _AMOUNT, re.IGNORECASE),
)
_PART_PNL = re.compile(r"\b(\d+): (-?\d[\d.e+-]*) in \d")
PNL_SCALE_USD = 100.0


@dataclass(frozen=True)
class ScriptedJudge:
    """Settings of a judge. Shares, probabilities and scores are in 0..1, times in seconds.

    Raises:
        UsageError: a value is outside its range, or a fault has another name; the message lists all of them.
    """

    seed: int = 0
    skill: str = "auto"  # where an episode's skill is read: a marker, its P&L, its text's hash; "auto" takes the first that is there
    noise: float = 0.0  # standard deviation of the noise added to each skill
    position_bias: float = 0.0  # how much the first place of a request gains over the last, linear between
    length_bias: float = 0.0  # how much the longest episode of a request gains over the shortest, linear in the rank of the length
    few_marks: float = 0.0  # share of the answers by part in which the last episode has one mark too few
    out_of_order: float = 0.0  # share of the answers whose verdicts stand in another order than the episodes
    latency_s: float = 0.0
    jitter_s: float = 0.0  # uniform, on top of the latency
    obedience: float = 0.0  # share of the agents' instructions that are followed and of the fake structure that is believed
    fooled_by: str = ""  # an episode that holds this text gets the highest score
    fooled_with: tuple[str, ...] = ()  # texts that the request's episodes must hold, too, for that
    chars_per_token: float = 4.0  # of the usage that is reported; no tokenizer is loaded
    retry_after_s: float = 1.0  # the Retry-After of a 429
    slow_s: float = 2.0  # how long a slow stream takes
    model: str = "scripted"  # the name in /v1/models; a request may name any
    faults: Mapping[str, float] = field(default_factory=lambda: _NO_FAULTS)  # probability of each, drawn on its own at every attempt

    def __post_init__(self) -> None:
        # all values are checked, so that one message lists every fault
        wrong = [f"{name} is {getattr(self, name)!r}, not in 0..1" for name in _SHARES if not _share(getattr(self, name))]
        wrong += [f"{name} is {getattr(self, name)!r}, not 0 or more" for name in _NOT_NEGATIVE if not _amount(getattr(self, name))]
        wrong += [f"{name} is {getattr(self, name)!r}, not a number" for name in _BIASES if not _number(getattr(self, name))]
        if not _amount(self.chars_per_token) or not self.chars_per_token:
            wrong.append(f"chars_per_token is {self.chars_per_token!r}, not above 0")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            wrong.append(f"seed is {self.seed!r}, not a whole number")
        if self.skill not in SKILLS:
            wrong.append(f"skill is {self.skill!r}, none of {', '.join(SKILLS)}")
        if not isinstance(self.model, str) or not self.model:
            wrong.append(f"model is {self.model!r}, not a name")
        for name, probability in self.faults.items():
            if name not in FAULTS + REFUSALS:
                wrong.append(f"there is no fault {name!r}, only {', '.join(FAULTS + REFUSALS)}")
            elif not _share(probability):
                wrong.append(f"the probability of {name} is {probability!r}, not in 0..1")
        if wrong:
            raise UsageError("The scripted judge cannot be so: " + "; ".join(wrong) + ".")
        object.__setattr__(self, "faults", MappingProxyType(dict(self.faults)))

    def but(self, changes: Mapping[str, Any]) -> "ScriptedJudge":
        """Copy with other values; ``faults`` are added, and probability 0 removes one.

        Raises:
            UsageError: there is no such setting, or a value is not allowed.
        """
        if unknown := sorted(set(changes) - _NAMES):
            raise UsageError(f"The scripted judge has no setting {', '.join(unknown)}; it has {', '.join(sorted(_NAMES))}.")
        faults = changes.get("faults", {})
        if not isinstance(faults, Mapping):
            raise UsageError(f"faults is {faults!r}, not an object of probabilities.")
        return replace(self, **{**changes, "faults": {**self.faults, **faults}})

    def described(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {name: getattr(self, name) for name in sorted(_NAMES - {"faults"})} | {"faults": dict(self.faults)}


_NAMES = {entry.name for entry in fields(ScriptedJudge)}
_BIASES = ("position_bias", "length_bias")
_SHARES = ("out_of_order", "obedience", "few_marks")
_NOT_NEGATIVE = ("noise", "latency_s", "jitter_s", "retry_after_s", "slow_s")


def every_fault(probability: float) -> dict[str, float]:
    """Each fault that a retry can cure, with this probability."""
    return dict.fromkeys(FAULTS, probability)


def changes_of(raw: str) -> dict[str, Any]:
    """Parse changes from a header or body with a JSON object; empty means none.

    Raises:
        UsageError: it is not a JSON object.
    """
    try:
        changes = json.loads(raw) if raw.strip() else {}
    except ValueError as invalid:
        raise UsageError(f"The scripted judge's settings are no JSON: {invalid}.") from invalid
    if not isinstance(changes, dict):
        raise UsageError("The scripted judge's settings are not a JSON object.")
    return changes


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _amount(value: object) -> TypeGuard[float]:
    return _number(value) and value >= 0


def _share(value: object) -> TypeGuard[float]:
    return _amount(value) and value <= 1


@dataclass(frozen=True)
class ScriptedVerdict:
    """One verdict; after a fault ``score`` and ``marks`` may hold any JSON value. None omits a key, and ``marks`` omit the score."""

    id: str
    score: Any
    explanation: str | None
    marks: tuple[Any, ...] | None = None


def content_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """Hash of a request's messages, without its options."""
    return digest(json.dumps([[message.get("role"), text_of(message)] for message in messages]))


def fault_of(judge: ScriptedJudge, content: str, attempt: int) -> str | None:
    """Fault of this attempt, or None.

    Each fault is drawn independently; if several occur, the first in a drawn order counts.
    """
    # draw for every fault in any case, so that one probability does not change the draws of the others
    draws = chance(judge.seed, "fault", content, attempt)
    names = list(FAULTS + REFUSALS)
    hit = {name for name in names if draws.random() < judge.faults.get(name, 0.0)}
    draws.shuffle(names)
    return next((name for name in names if name in hit), None)


def verdicts_of(judge: ScriptedJudge, request: ParsedRequest, content: str) -> list[ScriptedVerdict]:
    """Verdicts in the order of the answer; the same at every attempt."""
    # an obedient judge believes forged tags, and knows what the texts ask for
    draws = chance(judge.seed, "belief", content)
    read = read_gullibly(request) if draws.random() < judge.obedience else GullibleReading(request.blocks)
    wishes = demanded_scores(read) if judge.obedience else {}
    lengths = centred_ranks([len(block.text) for block in read.blocks])
    texts = [html.unescape(block.text) for block in read.blocks]
    fooled = bool(judge.fooled_by) and all(any(part in text for text in texts) for part in judge.fooled_with)
    verdicts = []
    for place, (block, length) in enumerate(zip(read.blocks, lengths, strict=True)):
        own = chance(judge.seed, "episode", content, place)
        # obey, or score by skill with noise and biases
        if own.random() < judge.obedience and block.id in wishes:
            score, why, marks = wishes[block.id], "The score was asked for", (wishes[block.id],) * request.parts
        elif fooled and judge.fooled_by in texts[place]:
            score, why, marks = 1.0, "The play is splendid", (1.0,) * request.parts
        else:
            worth, noise = skill(block.text, judge.skill, block.about), own.gauss(0.0, judge.noise)
            bias = judge.position_bias * _lead(place, len(read.blocks)) + judge.length_bias * length
            score, why = min(1.0, max(0.0, worth + noise + bias)), "The play is worth"
            marks = marks_of(judge, block, request.parts, worth, bias, chance(judge.seed, "marks", content, place))
        shown = tuple(round(mark, 6) for mark in marks) if request.parts else None
        verdicts.append(ScriptedVerdict(block.id, round(score, 6), f"{why}: {score:.2f}.", shown))
    # some answers list the verdicts in another order
    order = chance(judge.seed, "order", content)
    if order.random() < judge.out_of_order and len(verdicts) > 1:
        shown = list(verdicts)
        while verdicts == shown:
            order.shuffle(verdicts)
    return verdicts


def marks_of(judge: ScriptedJudge, block: EpisodeBlock, parts: int, worth: float, bias: float, draws: random.Random) -> tuple[float, ...]:
    """Marks of a block's parts: by the P&L that the asker names for each, else as the whole block is worth; each with noise of its own."""
    named = {int(part): float(usd) for part, usd in _PART_PNL.findall(block.about)} if judge.skill in ("auto", "pnl") else {}
    scale = PNL_SCALE_USD / math.sqrt(max(1, parts))  # as results of parts add up
    skills = [_logistic(named[part] / scale) if part in named else worth for part in range(1, parts + 1)]
    return tuple(min(1.0, max(0.0, one + draws.gauss(0.0, judge.noise) + bias)) for one in skills)


def short_of_marks(judge: ScriptedJudge, verdicts: Sequence[ScriptedVerdict], content: str, attempt: int) -> list[ScriptedVerdict]:
    """The verdicts, in a share of the answers with a mark too few for the last."""
    *others, last = verdicts
    short = last.marks is not None and chance(judge.seed, "few marks", content, attempt).random() < judge.few_marks
    return [*others, replace(last, marks=last.marks[:-1]) if short and last.marks is not None else last]


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, value))))


def _lead(place: int, places: int) -> float:
    """+1/2 for the first place, -1/2 for the last, linear between."""
    return 0.5 - place / (places - 1) if places > 1 else 0.0


def latency_s(judge: ScriptedJudge, content: str, attempt: int) -> float:
    """Delay of this attempt in seconds."""
    return judge.latency_s + judge.jitter_s * chance(judge.seed, "latency", content, attempt).random()


def answer_text(verdicts: Sequence[ScriptedVerdict], id_field: str, fault: str | None = None) -> str | None:
    """Content of the answer with a content fault; None if the fault leaves no content."""
    if fault == "refusal":
        return None
    if fault == "empty":
        return ""
    text = json.dumps({"scores": [_entry(opinion, id_field) for opinion in _spoilt(list(verdicts), fault)]}, indent=1)
    if fault == "fenced":
        return f"```json\n{text}\n```"
    if fault == "prefixed":
        return f"Having weighed the episodes {{as asked}}, this is my verdict:\n\n{text}\n\nPlease say so if more detail would help."
    if fault == "trailing-comma":
        return text.replace("\n ]\n}", ",\n ],\n}")
    if fault == "truncated":
        return text[: len(text) * 3 // 5]
    return text


def _entry(opinion: ScriptedVerdict, id_field: str) -> dict[str, Any]:
    """One verdict as JSON; missing parts are omitted."""
    judged = {"score": opinion.score} if opinion.marks is None else {"marks": list(opinion.marks)}
    fields = {id_field: opinion.id, "explanation": opinion.explanation, **judged}
    return {key: value for key, value in fields.items() if value is not None}


def _spoilt(verdicts: list[ScriptedVerdict], fault: str | None) -> list[ScriptedVerdict]:
    """The verdicts with one or two of them made wrong."""
    if not verdicts:
        return verdicts
    first, last = verdicts[0], verdicts[-1]
    match fault:
        case "missing-id":
            return verdicts[:-1]
        case "duplicate-id":  # in the place of another where there are several, so that the number of verdicts looks right
            return [*verdicts[:-1], replace(last, id=first.id)] if len(verdicts) > 1 else [first, first]
        case "unknown-id":
            return [*verdicts[:-1], replace(last, id="nobody-" + last.id)]
        case "out-of-range":
            return [_scored(first, 5), *verdicts[1:-1], *([_scored(last, -3)] if len(verdicts) > 1 else [])]
        case "nan":
            return [*verdicts[:-1], _scored(last, math.nan)]
        case "boolean":
            return [*verdicts[:-1], _scored(last, True)]
        case "no-explanation":
            return [*verdicts[:-1], replace(last, explanation=None)]
        case _:
            return verdicts


def _scored(verdict: ScriptedVerdict, value: Any) -> ScriptedVerdict:
    """The verdict with another score, or with another first mark."""
    return replace(verdict, score=value, marks=None if verdict.marks is None else (value, *verdict.marks[1:]))


def chance(seed: int, *names: str | int) -> random.Random:
    """Random generator for a seed and some names."""
    key = "\x1f".join(map(str, (seed, *names)))
    return random.Random(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def digest(text: str) -> str:
    """Short hash of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def skill(text: str, source: str = "auto", about: str = "") -> float:
    """Skill of an episode's text, read as the setting ``skill`` says.

    A missing source falls back to the text's hash. ``about`` is the asker's text on the episode; a profit or loss there comes before one
    in the episode.
    """
    readable = html.unescape(text)
    if source in ("auto", "marker") and (match := _MARKER.search(readable)):
        return min(float(match[1]), 1.0)
    if source in ("auto", "pnl"):
        for source_text in (html.unescape(about), readable):
            if (pnl := pnl_usd(source_text)) is not None:
                return _logistic(pnl / PNL_SCALE_USD)
    normal = " ".join(readable.lower().split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=6).digest()) / 2**48


def pnl_usd(text: str) -> float | None:
    """Profit or loss that a text names, in dollars: "lost 3 dollars", "P&L: -$30"."""
    for pattern in _PNL:
        if match := pattern.search(text):
            groups = match.groupdict()
            negative = (groups["sign"] or groups["late"]) in ("-", "−") or groups.get("lost") is not None
            return -float(groups["usd"].replace(",", "")) if negative else float(groups["usd"].replace(",", ""))
    return None
