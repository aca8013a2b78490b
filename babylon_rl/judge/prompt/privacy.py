"""Privacy: fields of an episode that are sent to a judge, and JUDGE_PRIVATE_FIELDS.

A private field is dropped, or replaced by a keyed hash that only distinguishes equal texts from different ones. Agents' ids and names
are never sent, whatever the setting says.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from babylon_rl.errors import SettingsError
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
    """Parse JUDGE_PRIVATE_FIELDS; hashes are keyed with ``secret``.

    Raises:
        SettingsError: it names an unknown field.
    """
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
    """``leaves``, ``dropped`` or ``hashed`` by field, in request order, then by private key of an action.

    Raises:
        SettingsError: JUDGE_PRIVATE_FIELDS names a field that there is not.
    """
    words = {"drop": "dropped", "hash": "hashed"}
    private = {name: words[how] for name, how in private_fields(settings).fields.items()}
    hidden = () if settings.show_hidden_answers_to_judge else ("hidden_answers", "game_knowledge")
    return dict.fromkeys(FIELDS, "leaves") | private | dict.fromkeys(hidden, "dropped")


def what_leaves(settings: Settings) -> str:
    """Sentence on the data that is sent to judges with these settings.

    Raises:
        SettingsError: JUDGE_PRIVATE_FIELDS names a field that there is not.
    """
    from babylon_rl.judge.client import judge_addresses

    listed = fields_that_leave(settings)
    addresses = judge_addresses(settings, settings.judge_model, settings.judge_audit_model)
    if not addresses:
        return "heuristic: nothing leaves the machine"
    remaining = [f"{name} {how}" for name, how in listed.items() if how != "leaves"]
    leaving = ", ".join(name for name, how in listed.items() if how == "leaves")
    return f"to {addresses} go: {leaving}; kept back: {', '.join([*remaining, 'ids and names of agents'])}"
