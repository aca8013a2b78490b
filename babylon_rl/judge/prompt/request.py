"""Requests to a judge: a group's texts shortened to a token budget, messages, opaque ids, order and key.

A rendered group (render.py) holds raw texts, which are escaped here. Ids, orders and keys are derived from a stored secret and the
content. The same content gives the same bytes, so a cache can answer; without the secret no id and no nonce can be predicted. Order 2n + 1
is order 2n reversed: a preference of the judge for a place cancels out between the two.

Shortening is deterministic: lines that agents share are sent once. Prompts are split into lines, and lines of JSON into their entries,
because markets and stocks repeat while balances do not. A step shows the observations that are new to its agent since the last step whose
observations are shown. Where not all fits, steps lose parts in this order: first what other steps saw, then their reasons, then all but
their action, then these themselves; the first and the last step after them; and the decisions (trades that succeeded) last. Of each kind
the middle goes first. The text marks each place where something was left out.
"""

import functools
import hashlib
import heapq
import hmac
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

from babylon_rl.judge.client import server_of
from babylon_rl.judge.consensus import MIN_SUBGROUP, split
from babylon_rl.judge.parts import Part, time_of
from babylon_rl.judge.prompt.injection import Flag, escaped
from babylon_rl.judge.prompt.templates import RUBRIC_VERSION, WINDOW_PNL, fill_template, parts_pnl, system_prompt
from babylon_rl.llm.tokens import price, token_counter
from babylon_rl.settings import JudgeSettings

MOST_CANDIDATES = 4096  # lines that are weighed for a number; a request has room for some hundred of them
LEAST_TOKENS = 160  # below this an episode cannot be understood
_SHORT = 160  # characters of a shortened text
_CUT = " [cut]"
_UNSEEN = "[what it saw left out]"
_REST = " [the rest left out]"
_LEAST = 24  # characters that are worth a number
_NUMBER_TOKENS = 4  # of a line's number
_JSON_LINE = 60  # characters; a shorter line gains little by being parsed
_MOST_DEEP = 8  # levels of a JSON value that are shown
_LONGEST_BITS = 256  # of a whole number; Python refuses to write one of more than 4300 digits
_REFERENCE = re.compile(r"\[(\d{1,6})\]")


class Detail(IntEnum):
    """Level of detail of a step: all, without observations, shortened, action alone, nothing."""

    FULL = 0
    UNSEEN = 1
    SHORT = 2
    ACTION = 3
    GONE = 4


@dataclass(frozen=True)
class StepText:
    """Text parts of one step.

    ``seen`` are the lines that the agent was served, ``state`` its balance and positions, ``words`` its own, ``action`` its action with
    parameters and result, ``short`` the action without result; ``decision`` is true for a trade that succeeded.
    """

    number: int
    seen: tuple[str, ...]
    state: str
    words: tuple[str, ...]
    action: str
    short: str
    decision: bool

    def written(self, detail: Detail, before: "StepText | None") -> str:
        """Text of the step at this detail or a higher one, whichever is shortest. ``before`` is the step before it in the text."""
        return min((self._written(candidate, before) for candidate in Detail if candidate <= detail), key=len)

    def _written(self, detail: Detail, before: "StepText | None") -> str:
        if detail == Detail.GONE:
            return ""
        if detail == Detail.ACTION:
            return f"{self.number}. did {_cut(self.short, _SHORT)}{_REST}"
        state = f" ({self.state})" if self.state and (before is None or before.state != self.state) else ""
        news = self._news(before)
        seen = _UNSEEN if detail >= Detail.UNSEEN and len(news) > len(_UNSEEN) else news
        words = [f"said {_cut(text, _SHORT) if detail >= Detail.SHORT else text}" for text in self.words]
        return f"{self.number}.{state} " + "\n ".join(filter(None, (seen, *words, f"did {self.action}")))

    def _news(self, before: "StepText | None") -> str:
        """The observations that the step before does not show already."""
        before_lines = frozenset(before.seen) if before is not None else frozenset()
        news = [line for line in self.seen if line not in before_lines]
        if len(news) == len(self.seen):
            return f"saw {_line(news)}" if news else ""
        return f"saw as before, and {_line(news)}" if news else "saw as before"


