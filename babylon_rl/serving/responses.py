"""OpenAI's Responses API over the gateway's chat completions: request, answer and stream are translated, the call itself is a chat.

Nothing is stored: what refers to an earlier answer is refused by its name, as are tools that OpenAI itself runs.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from time import time
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from babylon_rl.api_errors import ApiError
from babylon_rl.chats import finish_reason
from babylon_rl.http_server import BODY_TIMEOUT_S, read_body
from babylon_rl.serving.chat_request import BODY_LIMIT, read_object
from babylon_rl.serving.server_sent_events import Event as ChatEvent
from babylon_rl.serving.server_sent_events import StreamReader, Usage, read_usage
from babylon_rl.tolerant_json import joined, objects, part_of, read_json, whole_text

# Fields that need stored answers, or programs at OpenAI, and the values of theirs that ask for nothing.
_STATEFUL: Mapping[str, tuple[Any, ...]] = {
    "previous_response_id": (), "conversation": (), "prompt": (), "background": (False,), "truncation": ("disabled",),
    "max_tool_calls": (), "context_management": ([],),
}  # fmt: skip
# Fields of the answer, or of what OpenAI keeps of it; those of ``_translated`` have other names in a chat.
_NOT_SENT = ("store", "metadata", "include", "stream_options")
_INCLUDED = ("reasoning.encrypted_content", "message.output_text.logprobs")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED: Mapping[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True, "reasoning": {}, "temperature": None,
    "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": None, "user": None,
}  # fmt: skip
Event = dict[str, Any]
C = TypeVar("C", dict[str, Any], list[Any])


class ResponsesEndpoint:
    """ASGI endpoint of /v1/responses in front of that of chats."""

    def __init__(self, chats: ASGIApp) -> None:
        self._chats = chats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers: list[ResponseObject] = []
        start: MutableMapping[str, Any] = {}

        async def as_chat() -> MutableMapping[str, Any]:
            # Read when the endpoint of chats asks for it: without a key no client makes the gateway take megabytes.
            if answers:
                return await receive()
            document, _ = read_object(await read_body(receive, BODY_LIMIT, BODY_TIMEOUT_S))
            chat = chat_request(document)
            answers.append(ResponseObject(document))
            return {"type": "http.request", "body": msgspec.json.encode(chat)}

        async def translated(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            if start["status"] != 200:
                await send(message)
            elif answers[0].streamed:
                shown = {**message, "body": answers[0].events(message["body"])} if "body" in message else message
                if shown.get("body") or not message.get("more_body"):
                    await send(shown)
            elif "body" in message:
                body = answers[0].whole(message["body"])
                length = (b"content-length", str(len(body)).encode())
                await send({**start, "headers": [length, *(pair for pair in start["headers"] if pair[0] != length[0])]})
                await send({**message, "body": body})

        await self._chats(scope, as_chat, translated)


def chat_request(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request of the Responses API as one of chat completions. Raises ApiError: a field that needs stored answers."""
    given = {name: value for name, value in document.items() if value is not None}
    for name, neutral in _STATEFUL.items():
        if name in given and given.pop(name) not in neutral:
            raise _refused(name, f"{name} is not served here: nothing is stored. Send the whole input, and leave {name} out.")
    for place, name in enumerate(included := _of_type(given, "include", [], "a list")):
        if name not in _INCLUDED:
            raise _refused(f"include[{place}]", f"include[{place}] is {str(name)[:80]}: served are {', '.join(_INCLUDED)}.")
    instructions = given.pop("instructions", None)
    messages = [{"role": "system", "content": instructions}] if instructions else []
    messages += _messages(given.pop("input", []))
    if not messages:
        raise _refused("input", "input is empty: give a text, or a list of items.")
    chat = {name: value for name, value in given.items() if name not in _NOT_SENT} | {"messages": messages}
    text, reasoning = _of_type(chat, "text", {}, "an object"), _of_type(chat, "reasoning", {}, "an object")
    chat |= {
        "text": None, "reasoning": None,
        "max_tokens": chat.pop("max_output_tokens", None), "reasoning_effort": reasoning.get("effort"), "verbosity": text.get("verbosity"),
        "response_format": _chat_format(text.get("format")), "tool_choice": _chat_choice(chat.get("tool_choice")),
        "tools": [_chat_tool(tool, f"tools[{place}]") for place, tool in enumerate(_of_type(chat, "tools", [], "a list"))] or None,
        "stream_options": {"include_usage": True} if chat.get("stream") else None,
        "logprobs": True if _INCLUDED[1] in included or chat.get("top_logprobs") else None,
    }  # fmt: skip
    return {name: value for name, value in chat.items() if value is not None}


def _refused(param: str, message: str) -> ApiError:
    return ApiError(400, message, "unsupported_parameter", param)


