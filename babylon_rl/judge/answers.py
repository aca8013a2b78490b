"""The parser of a judge's answers.

An answer is text. Reading it is lenient in form (thinking before it, fences, prose around it, trailing commas, a list around it or without
one), strict in content: exactly the ids, each with a finite score from 0 to 1 and an explanation. Nothing is evaluated, guessed or filled
in, and a draft in the judge's thinking is no answer. Many unusable answers in a row, about several groups, end a run (``FailureStreak``):
one group may be the cause itself, many point to the judge.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from babylon_rl.errors import BabylonError, JudgeUnavailable

MOST_EXPLANATION = 4_000
MOST_ANSWER = 400_000  # characters; nothing longer is an answer
MOST_FAULTS = 20
MOST_TRIES = 100  # places in an answer at which JSON might begin and does not
_TRAILING = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)
_LIKELY, _ANY = re.compile(r'\{\s{0,50}"scores"|\[\s{0,50}\{\s{0,50}"'), re.compile(r"[{\[]")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_THOUGHT = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad)"
# Tags around a model's thinking, as chat templates write them: in angle or square brackets, in special tokens, as channels.
_OPENS = (
    rf"<{_THOUGHT}>|\[{_THOUGHT}\]|◁{_THOUGHT}▷|<\|(?:begin_of|start)_{_THOUGHT}\|>|<\|?channel\|?>(?:analysis|thought)|<\|inner_prefix\|>"
)
_CLOSES = (
    rf"</\s*{_THOUGHT}\s*>|\[/{_THOUGHT}\]|◁/{_THOUGHT}▷|<\|end(?:_of)?_{_THOUGHT}\|>|<\|channel\|>final|assistantfinal|<channel\|>"
    r"|<\|inner_suffix\|>|<(?:final_?)?(?:answer|response|output)>"
)
_TAG = re.compile(f"(?P<opens>{_OPENS})|{_CLOSES}", re.IGNORECASE)
GROUPS = 3  # so many may be given up before it is the judge
LASTING = "No answer: "  # prefix of a fault that further tries meet again
LASTING_TRIES = 2  # answers about a group with such a fault, after which it is given up
_IN_THINKING = f"{LASTING}the judge's text holds no scores outside of its thinking."


@dataclass(frozen=True)
class EpisodeVerdict:
    """A judge's score of one episode (0 to 1) and its explanation. ``marks`` are those of parts, of which the score is the mean."""

    score: float
    explanation: str
    marks: tuple[float, ...] = ()


