"""Requests to a judge, made of a rendered group: messages, opaque ids, order and key.

A rendered group (render.py) holds raw texts, which are escaped here. Ids, orders and keys are derived from a stored secret and the
content. The same content gives the same bytes, so a cache can answer; without the secret no id and no nonce can be predicted. Order 2n + 1
is order 2n reversed: a preference of the judge for a place cancels out between the two.
"""

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from babylon_rl.judge.client import server_of
from babylon_rl.judge.consensus import MIN_SUBGROUP, split
from babylon_rl.judge.prompt.condense import named_lines
from babylon_rl.judge.prompt.injection import Flag, escaped
from babylon_rl.judge.prompt.rubric import RUBRIC_VERSION, system_prompt
from babylon_rl.judge.prompt.templates import WINDOW_PNL, fill_template
from babylon_rl.llm.tokens import token_counter
from babylon_rl.settings import JudgeSettings

CONTEXT_SHARE = 0.75  # of a model's context, for a request; the rest is for its thinking and its answer
_MESSAGE_TOKENS = 4  # added to each message by a chat template


@dataclass(frozen=True)
class RenderedEpisode:
    """Rendered episode: raw ``text`` of ``tokens`` tokens without ``left_out`` steps.

    ``pnl`` is its window P&L in dollars (None where that is private) in ``steps`` steps; ``flags`` are suspicions in its own words and in
    what it alone was served. ``shortened`` counts the steps, and ``decisions_shortened`` the trades among them, that are not shown in full.
    """

    agent_id: str
    text: str
    tokens: int
    left_out: int
    flags: tuple[Flag, ...] = ()
    pnl: float | None = None
    steps: int = 0
    shortened: int = 0
    decisions_shortened: int = 0


@dataclass(frozen=True)
class RenderedGroup:
    """Rendered group of one window, episodes in order of agent id.

    ``context`` are sentences on the hour's outcome, ``common`` the numbered lines that episodes name, ``max_episodes`` the number that fits
    one request, ``input_version`` the hash of all that is shown and of the rubric. ``context_flags`` are suspicions in what
    its agents share.
    """

    window: str
    context: tuple[str, ...]
    common: str
    episodes: tuple[RenderedEpisode, ...]
    input_version: str
    max_episodes: int = 16
    context_flags: tuple[Flag, ...] = ()

    @property
    def left_out(self) -> int:
        """Steps left out, over all episodes."""
        return sum(episode.left_out for episode in self.episodes)

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
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
    """One request to a judge.

    Its texts are made of the group whenever they are asked for, so that a plan of many holds them once.

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
    def window(self) -> str:
        """The group's hour."""
        return self.group.window

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """Messages as they are sent."""
        user = _user_text(self.group, self.shown, list(self.ids), self.nonce)
        return ({"role": "system", "content": system_prompt()}, {"role": "user", "content": user})

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer, in the subset that every provider accepts."""
        entry = {
            "type": "object",
            "properties": {
                # these ids and no others, where a provider holds its model to the schema
                "id": {"type": "string", "enum": list(self.ids)},
                "explanation": {"type": "string"},
                "score": {"type": "number"},
            },
            "required": ["id", "explanation", "score"],
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


def order_rounds(settings: JudgeSettings) -> Iterator[range]:
    """Yield the orders to ask for one after another while a group's orders disagree.

    Up to an even number each time, so that every order comes with its reverse: only between the two does a preference for a place cancel
    out.
    """
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
    server = server_of(settings, model)
    return [_request(group, [by_agent[agent] for agent in agents], model, order, part, secret, server) for part, agents in enumerate(parts)]


def retry_request(asked: JudgeRequest, attempt: int, secret: bytes) -> JudgeRequest:
    """A request with another order, nonce and ids, for a further try.

    With new ids a judge cannot give the old answer again.
    """
    return _request(asked.group, asked.shown, asked.model, asked.order, asked.part, secret, asked.server, attempt)


def _request(
    group: RenderedGroup,
    episodes: Sequence[RenderedEpisode],
    model: str,
    order: int,
    part: int,
    secret: bytes,
    server: str,
    attempt: int = 0,
) -> JudgeRequest:
    """Build one request: order, nonce and ids by keyed hash, then the messages."""
    again = [f"attempt {attempt}"] if attempt else []  # the first try's bytes are those of the cache
    # order 2n and 2n + 1 hash alike, and the odd one is reversed
    place = {
        episode.agent_id: derived(secret, group, "place", str(order // 2), str(part), episode.agent_id, *again) for episode in episodes
    }
    shown = sorted(episodes, key=lambda episode: place[episode.agent_id], reverse=order % 2 == 1)
    # nonce and ids must not occur in any shown text, or agents could name them
    text = "\n".join([*group.context, group.common, *(episode.text for episode in shown)])
    nonce = _unused(secret, group, text, 16, "nonce", str(order), str(part), *again)
    ids: dict[str, str] = {}
    for episode in shown:
        ids[_unused(secret, group, text, 6, "id", str(order), str(part), episode.agent_id, *again, taken=ids)] = episode.agent_id
    return JudgeRequest(group, tuple(shown), order, part, ids, nonce, model, attempt, server)


def _user_text(group: RenderedGroup, shown: Sequence[RenderedEpisode], ids: Sequence[str], nonce: str) -> str:
    """Text of the user message; agents' text stands only inside tags with the nonce."""
    whole = len(shown) == len(group.episodes)
    # a sub-group does not pay for lines that only other episodes name
    common = group.common if whole else named_lines(group.common, (episode.text for episode in shown))
    lines = [f"{len(shown)} episodes of the hour {group.window}. The nonce of this request is {nonce}."]
    if group.context:
        lines += ["What the hour came to:", *_block("context", f'nonce="{nonce}"', nonce, "\n".join(group.context))]
    if common:
        lines += ["What several of the agents were shown, by number:", *_block("common", f'nonce="{nonce}"', nonce, common)]
    for identity, episode in zip(ids, shown, strict=True):
        if episode.pnl is not None:
            # outside of the tags, where no agent can write: this amount is the engine's, not a claim
            lines.append(fill_template(WINDOW_PNL, agent=identity, pnl=episode.pnl, steps=episode.steps))
        lines += _block("episode", f'nonce="{nonce}" id="{identity}"', nonce, episode.text)
    lines.append(f"Score the {len(shown)} episodes: {', '.join(ids)}. Answer with JSON only.")
    return "\n".join(lines)


def _block(tag: str, attributes: str, nonce: str, text: str) -> list[str]:
    return [f"<{tag} {attributes}>", escaped(text), f'</{tag} nonce="{nonce}">']


def derived(secret: bytes, group: RenderedGroup, *parts: str) -> bytes:
    """Keyed hash of the group and some names."""
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