def _of_type(given: Mapping[str, Any], name: str, empty: C, noun: str) -> C:
    value = given.get(name, empty)
    if not isinstance(value, type(empty)):
        raise ApiError(400, f"{name} is not {noun}.", "invalid_type", name)
    return value


def _chat_format(form: Any) -> dict[str, Any] | None:
    if not isinstance(form, dict) or form.get("type") == "text":
        return None
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type" and value is not None}}


def _chat_tool(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise _refused(where, f"{where} is {str(kind)[:80]}: only tools of type function are served, which the client runs itself.")
    named = {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": named}


def _chat_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise _refused("tool_choice", f"tool_choice {str(choice.get('type'))[:80]} is not served: give none, auto, required or a function.")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _messages(given: Any) -> list[dict[str, Any]]:
    """The messages of a chat that mean the same as a list of items; calls of tools join the message before them."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages: list[dict[str, Any]] = []
    for place, item in enumerate(items if isinstance(items, list) else [items]):
        where = f"input[{place}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
        if kind == "message" and isinstance(item.get("role"), str):
            message = {"role": item.get("role"), "content": _content(item.get("content"), f"{where}.content")}
            if message["role"] == "assistant" and last is not None and last["content"] is None:
                last["content"] = message["content"]
            else:
                messages.append(message)
        elif kind == "function_call":
            if last is None:
                messages.append(last := {"role": "assistant", "content": None})
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            last.setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": function})
        elif kind == "function_call_output":
            output = _content(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        # A chat has no place for a model's earlier reasoning, and servers leave it out of their prompts.
        elif kind != "reasoning":
            advice = "send the item itself (AI SDK: store: false)" if kind == "item_reference" else "send messages and function calls"
            raise _refused(where, f"{where} is {str(kind)[:80]}, which is not served here, as nothing is stored: {advice}.")
    return messages


def _content(content: Any, where: str) -> Any:
    """A content of text parts as one text, of others as a chat's parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [_part(part, f"{where}[{place}]") for place, part in enumerate(content if isinstance(content, list) else [content])]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = str(part.get("type")) if isinstance(part, dict) else ""
    text = part.get(_TEXTS[kind]) if kind in _TEXTS else None
    if isinstance(text, str):
        return {"type": "text", "text": text}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail") or "auto"}}
    raise _refused(where, f"{where} is {kind[:80] or 'no part'}: texts are served, and images by their address.")


@dataclass(eq=False)
class _Item:
    """One item of the output, and the events of its text; ``kind`` is output_text, refusal or function_call."""

    kind: str
    place: int
    item: dict[str, Any]
    half: str = ""

    @property
    def names(self) -> dict[str, Any]:
        return {"item_id": self.item["id"], "output_index": self.place} | ({} if self.is_call else {"content_index": 0})

    @property
    def is_call(self) -> bool:
        return self.kind == "function_call"

    @property
    def held(self) -> tuple[dict[str, Any], str]:
        """Where its text stands."""
        if self.is_call:
            return self.item, "arguments"
        return self.item["content"][0], "text" if self.kind == "output_text" else "refusal"

    def added(self, text: str) -> str:
        """Add to its text; return what is whole by now, as half of a surrogate pair waits for the other."""
        text = joined(self.half, text)
        self.half = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        text = whole_text(text.removesuffix(self.half))
        holder, name = self.held
        holder[name] += text
        return text

    def done(self, status: str) -> Iterator[Event]:
        self.item["status"] = status
        holder, name = self.held
        end = {"type": f"response.{self.kind}{'_arguments' if self.is_call else ''}.done", name: holder[name], **self.names}
        if self.is_call:
            end["name"] = self.item["name"]
        elif self.kind == "output_text":
            end["logprobs"] = holder["logprobs"]
        yield end
        if not self.is_call:
            yield {"type": "response.content_part.done", "part": holder, **self.names}
        yield {"type": "response.output_item.done", "output_index": self.place, "item": self.item}


class ResponseObject:
    """One answer of a chat, whole or by its chunks, as the Responses API has it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.streamed = document.get("stream") is True
        self._with_logprobs = _INCLUDED[1] in (document.get("include") or ())
        given = {name: document[name] for name in _ECHOED if document.get(name) is not None}
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid4().hex}", "object": "response", "created_at": int(time()), "status": "in_progress", "background": False,
            "error": None, "incomplete_details": None, "model": document.get("model"), "output": [], "previous_response_id": None,
            "store": False, "truncation": "disabled", "usage": None, **_ECHOED, **given,
        }  # fmt: skip
        self._items: list[_Item] = []
        self._calls: dict[int | None, _Item] = {}
        self._reader = StreamReader()
        self._finish = ""
        self._number = 0

    def whole(self, body: bytes) -> bytes:
        for _ in (*self._read(read_json(body), "message"), *self._ended()):
            pass
        return _encoded(self._response)

    def events(self, chunks: bytes) -> bytes:
        """The events that those of a chat become."""
        encoded = []
        # Each is encoded before the next is made, as the response in it goes on to change.
        for event in self._answered(self._reader.feed(chunks)):
            data = _encoded(event | {"sequence_number": self._number})
            encoded.append(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data))
            self._number += 1
        return b"".join(encoded)

    def _answered(self, chunks: Iterable[ChatEvent]) -> Iterator[Event]:
        if not self._number:
            yield {"type": "response.created", "response": self._response}
            yield {"type": "response.in_progress", "response": self._response}
        for chunk in chunks:
            yield from self._ended() if chunk.closes else self._read(chunk.chunk, "delta")
        if (fault := self._reader.fault) is not None and self._response["status"] != "failed":
            named = {"code": fault.get("code") or "server_error", "message": fault.get("message"), "param": fault.get("param")}
            yield {"type": "error", **named, "error": {"type": "server_error", **fault}}
            self._response |= {"status": "failed", "error": {"code": "server_error", "message": named["message"]}}
            yield {"type": "response.failed", "response": self._response}

    def _read(self, chunk: Mapping[str, Any], name: str) -> Iterator[Event]:
        self._response["model"] = chunk.get("model") or self._response["model"]
        if (usage := read_usage(chunk)) is not None:
            self._response["usage"] = _usage(usage, part_of(chunk, "usage"))
        for choice in objects(chunk.get("choices")):
            if choice.get("index"):
                continue
            said = part_of(choice, name)
            self._finish = finish_reason(choice.get("finish_reason")) or self._finish
            entries = objects(part_of(choice, "logprobs").get("content")) if self._with_logprobs else []
            for kind, field in (("output_text", "content"), ("refusal", "refusal")):
                if text := _text(said.get(field)):
                    yield from self._said(kind, text, entries)
            for piece in objects(said.get("tool_calls")):
                yield from self._called(piece)

    def _said(self, kind: str, text: str, entries: list[Any]) -> Iterator[Event]:
        item = next((one for one in self._items if one.kind == kind), None)
        if item is None:
            item = yield from self._begun(kind, {"type": "message", "role": "assistant", "content": []}, "msg")
            part = {"type": kind, "text": "", "annotations": [], "logprobs": []} if kind == "output_text" else {"type": kind, "refusal": ""}
            item.item["content"].append(part)
            yield {"type": "response.content_part.added", "part": part, **item.names}
        holder = item.held[0]
        delta = {"type": f"response.{kind}.delta", "delta": item.added(text), **item.names}
        if kind == "output_text":
            holder["logprobs"] += entries
            delta["logprobs"] = entries
        yield delta

    def _called(self, piece: dict[str, Any]) -> Iterator[Event]:
        """Begin or continue a call of a tool; a piece names its call by index, by id, or by both."""
        function, call_id = part_of(piece, "function"), _text(piece.get("id"))
        index = piece.get("index")
        place = index if isinstance(index, int) else None
        item = self._calls.get(place)
        if item is None or place is None or call_id not in ("", item.item["call_id"]):
            call = {"call_id": call_id or f"call_{uuid4().hex}", "name": _text(function.get("name")), "arguments": ""}
            item = self._calls[place] = yield from self._begun("function_call", {"type": "function_call", **call}, "fc")
        if text := _text(function.get("arguments")):
            yield {"type": "response.function_call_arguments.delta", "delta": item.added(text), **item.names}

    def _begun(self, kind: str, item: dict[str, Any], prefix: str) -> Generator[Event, None, _Item]:
        begun = _Item(kind, len(self._items), {"id": f"{prefix}_{uuid4().hex}", "status": "in_progress", **item})
        self._items.append(begun)
        yield {"type": "response.output_item.added", "output_index": begun.place, "item": begun.item}
        return begun

    def _ended(self) -> Iterator[Event]:
        # An answer without any text is an empty one.
        if not self._items:
            yield from self._said("output_text", "", [])
        cut = _INCOMPLETE.get(self._finish)
        status = "completed" if cut is None else "incomplete"
        for item in self._items:
            yield from item.done(status)
        self._response |= {"status": status, "output": [item.item for item in self._items]}
        self._response["incomplete_details"] = None if cut is None else {"reason": cut}
        yield {"type": f"response.{status}", "response": self._response}


def _encoded(document: dict[str, Any]) -> bytes:
    # The text of a token may be half of a surrogate pair, which this escapes.
    return json.dumps(document, separators=(",", ":")).encode()


def _text(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _usage(usage: Usage, details: dict[str, Any]) -> dict[str, Any]:
    cached, thought = part_of(details, "prompt_tokens_details"), part_of(details, "completion_tokens_details")
    sent, made = usage.prompt_tokens or 0, usage.completion_tokens
    return {
        "input_tokens": sent, "input_tokens_details": {"cached_tokens": cached.get("cached_tokens") or 0}, "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": thought.get("reasoning_tokens") or 0},
        "total_tokens": usage.total_tokens or sent + made,
    }  # fmt: skip