class AnswerFault(BabylonError):
    """An unusable answer; ``faults`` has one sentence for each thing that is wrong."""

    def __init__(self, faults: Collection[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(f"The judge's answer cannot be used: {' '.join(self.faults)}")


def read_answer(text: str, ids: Collection[str], parts: int = 0) -> dict[str, EpisodeVerdict]:
    """Read the verdicts of an answer, by id and in the order of ``ids``.

    With ``parts`` each holds so many marks instead of a score.

    Raises:
        AnswerFault: the text holds no answer, or one for other ids, or one that lacks a score, a mark or an explanation.
    """
    entries = _entries(text)
    verdicts: dict[str, EpisodeVerdict] = {}
    faults: list[str] = []
    seen: set[str] = set()
    # every entry is checked, so that one answer reports all its faults
    for place, entry in enumerate(entries, 1):
        identity = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(identity, str):
            faults.append(f"Entry {place} is not an object with an id.")
        elif identity not in ids:
            faults.append(f"There is no episode with the id {_shown(identity)}.")
        elif identity in seen:
            faults.append(f"The id {identity} is there more than once.")
        else:
            seen.add(identity)
            faults += _judged(identity, entry, parts, verdicts)
    faults += [f"The id {identity} is missing." for identity in ids if identity not in seen]
    if faults:
        rest = len(faults) - MOST_FAULTS
        raise AnswerFault(faults if rest <= 0 else [*faults[:MOST_FAULTS], f"And {rest} more."])
    return {identity: verdicts[identity] for identity in ids}


def _judged(identity: str, entry: Mapping[str, Any], parts: int, verdicts: dict[str, EpisodeVerdict]) -> Iterator[str]:
    """Add the verdict of one entry to ``verdicts``, or yield the entry's faults."""
    faults = []
    if parts:
        marks = entry.get("marks")
        given = marks if isinstance(marks, list) else []
        faults += [] if len(given) == parts else [f"The entry of {identity} holds {len(given)} marks, not {parts}."]
    else:
        given = [entry["score"]] if "score" in entry else []
        faults += [] if given else [f"The score of {identity} is missing."]
    scores = [score for mark in given if (score := _score(mark)) is not None]
    if not faults and len(scores) < len(given):
        number, wrong = next((number, mark) for number, mark in enumerate(given, 1) if _score(mark) is None)
        name = f"Mark {number}" if parts else "The score"
        faults.append(f"{name} of {identity} is {_shown(wrong)}, which is no number from 0 to 1.")
    explanation = entry.get("explanation")
    if not isinstance(explanation, str) or not explanation.strip():
        faults.append(f"The explanation of {identity} is missing.")
    elif not faults:
        own = tuple(scores) if parts else ()
        verdicts[identity] = EpisodeVerdict(math.fsum(scores) / len(scores), explanation.strip()[:MOST_EXPLANATION], own)
    yield from faults


def _score(value: Any) -> float | None:
    """Score as a float, None unless it is finite and from 0 to 1. Numbers in quotes count."""
    if isinstance(value, str) and _NUMBER.fullmatch(text := value.strip()):
        value = float(text)  # which takes fewer characters for blanks than strip
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    # adding 0.0 turns -0.0 into 0.0
    return float(value) + 0.0 if math.isfinite(value) else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:59] + "…"


def _entries(text: str) -> list[Any]:
    """Find the one list of scores in an answer. Raises AnswerFault: there is none, or several that differ."""
    if len(text) > MOST_ANSWER:
        raise AnswerFault([f"The answer has {len(text)} characters."])
    if not text.strip():
        raise AnswerFault(["The answer is empty."])
    # a judge may show its answer twice: equal lists are one answer, different ones are none
    candidates: list[list[Any]] = []
    for entries in _lists(text):
        if entries not in candidates:
            candidates.append(entries)
    if not candidates:
        raise AnswerFault([_IN_THINKING if _TAG.search(text) else 'The answer holds no JSON object with "scores".'])
    if len(candidates) > 1:
        raise AnswerFault([f"The answer holds {len(candidates)} different lists of scores."])
    return candidates[0]


def _scores_of(value: Any) -> list[Any] | None:
    """The list of scores in a JSON value, None if it holds none."""
    if isinstance(value, list):
        if len(value) == 1 and (inner := _scores_of(value[0])) is not None:
            return inner
        return value if value and all(isinstance(entry, dict) and "id" in entry for entry in value) else None
    if isinstance(value, dict):
        scores = value.get("scores")
        if isinstance(scores, dict):  # by id
            return [{"id": identity} | entry for identity, entry in scores.items() if isinstance(entry, dict)]
        return scores if isinstance(scores, list) else None
    return None


def _lists(text: str) -> list[list[Any]]:
    """The lists of scores in a text, in order, without those in the judge's thinking.

    The whole text is parsed strictly first, then pieces of it without trailing commas.
    """
    try:
        # NaN and Infinity become texts, which no check takes for a score
        entries = _scores_of(json.loads(text, parse_constant=str))
        return [] if entries is None else [entries]
    except (ValueError, RecursionError):
        pass
    text = _TRAILING.sub(lambda match: match[1] or "", text)
    for starts in (_LIKELY, _ANY):
        found = [(start, end, entries) for start, end, value in _from(text, starts) if (entries := _scores_of(value)) is not None]
        thinking = _thinking(text, [(start, end) for start, end, _ in found])
        if shown := [entries for start, _, entries in found if not any(low <= start < high for low, high in thinking)]:
            return shown
    return []


def _thinking(text: str, lists: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of the judge's thinking: between its tags, before an end without a beginning, after a beginning without an end.

    A tag inside one of ``lists`` is quoted in an explanation.
    """
    spans: list[tuple[int, int]] = []
    begun: int | None = None
    for tag in _TAG.finditer(text):
        if any(start <= tag.start() < end for start, end in lists):
            continue
        if tag["opens"]:
            begun = tag.start() if begun is None else begun
        else:
            spans.append((begun or 0, tag.end()))
            begun = None
    return spans if begun is None else [*spans, (begun, len(text))]


def _from(text: str, starts: re.Pattern[str]) -> Iterator[tuple[int, int, Any]]:
    """Yield start, end and value of the JSON that begins where ``starts`` matches; at most MOST_TRIES failures."""
    decoder = json.JSONDecoder(parse_constant=str, strict=False)
    position = tries = 0
    while tries < MOST_TRIES and (start := starts.search(text, position)) is not None:
        try:
            value, position = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            # every try may read to the end of the text: an answer full of brackets would take quadratic time without the bound
            position, tries = start.start() + 1, tries + 1
            continue
        yield start.start(), position, value


@dataclass
class FailureStreak:
    """Count of unusable answers of one run; ``tries`` is the number allowed per request."""

    model: str
    tries: int
    unusable: int = 0
    windows: set[str] = field(default_factory=set)
    faults: Sequence[str] = ()

    def check(self) -> None:
        """Raise JudgeUnavailable if too many answers in a row, about too many groups, were unusable."""
        if self.unusable >= GROUPS * self.tries and len(self.windows) > GROUPS:
            raise JudgeUnavailable(
                f"Not asked: the last answers of {self.model}, about {len(self.windows)} hours, could not be used or were refusals, the "
                f"last because: {' '.join(self.faults)} See whether JUDGE_MODEL can answer in JSON (babylon-rl judge quarantine)."
            )

    def record(self, window: str, faults: Sequence[str], answers: int = 1) -> None:
        """Record ``answers`` about an hour with their faults; one without faults resets the count. A refusal counts as all tries."""
        self.unusable = self.unusable + answers if faults else 0
        self.windows = self.windows | {window} if faults else set()
        self.faults = faults
