"""Chats as the world sends them: roles, contents, reasons of an end, log-probabilities.

Serving, recording and training read them here alone, so that an agent is trained on what it was served.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from babylon_rl.errors import RequestRefused

# OpenAI renamed the system's role for newer models; templates know the older name.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_TOOLS = ("tool_calls", "function_call")
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
_CUT = ("length", "content_filter")
UNLIKELY = -9999.0  # a probability of 0, which JSON cannot hold as a logarithm; the value is OpenAI's


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the messages with a known role and one text each; a missing content is an empty text.

    Raises:
        RequestRefused: an unknown role, a call of a tool, or a content that is no text.
    """
    return [_plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain_message(message: Mapping[str, Any], where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise RequestRefused(f"{where} is no message: give a role and a content.", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestRefused(f"{where} has the role {str(role)[:60]!r}: texts of {', '.join(ROLES)} are read.", f"{where}.role")
    for name in _TOOLS:
        if message.get(name):
            raise RequestRefused(f"{where} holds {name}: tools are not served here.", f"{where}.{name}")
    content = message.get("content")
    if content is None:
        content = message.get("refusal")
    return {"role": ROLES[role], "content": _text(content, f"{where}.content")}


def _text(content: Any, where: str) -> str:
    """The text of a content: itself, nothing, or the texts of a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get(_TEXT_PARTS.get(str(part.get("type")), "")) if isinstance(part, Mapping) else None for part in parts]
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
    thoughts = (
        [part for part in content if not isinstance(part, Mapping) or str(part.get("type")) not in _TEXT_PARTS]
        if isinstance(content, list)
        else []
    )
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
    """True where a limit or a filter ended the answer, and not the model."""
    return reason in _CUT


def log_probability(value: Any) -> float | None:
    """Return a log-probability as a finite number, None where it is none; -Infinity is ``UNLIKELY``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e300:
        return None
    return UNLIKELY if value < -1e300 else float(value)