Written = Callable[[StepText, Detail, StepText | None], str]


@dataclass(frozen=True)
class Condensed:
    """An episode's text, its number of tokens, and how many steps are missing or, with decisions among them, not shown in full."""

    text: str
    tokens: int
    left_out: int = 0
    shortened: int = 0
    decisions_shortened: int = 0


def in_full(steps: Sequence[StepText], count: Callable[[str], int]) -> Condensed:
    text = _text(steps, [Detail.FULL] * len(steps))
    return Condensed(text, count(text))


def condense(whole: Condensed, steps: Sequence[StepText], budget: int, count: Callable[[str], int]) -> Condensed:
    """Shorten an episode, ``whole`` in full, to ``budget`` tokens; below LEAST_TOKENS it uses LEAST_TOKENS."""
    budget = max(budget, LEAST_TOKENS)
    if whole.tokens <= budget:
        return whole
    losses = _losses(steps)
    written = functools.cache(StepText.written)  # most steps are the same in each of the texts that are tried

    def details(number: int) -> list[Detail]:
        levels = [Detail.FULL] * len(steps)
        for place, detail in losses[:number]:
            levels[place] = detail
        return levels

    levels = details(bisect_left(range(len(losses)), True, key=lambda number: count(_text(steps, details(number), written)) <= budget))
    text = _text(steps, levels, written)
    lost = [step for step, kept, full in _each(steps, levels, written) if kept != full]
    if count(text) > budget:  # tokens of very odd characters
        text, lost = _cut(text, budget // 2), list(steps)
    gone = sum(detail == Detail.GONE for detail in levels)
    return Condensed(text, count(text), gone, len(lost), sum(step.decision for step in lost))


def _losses(steps: Sequence[StepText]) -> list[tuple[int, Detail]]:
    """Losses in order: the step's index and the detail that it is reduced to."""
    ends = {0, len(steps) - 1}
    middle_first = sorted(range(len(steps)), key=lambda place: (-min(place, len(steps) - 1 - place), -place))
    others = [place for place in middle_first if not steps[place].decision and place not in ends]
    outer = [place for place in middle_first if not steps[place].decision and place in ends]
    decisions = [place for place in middle_first if steps[place].decision]
    losses = [(place, detail) for detail in Detail if detail > Detail.FULL for place in others]
    losses += [(place, detail) for detail in Detail if Detail.FULL < detail < Detail.GONE for place in outer]
    losses += [(place, detail) for detail in Detail if Detail.FULL < detail < Detail.GONE for place in decisions]
    return losses + [(place, Detail.GONE) for place in decisions if place not in ends]


def _text(steps: Sequence[StepText], levels: Sequence[Detail], written: Written = StepText.written) -> str:
    """The episode's text; a run of missing steps becomes one line with their number."""
    lines: list[str] = []
    missing = 0
    for _, kept, _ in _each(steps, levels, written):
        if not kept:
            missing += 1
            continue
        lines += [*_gap(missing), kept]
        missing = 0
    return "\n".join([*lines, *_gap(missing)])


def _each(steps: Sequence[StepText], levels: Sequence[Detail], written: Written) -> Iterator[tuple[StepText, str, str]]:
    """Yield each step, its text at the kept detail, and its full text."""
    before: StepText | None = None
    for step, detail in zip(steps, levels, strict=True):
        full = written(step, Detail.FULL, before)
        kept = full if detail == Detail.FULL else written(step, detail, before)
        yield step, kept, full
        # the next step is compared with the last step whose observations stand in the text
        if kept == full and (step.seen or before is None):
            before = step
        elif kept == full or detail < Detail.ACTION:
            before = replace(step, seen=before.seen if before is not None else ())


def _gap(missing: int) -> list[str]:
    return [f"[{missing} step{'s' if missing > 1 else ''} left out]"] if missing else []


def _line(pieces: Sequence[str]) -> str:
    return " | ".join(pieces).replace("] | [", "][")


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters] + _CUT


def pieces(text: str) -> list[str]:
    """Split a prompt into lines; a line that is a JSON list gives one piece per entry, a JSON object one piece."""
    return [piece for line in text.splitlines() if line.strip() for piece in _entries(line.strip())]


