"""Chats as clients and servers send them: roles, contents, finish reasons, log-probabilities.

Serving, recording and training read them here alone, so that an agent is trained on what it was served.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from babylon_rl.errors import RequestRefused

# OpenAI renamed the system's role for newer models; templates know the older name.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# LangChain's messages have a type in place of a role.
_TYPES = {"system": "system", "human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
TOOLS = ("tool_calls", "function_call")
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
UNLIKELY = -9999.0  # a probability of 0, which JSON cannot hold as a logarithm; the value is OpenAI's


def plain_messages(messages: Iterable[Any]) -> list[dict[str, str]]:
    """Return ``plain_message`` of each message."""
    return [plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def plain_message(message: Any, where: str) -> dict[str, str]:
    """Return one message, a mapping or an object of a client library, with a known role and one text; ``where`` is its name in errors.

    A missing content is an empty text.

    Raises:
        RequestRefused: an unknown role, a call of a tool, or a content that is no text.
    """
    role = field_of(message, "role")
    if role is None:
        role = _TYPES.get(str(field_of(message, "type")))
    if role is None and not isinstance(message, Mapping):
        raise RequestRefused(f"{where} is no message: give a role and a content.", where)
    if not isinstance(role, str) or role not in ROLES:
        raise RequestRefused(f"{where} has the role {str(role)[:60]!r}: texts of {', '.join(ROLES)} are read.", f"{where}.role")
    for name in TOOLS:
        if field_of(message, name):
            raise RequestRefused(f"{where} holds {name}: tools are not served here.", f"{where}.{name}")
    content = field_of(message, "content")
    if content is None:
        content = field_of(message, "refusal")
    return {"role": ROLES[role], "content": _text(content, f"{where}.content")}


def field_of(entry: Any, name: str) -> Any:
    """Return a field of a mapping or an attribute of an object, None without it."""
    return entry.get(name) if isinstance(entry, Mapping) else getattr(entry, name, None)


def _text(content: Any, where: str) -> str:
    """The text of a content: itself, nothing, or the texts of a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part if isinstance(part, str) else field_of(part, _TEXT_PARTS.get(str(field_of(part, "type")), "")) for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RequestRefused(f"{where} is neither a text nor a list of text parts: only texts are read.", where)
    return "".join(map(str, texts))


def answered_text(message: Mapping[str, Any]) -> str | None:
    """The text of a model's answer: its content, or the text parts of it, or its refusal; None without one."""
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping)]
        texts = [part.get(_TEXT_PARTS.get(str(part.get("type")), "")) for part in parts]
        content = "".join(text for text in texts if isinstance(text, str)) or None
    text = content if isinstance(content, str) else None
    return text or (refusal if isinstance(refusal, str) else text)


def reasoning_of(message: Mapping[str, Any]) -> tuple[str, str]:
    """The field of an answer that holds the model's thinking, and its text; both empty without one."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    thoughts = [part for part in parts if not isinstance(part, Mapping) or str(part.get("type")) not in _TEXT_PARTS]
    for name, value in [*((name, message.get(name)) for name in _REASONING), ("content", thoughts)]:
        if (text := "".join(_thoughts(value))).strip():
            return name, text
    return "", ""


def _thoughts(value: Any, deep: int = 5) -> Iterator[str]:
    """Yield the texts of a field of thinking, which servers send as a text or as nested parts; ``deep`` bounds the nesting."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and deep:
        yield from _thoughts(next((value[name] for name in ("thinking", "text", "summary") if value.get(name)), None), deep - 1)
    elif isinstance(value, list) and deep:
        for part in value:
            yield from _thoughts(part, deep - 1)


def finish_reason(recorded: Any) -> str | None:
    """Return a recorded reason in OpenAI's spelling, None where none is known. The AI SDK writes a hyphen, others capitals."""
    name = recorded.lower().replace("-", "_") if isinstance(recorded, str) else ""
    return name if name in FINISH_REASONS else None


def is_cut(reason: str | None) -> bool:
    """True if a limit or a filter ended the answer, not the model."""
    return reason in ("length", "content_filter")


def log_probability(value: Any) -> float | None:
    """Return a log-probability as a finite number, None where it is none; -Infinity is ``UNLIKELY``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e300:
        return None
    return UNLIKELY if value < -1e300 else float(value)
