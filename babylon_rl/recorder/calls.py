"""One model request as served: its JSON in the step and its row of llm_call_logs.

A step's JSON has room for one system and one user text. A chat with more messages is recorded whole in ``messagesJson`` only, and the
steps of its trajectory then hold no calls, so that readers take all of them from llm_call_logs.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.chats import TOOLS, UNLIKELY, field_of, plain_message, plain_messages
from babylon_rl.errors import UsageError
from babylon_rl.recorder.values import MOST_IN_INTEGER, count, dump, label, mapping, number, shown, text

PURPOSES = ("action", "reasoning", "evaluation", "response", "other")
# Prefix under which some servers return a token's id in place of its text.
_TOKEN_ID = re.compile(r"token_id:(\d{1,18})", re.ASCII)


@dataclass(frozen=True)
class CheckedCall:
    """A checked call in its two recorded forms.

    ``json`` is its text in a step, ``columns`` its row without ids and times. ``one_prompt`` is False for a chat that the step's form
    cannot hold.
    """

    json: str
    columns: dict[str, Any]
    one_prompt: bool


def make_call(
    *, model: str, messages: Iterable[Any], response: Any, temperature: float, max_tokens: int, purpose: str,
    action_type: str | None, latency_ms: float | None, model_version: str | None, reasoning: str | None, top_p: float | None,
    response_format: Mapping[str, Any] | None, logprobs: Any, tokens: tuple[int, int] | None, finish_reason: str | None,
) -> CheckedCall:  # fmt: skip
    """Build the call of ``TrajectoryRecorder.llm_call``. Raises UsageError: a value cannot be recorded."""
    served = served_messages(messages)
    system, user = texts_of(served, "system"), texts_of(served, "user")
    if purpose not in PURPOSES:
        raise UsageError(f"purpose is {purpose!r}: give one of {', '.join(PURPOSES)}. Only action trains by default.")
    prompt, completion = _token_counts(tokens)
    latency = None if latency_ms is None else number(latency_ms, "latency_ms")
    call = {
        "model": label(model, "model"), "modelVersion": None if model_version is None else label(model_version, "model_version"),
        "systemPrompt": system, "userPrompt": user, "response": _answer(response),
        "reasoning": None if reasoning is None else text(reasoning, "reasoning"), "temperature": number(temperature, "temperature"),
        "maxTokens": count(max_tokens, "max_tokens"), "topP": None if top_p is None else number(top_p, "top_p"),
        "latencyMs": latency, "purpose": purpose, "actionType": None if action_type is None else label(action_type, "action_type"),
        "responseFormat": None if response_format is None else mapping(response_format, "response_format"),
        "logprobs": token_logprobs(logprobs),
        "promptTokens": prompt, "completionTokens": completion,
        "finishReason": None if finish_reason is None else label(finish_reason, "finish_reason"),
    }  # fmt: skip
    # The step's JSON leaves out missing values; the row has a column for each.
    present = {key: value for key, value in call.items() if value is not None}
    metadata = {key: present[key] for key in ("modelVersion", "responseFormat", "logprobs", "finishReason") if key in present}
    columns = {
        "latencyMs": min(max(round(latency or 0), 0), MOST_IN_INTEGER), "model": call["model"], "purpose": purpose,
        "actionType": call["actionType"], "systemPrompt": system, "userPrompt": user, "messagesJson": dump(served, "messages"),
        "response": call["response"], "reasoning": call["reasoning"], "temperature": call["temperature"],
        "maxTokens": call["maxTokens"], "topP": call["topP"], "promptTokens": prompt, "completionTokens": completion,
        "totalTokens": prompt + completion if prompt is not None and completion is not None else None,
        "metadata": dump(metadata, "response_format or logprobs"),
    }  # fmt: skip
    # Only these two forms fit into a step.
    roles = [message["role"] for message in served]
    return CheckedCall(dump(present, "llm_call"), columns, roles in (["system", "user"], ["user"]))


def served_messages(messages: Iterable[Any]) -> list[dict[str, str]]:
    """Return a chat as texts that can be stored. Raises UsageError: no sequence can hold it."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise UsageError(f"messages is {shown(messages)}: give the list of messages that the model was asked.")
    # An empty system text is the same as none.
    served = [
        {"role": message["role"], "content": text(message["content"], "content")}
        for message in plain_messages(messages)
        if message["content"] or message["role"] != "system"
    ]
    if not served or served[-1]["role"] != "user":
        raise UsageError("messages must end with the user's: give exactly what the model was asked; without its prompt nothing trains.")
    return served


def _answer(response: Any) -> str:
    """The text of an answer: a text, a list of text parts or a message; nothing where the model only called a tool."""
    if response is None or isinstance(response, str | list | tuple):
        response = {"role": "assistant", "content": response}
    elif not isinstance(response, Mapping) and not hasattr(response, "content"):
        raise UsageError(f"response is {shown(response)}, not a text.")
    if not field_of(response, "content") and any(field_of(response, name) for name in TOOLS):
        return ""
    return text(plain_message(response, "response")["content"], "response")


def _token_counts(tokens: tuple[int, int] | None) -> tuple[int, int] | tuple[None, None]:
    if tokens is None:
        return None, None
    if not isinstance(tokens, tuple | list) or len(tokens) != 2:
        raise UsageError(f"tokens is {shown(tokens)}: give the counts of prompt and completion.")
    return count(tokens[0], "tokens[0]"), count(tokens[1], "tokens[1]")


def texts_of(messages: Sequence[Mapping[str, str]], role: str) -> str:
    """Return the texts of a role as one that can be stored."""
    return text("\n\n".join(message["content"] for message in messages if message["role"] == role), role)


def token_logprobs(logprobs: Any) -> list[dict[str, Any]] | None:
    """Return an answer's tokens as [{"token", "logprob", "tokenId"}], or None without any.

    Accepts that form, and the ``choice.logprobs`` or ``choice.logprobs.content`` of an OpenAI-compatible endpoint (objects or dicts).
    ``tokenId`` is left out if the endpoint reports none: it is never derived from the text.

    Raises:
        UsageError: an entry without a token or a log-probability; -Infinity is recorded as -9999, as OpenAI writes it.
    """
    content = field_of(logprobs, "content") if isinstance(logprobs, Mapping) or hasattr(logprobs, "content") else logprobs
    if content is None:
        return None
    if isinstance(content, str) or not isinstance(content, Iterable):
        raise UsageError(f"logprobs is {shown(logprobs)}: give the answer's tokens, or the endpoint's choice.logprobs as it came.")
    return [_token(entry, index) for index, entry in enumerate(content)] or None


def _token(entry: Any, index: int) -> dict[str, Any]:
    where = f"logprobs[{index}]"
    token = text(field_of(entry, "token"), f"{where}.token")
    token_id = field_of(entry, "tokenId") if field_of(entry, "tokenId") is not None else field_of(entry, "token_id")
    if token_id is None and (named := _TOKEN_ID.fullmatch(token)) is not None:
        token_id = int(named[1])
    id_field = {} if token_id is None else {"tokenId": count(token_id, f"{where}.tokenId")}
    logprob = field_of(entry, "logprob")
    value = UNLIKELY if logprob == -math.inf else number(logprob, f"{where}.logprob")
    return {"token": token, "logprob": value, **id_field}