@functools.lru_cache(maxsize=4096)
def _entries(line: str) -> tuple[str, ...]:
    if len(line) < _JSON_LINE or line[0] not in "[{":
        return (line,)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return (line,)
    return tuple(map(plain, value)) if isinstance(value, list) else (plain(value),)


def plain(value: Any, deep: int = _MOST_DEEP) -> str:
    """A JSON value in few characters: ``key=value`` separated by blanks, numbers in six digits. Levels below ``deep`` are left out."""
    if isinstance(value, dict):
        return " ".join(f"{key}={_inner(entry, deep)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list):
        return ", ".join(_inner(entry, deep) for entry in value)
    return _scalar(value)


def _inner(value: Any, deep: int) -> str:
    if not isinstance(value, dict | list):
        return _scalar(value)
    inside = plain(value, deep - 1) if deep > 0 else "…"
    return f"{{{inside}}}" if isinstance(value, dict) else f"[{inside}]"


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > _LONGEST_BITS:
        return "a very large number"
    return str(value)


def shared_lines(lines: Callable[[], Iterable[str]], most_tokens: int, count: Callable[[str], int]) -> dict[str, str]:
    """Select the lines that save most when numbered, up to ``most_tokens`` tokens: line -> ``[number]``, in order of first occurrence.

    ``lines`` is called twice, so that of a large hour's lines only their hashes and MOST_CANDIDATES of them are in memory.
    """
    times = Counter(hash(line) for line in lines() if len(line) >= _LEAST)  # in order of first occurrence
    # greedy by characters saved; the line itself breaks ties, so the result is deterministic
    candidates = heapq.nsmallest(MOST_CANDIDATES, _repeated(lines(), times), lambda line: (-(times[hash(line)] - 1) * len(line), line))
    left, chosen = most_tokens, dict[int, str]()
    for line in candidates:
        cost = count(line) + _NUMBER_TOKENS
        if cost <= left:
            left -= cost
            chosen[hash(line)] = line
        if left <= _NUMBER_TOKENS:
            break  # no line fits
    return {chosen[key]: f"[{number}]" for number, key in enumerate((key for key in times if key in chosen), 1)}


def _repeated(lines: Iterable[str], times: Mapping[int, int]) -> Iterator[str]:
    left = {key for key, number in times.items() if number > 1}
    for line in lines:
        if (key := hash(line)) in left:
            left.remove(key)
            yield line


def named_lines(common: str, shown: Iterable[str]) -> str:
    """The lines of ``common`` (numbered, one per line) that some shown texts refer to."""
    named = {number for text in shown for number in _REFERENCE.findall(text)}
    return "\n".join(line for line in common.splitlines() if (own := _REFERENCE.match(line)) is not None and own[1] in named)


CONTEXT_SHARE = 0.75  # of a model's context, for a request; the rest is for its thinking and its answer
_MESSAGE_TOKENS = 4  # added to each message by a chat template
_EPISODE_TOKENS = 110  # of an answer: an explanation of two sentences, an id, a score and the JSON around them
_MARK_TOKENS = 4


class ActedPart(NamedTuple):
    """An agent's part: its place in the group's, numbers of the first and last step, P&L in dollars (None where private)."""

    place: int
    first: int
    last: int
    pnl: float | None


@dataclass(frozen=True, kw_only=True)
class RenderedEpisode(Condensed):
    """Rendered episode of an agent, its text raw.

    ``pnl`` is its window P&L in dollars (None where that is private) in ``steps`` steps; ``flags`` are suspicions in its own words and in
    what it alone was served. ``acted`` are its parts, where parts are judged.
    """

    agent_id: str
    flags: tuple[Flag, ...] = ()
    pnl: float | None = None
    steps: int = 0
    acted: tuple[ActedPart, ...] = ()


@dataclass(frozen=True)
class RenderedGroup:
    """Rendered group of one window, episodes in order of agent id.

    ``context`` are sentences on the hour's outcome, ``common`` the numbered lines that episodes name, ``max_episodes`` the number that fits
    one request, ``input_version`` the hash of all that is shown and of the rubric. ``context_flags`` are suspicions in what
    its agents share. ``parts`` are those of the hour to be marked; without any each episode gets one score.
    """

    window: str
    context: tuple[str, ...]
    common: str
    episodes: tuple[RenderedEpisode, ...]
    input_version: str
    max_episodes: int = 16
    context_flags: tuple[Flag, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def left_out(self) -> int:
        return sum(episode.left_out for episode in self.episodes)

    @property
    def steps(self) -> int:
        return sum(episode.steps for episode in self.episodes)

    @property
    def shortened(self) -> int:
        """Steps not shown in full, those left out included."""
        return sum(episode.shortened for episode in self.episodes)

    @property
    def decisions_shortened(self) -> int:
        """Successful trades among the shortened steps."""
        return sum(episode.decisions_shortened for episode in self.episodes)

    @property
    def flags(self) -> dict[str, tuple[Flag, ...]]:
        """Flags by agent id; agents without flags are absent."""
        return {episode.agent_id: episode.flags for episode in self.episodes if episode.flags}


@dataclass(frozen=True)
class JudgeRequest:
    """One request to a judge. Its texts are made of the group whenever they are asked for, so that a plan of many holds them once.

    ``ids`` are opaque id -> agent id in the order of ``shown``; ``server`` is empty where the model's provider answers.
    """

    group: RenderedGroup
    shown: tuple[RenderedEpisode, ...]
    order: int
    part: int
    ids: Mapping[str, str]
    nonce: str
    model: str
    attempt: int = 0
    server: str = ""

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        user = _user_text(self.group, self.shown, list(self.ids), self.nonce)
        return ({"role": "system", "content": system_prompt(by_part=bool(self.group.parts))}, {"role": "user", "content": user})

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer, in the subset that every provider accepts."""
        name, judged = ("marks", {"type": "array", "items": {"type": "number"}}) if self.group.parts else ("score", {"type": "number"})
        entry = {
            "type": "object",
            "properties": {
                # these ids and no others, where a provider holds its model to the schema
                "id": {"type": "string", "enum": list(self.ids)},
                "explanation": {"type": "string"},
                name: judged,
            },
            "required": ["id", "explanation", name],
            "additionalProperties": False,
        }
        return {
            "type": "object",
            "properties": {"scores": {"type": "array", "items": entry}},
            "required": ["scores"],
            "additionalProperties": False,
        }

    @cached_property
    def key(self) -> str:
        """Key of stored answers: SHA-256 of messages, model, rubric version, order, part, attempt, server."""
        content = [self.messages, self.model, RUBRIC_VERSION, self.order, self.part, self.attempt]
        # only where set: keys of the provider's own answers stay as they were
        content += [self.server] if self.server else []
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def tokens(self) -> int:
        """Number of tokens of the messages; computed on demand, as counting is slow."""
        count = token_counter(self.model)
        return sum(count(message["content"]) + _MESSAGE_TOKENS for message in self.messages)

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) * (_EPISODE_TOKENS + len(self.group.parts) * _MARK_TOKENS)

    @property
    def expected_usd(self) -> float | None:
        """Expected dollars; None where the price is unknown."""
        return price(self.model, self.tokens, self.answer_tokens)


def order_rounds(settings: JudgeSettings) -> Iterator[range]:
    """Yield the orders to request while a group's orders disagree, up to an even number each time: every order with its reverse."""
    orders = settings.judge_orders
    yield range(orders)
    while settings.judge_disagreement < 1 and (more := orders + 2 - orders % 2) <= settings.judge_max_orders:
        yield range(orders, more)
        orders = more


def plan_requests(group: RenderedGroup, model: str, order: int, secret: bytes, settings: JudgeSettings) -> list[JudgeRequest]:
    """Requests that show a group once in one order: one, or one per overlapping sub-group."""
    by_agent = {episode.agent_id: episode for episode in group.episodes}
    most = max(MIN_SUBGROUP, min(group.max_episodes, settings.judge_group_size))
    # an order and its reverse have the same split
    seed = int.from_bytes(derived(secret, group, "split", str(order // 2))[:8], "big")
    parts = split(list(by_agent), most, seed)
    shown = [tuple(by_agent[agent] for agent in agents) for agents in parts]
    server = server_of(settings, model)
    return [_arranged(JudgeRequest(group, own, order, part, {}, "", model, server=server), secret) for part, own in enumerate(shown)]


def retry_request(asked: JudgeRequest, attempt: int, secret: bytes) -> JudgeRequest:
    """A request with another order, nonce and ids, for a further try. With new ids a judge cannot give the old answer again."""
    return _arranged(replace(asked, attempt=attempt), secret)


def _arranged(asked: JudgeRequest, secret: bytes) -> JudgeRequest:
    """The request with order, nonce and ids by keyed hash."""
    group, order, part = asked.group, asked.order, str(asked.part)
    again = [f"attempt {asked.attempt}"] if asked.attempt else []  # the first try's bytes are those of the cache
    # order 2n and 2n + 1 hash alike, and the odd one is reversed
    place = {e.agent_id: derived(secret, group, "place", str(order // 2), part, e.agent_id, *again) for e in asked.shown}
    shown = sorted(asked.shown, key=lambda episode: place[episode.agent_id], reverse=order % 2 == 1)
    # nonce and ids must not occur in any shown text, or agents could name them
    text = "\n".join([*group.context, group.common, *(episode.text for episode in shown)])
    nonce = _unused(secret, group, text, 16, "nonce", str(order), part, *again)
    ids: dict[str, str] = {}
    for episode in shown:
        ids[_unused(secret, group, text, 6, "id", str(order), part, episode.agent_id, *again, taken=ids)] = episode.agent_id
    return replace(asked, shown=tuple(shown), ids=ids, nonce=nonce)


def _user_text(group: RenderedGroup, shown: Sequence[RenderedEpisode], ids: Sequence[str], nonce: str) -> str:
    """Text of the user message; agents' text stands only inside tags with the nonce."""
    whole = len(shown) == len(group.episodes)
    # a sub-group does not pay for lines that only other episodes name
    common = group.common if whole else named_lines(group.common, (episode.text for episode in shown))
    lines = [f"{len(shown)} episodes of the hour {group.window}. The nonce of this request is {nonce}."]
    lines += parts_lines(group.window, group.parts)
    if group.context:
        lines += ["What the hour came to:", *_block("context", f'nonce="{nonce}"', nonce, "\n".join(group.context))]
    if common:
        lines += ["What several of the agents were shown, by number:", *_block("common", f'nonce="{nonce}"', nonce, common)]
    for identity, episode in zip(ids, shown, strict=True):
        if episode.pnl is not None:
            # outside of the tags, where no agent can write: this amount is the engine's, not a claim
            lines.append(fill_template(WINDOW_PNL, agent=identity, pnl=episode.pnl, steps=episode.steps))
        lines += parts_pnl(identity, [(own.place + 1, *own[1:]) for own in episode.acted])
        lines += _block("episode", f'nonce="{nonce}" id="{identity}"', nonce, episode.text)
    asked = f"Mark the {len(group.parts)} parts of the" if group.parts else "Score the"
    lines.append(f"{asked} {len(shown)} episodes: {', '.join(ids)}. Answer with JSON only.")
    return "\n".join(lines)


def parts_lines(window: str, parts: Sequence[Part]) -> list[str]:
    """The line that names the parts of an hour by their times; none without parts."""
    named = ", ".join(f"{number} from {time_of(window, part.start)}" for number, part in enumerate(parts, 1))
    return [f"The hour has {len(parts)} parts by time: {named} to {time_of(window, parts[-1].end)}."] if parts else []


def _block(tag: str, attributes: str, nonce: str, text: str) -> list[str]:
    return [f"<{tag} {attributes}>", escaped(text), f'</{tag} nonce="{nonce}">']


def derived(secret: bytes, group: RenderedGroup, *parts: str) -> bytes:
    # none of the names can hold \0, so no two lists of names are joined to the same message
    message = "\0".join((group.window, group.input_version, *parts))
    return hmac.new(secret, message.encode("utf-8", "replace"), hashlib.sha256).digest()


def _unused(secret: bytes, group: RenderedGroup, text: str, digits: int, *parts: str, taken: Mapping[str, str] | None = None) -> str:
    """Hex digits that do not occur in the shown text and are not taken."""
    attempt = 0
    while True:
        candidate = derived(secret, group, *parts, str(attempt)).hex()[:digits]
        if candidate not in text and not (taken and candidate in taken):
            return candidate
        attempt += 1
        # a text made of hex digits: try longer ones
        digits += attempt % 4 == 0
