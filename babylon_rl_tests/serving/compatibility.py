"""What servers do with the parameters of a chat, measured; docs/reference/compatibility.md shows it, a column for each server."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from babylon_rl_tests.store.servers import ROOT

PAGE = ROOT / "docs" / "reference" / "compatibility.md"
SERVED, REFUSED, IGNORED, PASSED_ON = "served", "refused", "ignored", "passed on"
MESSAGES = [{"role": "user", "content": "The price of TESLAI rose. Say what you do, and why."}]
Ask = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Probe:
    """A parameter, and whether an answer shows that it was heeded: ``shows(ask, fields)``."""

    fields: Mapping[str, Any]
    shows: Callable[[Ask, dict[str, Any]], bool]


class Refused(Exception):
    """A server answered with an error of the request."""


def asking(post: Callable[[dict[str, Any]], httpx2.Response], model: str = "base") -> Ask:
    """``ask(**fields)``: the answer to a greedy request with these fields; of a stream what its chunks make."""

    def ask(**fields: Any) -> dict[str, Any]:
        response = post({"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 24} | fields)
        if 400 <= response.status_code < 500:
            raise Refused(response.text)
        assert response.status_code == 200, response.text
        if not fields.get("stream"):
            return response.json()
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
        return chunks[-1] | {"choices": [{"message": {"content": said}}], "chunks": len(chunks)}

    return ask


def outcome(probe: Probe, ask: Ask) -> str:
    """What a server does with a parameter."""
    try:
        return SERVED if probe.shows(ask, dict(probe.fields)) else IGNORED
    except Refused:
        return REFUSED


def check_column(server: str, measured: Mapping[str, str]) -> None:
    """The page's column of a server is what was measured; UPDATE_SNAPSHOT=1 writes it."""
    lines = PAGE.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| parameter |"))
    column = _cells(lines[first]).index(server)
    rows = {number: _cells(lines[number]) for number in range(first + 2, first + 2 + len(PROBES))}
    if os.environ.get("UPDATE_SNAPSHOT"):
        for number, name in zip(rows, measured, strict=True):
            cells = rows[number]
            lines[number] = "| " + " | ".join([name, *cells[1:column], measured[name], *cells[column + 1 :]]) + " |"
        PAGE.write_text("\n".join(lines) + "\n")
    else:
        assert {cells[0]: cells[column] for cells in rows.values()} == measured


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def _entries(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return (answer["choices"][0].get("logprobs") or {}).get("content") or []


def _changes(ask: Ask, fields: dict[str, Any]) -> bool:
    return _text(ask(**fields)) != _text(ask(**{name: fields[name] for name in fields if name in ("max_tokens", "messages")}))


def _repeats(ask: Ask, fields: dict[str, Any]) -> bool:
    return _text(ask(**fields)) == _text(ask(**fields)) != _text(ask(**fields | {"seed": 2}))


def _is_narrow(ask: Ask, fields: dict[str, Any]) -> bool:
    return _text(ask(**fields)) == _text(ask(**fields | {"seed": 2}))


def _has_ids(ask: Ask, fields: dict[str, Any]) -> bool:
    answer = ask(**fields)
    return "token_ids" in answer["choices"][0] or all("token_id" in entry for entry in _entries(answer))


def _stops(ask: Ask, fields: dict[str, Any]) -> bool:
    whole = _text(ask())
    stop = whole[len(whole) // 2 :][:4]
    return _text(ask(stop=[stop])) == whole[: whole.index(stop)]


def _is_banned(ask: Ask, fields: dict[str, Any]) -> bool:
    first = _entries(ask(logprobs=True, return_tokens_as_token_ids=True, max_tokens=1))[0]
    token = first.get("token_id", first["token"].removeprefix("token_id:"))
    return _text(ask(logit_bias={str(token): -100})) != _text(ask())


def _holds(schema_keys: set[str] | None) -> Callable[[Ask, dict[str, Any]], bool]:
    def shows(ask: Ask, fields: dict[str, Any]) -> bool:
        try:
            value = json.loads(_text(ask(**fields)))
        except ValueError:
            return False
        return isinstance(value, dict) and (schema_keys is None or set(value) == schema_keys)

    return shows


def _schema(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "decision", "strict": True, "schema": schema}}


_REPETITION = [{"role": "user", "content": "Say it again, many times: buy buy buy buy buy buy buy buy"}]
_TOOL = {"type": "function", "function": {"name": "buy", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
PROBES: dict[str, Probe] = {
    "`temperature`": Probe({"temperature": 1.9, "seed": 5}, _changes),
    "`seed`": Probe({"temperature": 1.5, "seed": 1}, _repeats),
    "`top_p`": Probe({"temperature": 1.5, "seed": 1, "top_p": 0.0001}, _is_narrow),
    "`max_tokens`": Probe({"max_tokens": 3}, lambda ask, fields: ask(**fields)["usage"]["completion_tokens"] == 3),
    "`max_completion_tokens`": Probe({"max_completion_tokens": 3}, lambda ask, fields: ask(**fields)["usage"]["completion_tokens"] == 3),
    "`stop`": Probe({"stop": ["\n"]}, _stops),
    "`n`": Probe({"n": 2, "temperature": 1}, lambda ask, fields: len(ask(**fields)["choices"]) == 2),
    "`logprobs`": Probe({"logprobs": True}, lambda ask, fields: bool(_entries(ask(**fields)))),
    "`top_logprobs`": Probe(
        {"logprobs": True, "top_logprobs": 3}, lambda ask, fields: all(len(entry["top_logprobs"]) >= 3 for entry in _entries(ask(**fields)))
    ),
    "`return_token_ids`": Probe({"logprobs": True, "return_token_ids": True}, _has_ids),
    "`frequency_penalty`": Probe({"frequency_penalty": 2.0, "messages": _REPETITION}, _changes),
    "`presence_penalty`": Probe({"presence_penalty": 2.0, "messages": _REPETITION}, _changes),
    "`logit_bias`": Probe({"logit_bias": {"28": -100}}, _is_banned),
    "`stream`": Probe({"stream": True}, lambda ask, fields: _text(answer := ask(**fields)) == _text(ask()) and answer["chunks"] > 3),
    "`stream_options.include_usage`": Probe(
        {"stream": True, "stream_options": {"include_usage": True}}, lambda ask, fields: ask(**fields)["usage"]["completion_tokens"] > 0
    ),
    "`response_format` json_schema, finitely many answers": Probe(
        {"response_format": _schema({"action": {"enum": ["buy", "sell"]}}), "max_tokens": 60}, _holds({"action"})
    ),
    "`response_format` json_schema, any other": Probe(
        {"response_format": _schema({"reason": {"type": "string", "maxLength": 20}}), "max_tokens": 120}, _holds({"reason"})
    ),
    "`response_format` json_object": Probe(
        {"response_format": {"type": "json_object"}, "max_tokens": 120, "messages": [{"role": "user", "content": "{}"}]}, _holds(None)
    ),
    "`tools`, `tool_choice` required": Probe(
        {"tools": [_TOOL], "tool_choice": "required", "max_tokens": 120},
        lambda ask, fields: bool(ask(**fields)["choices"][0]["message"].get("tool_calls")),
    ),
    "`tools`, `tool_choice` auto": Probe({"tools": [_TOOL], "tool_choice": "auto"}, lambda ask, fields: bool(ask(**fields)["choices"])),
    "a field that nobody knows": Probe({"no_such_field": 1}, lambda ask, fields: ask(**fields) is None),
}  # fmt: skip
