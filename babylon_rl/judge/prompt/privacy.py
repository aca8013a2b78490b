"""Privacy: fields of an episode that are sent to a judge, and agents' names, which never are.

A private field (JUDGE_PRIVATE_FIELDS) is dropped, or replaced by a keyed hash that only distinguishes equal texts from different ones. An
agent's id, and a name that is nothing but a name, is replaced wherever it stands as whole words. Players choose their names, and one that
is also a term of the market, an action, a key or an ordinary word would change everybody's texts: it is replaced only at marked places.
"""

import functools
import hashlib
import hmac
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from babylon_rl.errors import SettingsError
from babylon_rl.judge.client import judge_addresses
from babylon_rl.judge.prompt.templates import TEMPLATES, system_prompt
from babylon_rl.llm.tokens import token_counter
from babylon_rl.settings import JudgeSettings, Settings

Treatment = Literal["drop", "hash"]

FIELDS: Mapping[str, str] = {
    "system_prompt": "the system prompt of each LLM call that an agent was served",
    "user_prompt": "the user prompt of each call: balance, markets, stocks, the feed as the agent saw it",
    "response": "what the model answered in each call",
    "reasoning": "the reasoning recorded beside an action or a call",
    "parameters": "the parameters of each action: market or ticker, side, size, price",
    "result": "the result or the error of each action",
    "posts": "texts that an agent posted: in the parameters and the answer of an action that posts or comments",
    "messages": "texts that an agent sent: in the parameters and the answer of an action that sends a message",
    "state": "balance, P&L and open positions at the beginning of each step",
    "pnl": "each agent's P&L over the hour",
    "market": "the hour's prices, probabilities and official answers",
    "news": "the hour's news",
    "hidden_answers": "the engine's own answers to the hour's questions",
    "game_knowledge": "gameKnowledge as trajectories recorded it",
}
_ENTRY = re.compile(r"(?P<name>[A-Za-z_]+(?:\.[A-Za-z0-9_]+)?)(?:=(?P<how>drop|hash))?")

THIS_AGENT, ANOTHER_AGENT = "[this agent]", "[another agent]"
LEAST_NAME = 4  # characters; a shorter one is taken for a word
_WORD = re.compile(r"\w+")
_KEYED = r"""\b(?:display|user|agent|author|sender|recipient)_?(?:name|id)?["']?\s*[=:]\s*["'@]*"""
_YOU = r"\byou(?:'re| are)\s+"
_MARKED = re.compile(rf"(?:{_KEYED}|@|{_YOU})$", re.IGNORECASE)
_MARK_CHARACTERS = 40  # before a name, in which its mark must stand
# Fixed words of steps (render.py, request.py): a name that is one of them would garble every step if it were replaced everywhere.
_STEPS_WORDS = "saw as before said why did failed balance p&l open steps left out cut this agent another agent market question"


@dataclass(frozen=True)
class PrivateFields:
    """Private fields with their treatment, and private keys of ``parameters`` or ``result``."""

    fields: Mapping[str, Treatment] = field(default_factory=dict)
    secret: bytes = b""

    def text(self, name: str, value: str) -> str:
        """A field's text as sent: unchanged, empty, or hashed."""
        how = self.fields.get(name)
        if how is None or not value:
            return value
        return "" if how == "drop" else self._hash(value)

    def allows(self, name: str) -> bool:
        """True for a field that is sent unchanged."""
        return name not in self.fields

    def entries(self, name: str, value: Any) -> Any:
        """``parameters`` or ``result`` without their private keys, at any depth."""
        if isinstance(value, list):
            return [self.entries(name, entry) for entry in value]
        if not isinstance(value, dict):
            return value
        remaining = {}
        for key, entry in value.items():
            how = self.fields.get(f"{name}.{key}")
            if how is None:
                remaining[key] = self.entries(name, entry)
            elif how == "hash":
                remaining[key] = self._hash(str(entry))
        return remaining

    def _hash(self, value: str) -> str:
        return f"#{hmac.new(self.secret, value.encode('utf-8', 'replace'), hashlib.sha256).hexdigest()[:12]}"


def private_fields(settings: JudgeSettings, secret: bytes = b"") -> PrivateFields:
    """Parse JUDGE_PRIVATE_FIELDS; hashes are keyed with ``secret``. Raises SettingsError: it names an unknown field."""
    treatments: dict[str, Treatment] = {}
    for entry in filter(None, (part.strip() for part in settings.judge_private_fields.split(","))):
        match = _ENTRY.fullmatch(entry)
        name = match["name"] if match is not None else ""
        if match is None or (name not in FIELDS and name.split(".")[0] not in ("parameters", "result")):
            known = ", ".join(FIELDS)
            raise SettingsError(
                f"JUDGE_PRIVATE_FIELDS names {entry!r}: write NAME or NAME=hash, separated by commas, NAME one of {known}, "
                "or parameters.KEY or result.KEY."
            )
        treatments[name] = "hash" if match["how"] == "hash" else "drop"
    return PrivateFields(treatments, secret)


def fields_that_leave(settings: JudgeSettings) -> dict[str, str]:
    """``leaves``, ``dropped`` or ``hashed`` by field, in request order, then by private key of an action."""
    words = {"drop": "dropped", "hash": "hashed"}
    private = {name: words[how] for name, how in private_fields(settings).fields.items()}
    return dict.fromkeys(FIELDS, "leaves") | private


