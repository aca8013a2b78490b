"""Personal fields that are dropped from recorded calls, or replaced by a hash: RECORD_PRIVATE_FIELDS.

Every function here raises SettingsError for a name or a treatment in it that does not exist.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import SettingsError
from babylon_rl.files.durable import write_atomically
from babylon_rl.settings import Settings

# Columns that a field leaves empty, and entries of the metadata that it removes: tokens and tool calls spell the answer out.
_PRIVATE: dict[str, tuple[dict[str, str | None], tuple[str, ...]]] = {
    "agent": ({}, ()),
    "prompts": ({"systemPrompt": "", "userPrompt": "", "messagesJson": None}, ("tools",)),
    "response": ({"response": ""}, ("logprobs", "toolCalls", "otherChoices")),
    "reasoning": ({"reasoning": None}, ()),
    "provider_accesses": ({}, ("providerAccesses",)),
}


@dataclass(frozen=True)
class RecordedPrivacy:
    """Treatment of personal fields in recorded calls: RECORD_PRIVATE_FIELDS."""

    fields: dict[str, str]
    secret: bytes

    @classmethod
    def of(cls, settings: Settings) -> "RecordedPrivacy":
        """Parse the setting; hashes are keyed with RECORD_HASH_KEY, or a secret in the state directory."""
        fields = _treatments(settings)
        return cls(fields, (_key(settings) or _new_secret(_secret_path(settings))) if fields.get("agent") == "hash" else b"")

    def apply(self, call: dict[str, Any], log: dict[str, Any] | None) -> None:
        """Drop or hash the private fields of a call's rows."""
        if not self.fields:
            return
        agent, how = call["agentId"], self.fields.get("agent")
        if agent and how is not None:
            agent = call["agentId"] = _hashed(self.secret, agent) if how == "hash" else None
        if log is None:
            return
        metadata = {**msgspec.json.decode(log["metadata"]), "agentId": agent}
        for name in self.fields:
            emptied, removed = _PRIVATE[name]
            log.update(emptied)
            for key in removed:
                metadata.pop(key, None)
        log["metadata"] = msgspec.json.encode(metadata).decode()


def hides_agents(settings: Settings) -> bool:
    """True where recorded calls do not name their agents."""
    return "agent" in _treatments(settings)


def agent_hash(settings: Settings) -> Callable[[str], str] | None:
    """Return the hash that stands for an agent in recorded calls; None without one or its key."""
    key = _key(settings) if _treatments(settings).get("agent") == "hash" else None
    return None if key is None else partial(_hashed, key)


def why_agents_unknown(settings: Settings) -> str | None:
    """Return why no recorded call is found with its agent's hour; None where calls are."""
    how = _treatments(settings).get("agent")
    if how is None or agent_hash(settings) is not None:
        return None
    why = "hashes agents with a key that is not known here: set RECORD_HASH_KEY" if how else "keeps agents out of recorded calls"
    return f"RECORD_PRIVATE_FIELDS {why}, so that no agent's hour can be judged"


def _treatments(settings: Settings) -> dict[str, str]:
    fields = {}
    for entry in filter(None, (part.strip() for part in settings.record_private_fields.split(","))):
        name, _, how = entry.partition("=")
        if name not in _PRIVATE or how not in (("", "hash") if name == "agent" else ("",)):
            raise SettingsError(f"RECORD_PRIVATE_FIELDS holds {entry!r}: choose of agent, agent=hash, {', '.join(list(_PRIVATE)[1:])}.")
        fields[name] = how
    return fields


def _hashed(key: bytes, agent: str) -> str:
    return f"#{hmac.new(key, agent.encode(), hashlib.sha256).hexdigest()[:16]}"


def _key(settings: Settings) -> bytes | None:
    """RECORD_HASH_KEY, or the secret of a gateway with the same state directory."""
    if settings.record_hash_key is not None:
        return settings.record_hash_key.get_secret_value().encode()
    path = _secret_path(settings)
    return path.read_bytes() if path.exists() else None


def _secret_path(settings: Settings) -> Path:
    return settings.home / "gateway" / "secret"


def _new_secret(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        own = path.with_name(f"secret.{secrets.token_hex(4)}")
        write_atomically(own, secrets.token_bytes(32), private=True)
        # The file is whole before it gets this name, and only one process can give it.
        with suppress(FileExistsError):  # that of a gateway which was faster
            path.hardlink_to(own)
        own.unlink()
    return path.read_bytes()
