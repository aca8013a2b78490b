"""One call through the gateway as it is spooled, and the rows that it becomes.

Requests and answers are spooled as they went over the wire and read only when they are written, off the path of the answer.
"""

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from babylon_rl.chats import answered_text, log_probability, reasoning_of
from babylon_rl.errors import UsageError
from babylon_rl.recorder.calls import served_messages, texts_of, token_logprobs
from babylon_rl.recorder.values import MOST_IN_INTEGER, dump, number, text
from babylon_rl.serving.server_sent_events import Event, StreamReader, place_of
from babylon_rl.tolerant_json import joined, objects, part_of, read_json

_STEP_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


class CallEntry(msgspec.Struct, frozen=True, array_like=True):
    """A call as spooled in MessagePack: ``answer`` is JSON or server-sent events, ``request`` None where texts are not recorded."""

    call_id: str
    request_id: str
    at_ms: int
    agent_id: str | None
    key_name: str | None
    trajectory_id: str | None
    step: str | None
    purpose: str
    action_type: str | None
    provider_accesses: list[Any]
    chosen_version: str | None
    version: str | None
    arm: str
    reason: str
    model: str
    fallback: str | None
    status: int
    latency_ms: float
    first_token_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    request: bytes | None = None
    answer: bytes | None = None

    @property
    def moment(self) -> str:
        """Time of the request as text, in UTC."""
        return datetime.fromtimestamp(self.at_ms / 1000, UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")

    def call_row(self) -> dict[str, Any]:
        """Row of babylon_rl.gateway_calls."""
        return {
            "callId": self.call_id, "at": self.moment, "agentId": _storable(self.agent_id), "keyName": self.key_name,
            "chosenVersion": self.chosen_version, "version": self.version, "arm": self.arm, "fallback": self.fallback,
            "status": self.status, "latencyMs": round(self.latency_ms, 3), "firstTokenMs": self.first_token_ms,
            "promptTokens": self.prompt_tokens, "completionTokens": self.completion_tokens,
        }  # fmt: skip

    def log_row(self) -> dict[str, Any] | None:
        """Row of llm_call_logs, or None for a call whose texts are not recorded. Raises UsageError: a part cannot be stored.

        Prompts stand in the columns only where readers can build the sequence from them as it was served: texts of system, user and
        assistant, the user's last, without tools. Any other chat is whole in messagesJson alone, and does not train.
        """
        if self.request is None or self.answer is None:
            return None
        request = read_json(self.request)
        answer = _read_answer(self.answer)
        try:
            messages = served_messages(request["messages"])
        except UsageError:  # a chat that no sequence can hold
            messages = None
        served = [] if request.get("tools") or request.get("functions") or answer.tool_calls else messages or []
        # A call outside of every trajectory stands for itself.
        place = self.trajectory_id or self.call_id
        metadata = {
            "modelVersion": self.version, "responseFormat": request.get("response_format"), "logprobs": answer.logprobs,
            "finishReason": answer.finish_reason, "arm": self.arm, "reason": self.reason, "agentId": self.agent_id,
            "requestId": self.request_id, "key": self.key_name, "tools": request.get("tools"), "toolCalls": answer.tool_calls or None,
            "otherChoices": answer.others or None, "providerAccesses": self.provider_accesses or None, "seed": request.get("seed"),
        }  # fmt: skip
        most_tokens = _number(request, "max_completion_tokens", _number(request, "max_tokens", 0))
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {
            "id": self.call_id, "trajectoryId": _storable(place), "stepId": _storable(self._step_id(place)), "callId": self.call_id,
            "timestamp": self.moment, "createdAt": self.moment, "latencyMs": min(round(self.latency_ms), MOST_IN_INTEGER),
            "model": text(answer.model or self.model, "model"), "purpose": self.purpose, "actionType": _storable(self.action_type),
            "systemPrompt": texts_of(served, "system"), "userPrompt": texts_of(served, "user"),
            "messagesJson": dump(messages if messages is not None else request["messages"], "messages"),
            "response": text(answer.content, "content"), "reasoning": _storable(answer.reasoning),
            "temperature": _number(request, "temperature", 1.0), "topP": _number(request, "top_p", None),
            "maxTokens": max(0, min(int(most_tokens or 0), MOST_IN_INTEGER)),
            "promptTokens": prompt, "completionTokens": completion,
            "totalTokens": prompt + completion if prompt is not None and completion is not None else None,
            "metadata": dump({name: value for name, value in metadata.items() if value is not None}, "metadata"),
        }  # fmt: skip

    def _step_id(self, place: str) -> str:
        if self.step is None:
            return self.call_id
        return f"{place}-step-{self.step}" if _STEP_NUMBER.fullmatch(self.step) else self.step


class _Answer(msgspec.Struct):
    """First choice of an answer, whole or joined; ``others`` are the texts of the rest."""

    model: str | None = None
    content: str = ""
    reasoning: str | None = None
    finish_reason: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    tool_calls: list[Any] = []
    others: list[str] = []


def _read_answer(answer: bytes) -> _Answer:
    # Some servers send blank lines until their answer is there.
    if not answer.lstrip().startswith(b"{"):
        return _from_events(StreamReader().feed(answer))
    document = read_json(answer)
    choices = objects(document["choices"])
    return _from_choices(document.get("model"), [(choice, _answer_tokens(choice, part_of(choice, "message"))) for choice in choices])


def _from_choices(model: Any, choices: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> _Answer:
    read = _Answer(model=model if isinstance(model, str) else None)
    for number_of, (choice, tokens) in enumerate(sorted(choices, key=lambda entry: place_of(entry[0]))):
        message = part_of(choice, "message")
        content = answered_text(message) or ""
        # The first choice is the answer; of the others only the texts are kept.
        if number_of:
            read.others.append(content)
            continue
        reason = choice.get("finish_reason")
        read.content, read.finish_reason = content, reason if isinstance(reason, str) else None
        read.reasoning = reasoning_of(message)[1] or None
        read.tool_calls = objects(message.get("tool_calls"))
        if call := part_of(message, "function_call"):
            read.tool_calls.append({"function": call})
        try:
            read.logprobs = token_logprobs([token | {"logprob": log_probability(token.get("logprob"))} for token in tokens])
        except UsageError:
            pass  # an endpoint's odd form costs the log-probabilities, not the call
    return read


def _from_events(events: list[Event]) -> _Answer:
    """Put the choices of a stream together as a server would have sent them whole."""
    whole: dict[int, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for choice in (choice for event in events for choice in event.choices):
        into, tokens = whole.setdefault(place_of(choice), ({"index": place_of(choice), "message": {}}, []))
        message, delta = into["message"], part_of(choice, "delta")
        for name, part in delta.items():
            if isinstance(part, str) and name != "role":
                message[name] = joined(message.get(name) or "", part)
            # Pieces of thinking stand between those of the answer.
            elif name == "content" and isinstance(part, list):
                message[name] = joined(message.get(name) or "", answered_text({name: part}) or "")
                message["reasoning_content"] = joined(message.get("reasoning_content") or "", reasoning_of({name: part})[1])
            elif name == "tool_calls":
                _join_calls(message.setdefault(name, []), objects(part))
            elif name == "function_call" and isinstance(part, dict):
                _join_texts(message.setdefault(name, {}), part)
        into["finish_reason"] = choice.get("finish_reason") or into.get("finish_reason")
        tokens += _answer_tokens(choice, delta)
    model = next((event.chunk["model"] for event in events if event.chunk.get("model")), None)
    return _from_choices(model, list(whole.values()))


def _join_calls(calls: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> None:
    """Add the pieces of a chunk to the calls of tools that their indices name."""
    for piece in pieces:
        place = piece.get("index")
        if not isinstance(place, int) or not 0 <= place < len(calls):
            calls.append({"function": {}})
            place = -1
        calls[place] |= {name: value for name, value in piece.items() if name not in ("index", "function") and value is not None}
        _join_texts(calls[place]["function"], part_of(piece, "function"))


def _join_texts(texts: dict[str, Any], pieces: dict[str, Any]) -> None:
    for name, piece in pieces.items():
        if isinstance(piece, str):
            texts[name] = joined(texts.get(name, ""), piece)


def _answer_tokens(choice: dict[str, Any], message: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens of an answer or of a piece of it, without those of its reasoning, and with the ids that vLLM lists beside them."""
    entries, ids = part_of(choice, "logprobs").get("content"), choice.get("token_ids")
    entries = [entry if isinstance(entry, dict) else {} for entry in entries] if isinstance(entries, list) else []
    if isinstance(ids, list) and len(ids) == len(entries):
        entries = [{"token_id": token_id} | entry for token_id, entry in zip(ids, entries, strict=True)]
    return _last(entries, answered_text(message) or "") if reasoning_of(message)[1] else entries


def _last(entries: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    """The last tokens that make a text, and one of its end; none where no tokens make it."""
    wanted = said.strip().encode(errors="replace")
    for end in (len(entries), len(entries) - 1) if wanted else ():
        made = b""
        for start in range(end - 1, -1, -1):
            made = _bytes(entries[start]) + made
            if made.strip() == wanted:
                return entries[start:]
    return []


def _bytes(entry: dict[str, Any]) -> bytes:
    given = entry.get("bytes")
    try:
        return bytes(given) if isinstance(given, list) else str(entry.get("token")).encode(errors="replace")
    except (ValueError, TypeError):
        return b""


def _number(request: dict[str, Any], name: str, otherwise: Any) -> Any:
    value = request.get(name)
    # True and False are ints in Python.
    return otherwise if value is None or isinstance(value, bool) or not isinstance(value, int | float) else number(value, name)


def _storable(value: str | None) -> str | None:
    return None if value is None else text(value, "a name")