def what_leaves(settings: Settings) -> str:
    """Sentence on the data that is sent to judges with these settings. Raises as ``private_fields``."""
    listed = fields_that_leave(settings)
    addresses = judge_addresses(settings, settings.judge_model, settings.judge_audit_model)
    if not addresses:
        return "heuristic: nothing leaves the machine"
    remaining = [f"{name} {how}" for name, how in listed.items() if how != "leaves"]
    leaving = ", ".join(name for name, how in listed.items() if how == "leaves")
    return f"to {addresses} go: {leaving}; kept back: {', '.join([*remaining, 'ids and names of agents'])}"


class HourVocabulary:
    """Names that an hour also uses as words, and that must not be replaced everywhere.

    These words are its market's ``terms``, its actions and keys, and ordinary words in use. Steps are added in portions, and none is kept.
    """

    def __init__(self, terms: Iterable[str], names: Collection[str]) -> None:
        known = {term.casefold() for term in terms}
        self._names = names
        # names, casefolded, that stand for nothing else so far
        self._free = {small for small in map(str.casefold, names) if small not in known and not _is_taken(small)}
        self._ordinary = set(filter(_is_ordinary, self._free))

    def add(self, keys: Iterable[str], texts: Collection[str]) -> None:
        """Look for the names among the keys of some steps, and in their texts."""
        self._free -= {key.casefold() for key in keys}
        self._free -= {small for small in self._ordinary & self._free if any(_stands_unmarked(small, text) for text in texts)}

    @property
    def words(self) -> set[str]:
        """Names that also occur as words with another meaning."""
        return {name for name in self._names if name.casefold() not in self._free}


def name_replacer(
    agent_id: str, names: Mapping[str, Sequence[str]], aliases: Mapping[str, str], words: Collection[str] = frozenset()
) -> Callable[[str], str]:
    """A function that replaces agents' names by ``[this agent]`` and ``[another agent]``, and questions by short names; it caches.

    ``names`` are each agent's, its id among them; those in ``words`` are replaced at marked places only. ``aliases`` are questions' ids
    and texts with their short names.
    """
    replacements: dict[str, tuple[str, bool]] = {}
    for is_id in (False, True):  # an id is the agent's whose it is, and a name that two agents have is one's own
        for agent in sorted(names, key=lambda agent: (agent == agent_id, agent)):
            short = THIS_AGENT if agent == agent_id else ANOTHER_AGENT
            own = [name for name in names[agent] if name and (name == agent) == is_id]
            replacements |= {name.casefold(): (short, name in words) for name in own}
    replacements |= {name.casefold(): (short, False) for name, short in aliases.items() if name}
    # longest first, or a name inside a longer one would split that
    ordered = sorted(replacements, key=lambda small: (-len(small), small))
    # A name stands in a text only where its first word does.
    by_word: dict[str, list[int]] = {}
    for place, small in enumerate(ordered):
        word = _WORD.match(small)
        by_word.setdefault(word[0] if word else "", []).append(place)

    @functools.cache
    def renamed(text: str) -> str:
        folded = text.casefold()
        known = by_word.keys() & {"", *_WORD.findall(folded)}
        for small in (ordered[place] for place in sorted(place for word in known for place in by_word[word])):
            if small in folded:
                short, marked = replacements[small]
                text = _at_marks(small).sub(rf"\g<mark>{short}", text) if marked else _whole(small).sub(short, text)
        return text

    return renamed


@functools.lru_cache(maxsize=4096)
def _whole(name: str) -> re.Pattern[str]:
    """Pattern of the name as whole words, in any case."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


@functools.lru_cache(maxsize=4096)
def _at_marks(name: str) -> re.Pattern[str]:
    """Pattern of the name at marked places. These are ``@name``, the value of a key such as ``agentName``, and ``You are name,``."""
    word = re.escape(name)
    address = rf"{_YOU}(?={word}\s*(?:[,.;:(\n]|$))"  # "you are long 40 shares" marks none
    return re.compile(rf"(?P<mark>{_KEYED}|(?<!\w)@|{address}){word}(?!\w)", re.IGNORECASE)


@functools.cache
def _own_words() -> str:
    return " ".join([system_prompt(), *(re.sub(r"\{.*?\}", " ", template.text) for template in TEMPLATES), _STEPS_WORDS])


def _is_taken(small: str) -> bool:
    """True for a name that is too short, without a letter, or in the request's texts."""
    return len(small) < LEAST_NAME or not any(map(str.isalpha, small)) or _whole(small).search(_own_words()) is not None


def _is_ordinary(name: str) -> bool:
    """True if each word is a single token, as common words are. Made-up names are not; given names may be."""
    words = re.split(r"[\s_-]+", name)
    count = token_counter("openai/gpt-4o")  # loaded at the first use, as the import of an encoding is slow
    return all(word.isalpha() and 1 in (count(word), count(f" {word}")) for word in words)


def _stands_unmarked(name: str, text: str) -> bool:
    """True if the name occurs in small letters where no name is marked."""
    if name not in text:
        return False
    places = (match.start() for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text))
    return any(_MARKED.search(text[max(0, start - _MARK_CHARACTERS) : start]) is None for start in places)
