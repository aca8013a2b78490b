"""Personal fields that are dropped from recorded calls, or replaced by a hash: RECORD_PRIVATE_FIELDS."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import SettingsError
from babylon_rl.settings import Settings

PRIVATE_FIELDS = ("agent", "prompts", "response", "reasoning", "provider_accesses")
_PRIVATE_COLUMNS = (
    ("systemPrompt", "prompts"), ("userPrompt", "prompts"), ("messagesJson", "prompts"), ("response", "response"),
    ("reasoning", "reasoning"),
)  # fmt: skip
# Tokens and tool calls spell the answer out.
_PRIVATE_METADATA = (
    ("tools", "prompts"), ("logprobs", "response"), ("toolCalls", "response"), ("otherChoices", "response"),
    ("providerAccesses", "provider_accesses"),
)  # fmt: skip


@dataclass(frozen=True)
class RecordedPrivacy:
    """Treatment of personal fields in recorded calls: RECORD_PRIVATE_FIELDS."""

    fields: dict[str, str]
    secret: bytes

    @classmethod
    def of(cls, settings: Settings) -> "RecordedPrivacy":
        """Parse the setting; hashes are keyed with RECORD_HASH_KEY, or a secret in the state directory.

        Raises:
            SettingsError: a name or a treatment that does not exist.
        """
        fields = _treatments(settings)
        if "hash" not in fields.values():
            return cls(fields, b"")
        key = settings.record_hash_key
        return cls(fields, _secret(settings.home / "gateway" / "secret") if key is None else key.get_secret_value().encode())

    def apply(self, call: dict[str, Any], log: dict[str, Any] | None) -> None:
        """Drop or hash the private fields of a call's rows.

        A call without its prompts or its answer does not train.
        """
        if not self.fields:
            return
        agent = call["agentId"] = self._agent(call["agentId"])
        if log is None:
            return
        metadata = {**msgspec.json.decode(log["metadata"]), "agentId": agent}
        for column, name in _PRIVATE_COLUMNS:
            if name in self.fields:
                log[column] = "" if column in ("systemPrompt", "userPrompt", "response") else None
        for key, name in _PRIVATE_METADATA:
            if name in self.fields:
                metadata.pop(key, None)
        log["metadata"] = msgspec.json.encode(metadata).decode()

    def _agent(self, value: str | None) -> str | None:
        how = self.fields.get("agent")
        if how is None or not value:
            return value
        return f"#{hmac.new(self.secret, value.encode(), hashlib.sha256).hexdigest()[:16]}" if how == "hash" else None


def hides_agents(settings: Settings) -> bool:
    """True where recorded calls do not name their agents.

    Routing and episodes do: calls and hours of an agent are then not found together.

    Raises:
        SettingsError: RECORD_PRIVATE_FIELDS holds a name or a treatment that does not exist.
    """
    return "agent" in _treatments(settings)


def _treatments(settings: Settings) -> dict[str, str]:
    fields = {}
    for entry in filter(None, (part.strip() for part in settings.record_private_fields.split(","))):
        name, _, how = entry.partition("=")
        if name not in PRIVATE_FIELDS or how not in (("", "hash") if name == "agent" else ("",)):
            raise SettingsError(f"RECORD_PRIVATE_FIELDS holds {entry!r}: choose of agent, agent=hash, {', '.join(PRIVATE_FIELDS[1:])}.")
        fields[name] = how
    return fields


def _secret(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        partial.write_bytes(secrets.token_bytes(32))
        partial.chmod(0o600)
        partial.replace(path)
    return path.read_bytes()
