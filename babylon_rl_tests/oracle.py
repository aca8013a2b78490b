"""What an hour's rows mean, written down a second time: the plain reading that property tests hold the fast one against.

Takes the rows as they were inserted (dicts by column) and nothing of the package that it judges. Where the rules leave a choice, the
comment says which one this is. Speed is no concern here.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Row = dict[str, Any]
_SURROGATES = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_MOST_DIGITS = 300
MOST_DOLLARS = 1e12
_LARGEST = 1.7976931348623157e308


@dataclass
class Hour:
    """One window: ``rejected`` holds reason and faulty places by trajectory id, ``episodes`` every field by agent id."""

    rows: int = 0
    other_lengths: int = 0
    rejected: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    episodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    ready: bool = False


def read_hours(
    trajectories: Iterable[Row], logs: Iterable[Row], *, min_steps: int = 5, min_agents: int = 5, purposes: Sequence[str] = ("action",)
) -> dict[str, Hour]:
    """Every hour that holds a row; calls of ``purposes`` train."""
    hours: dict[str, Hour] = {}
    eligible: dict[tuple[str, str], list[tuple[Row, list[tuple[int, Any]]]]] = {}
    for row in trajectories:
        window = window_of(row)
        hour = hours.setdefault(window, Hour())
        hour.rows += 1
        hour.other_lengths += row["windowHours"] != 1
        steps, reason, paths = judged(row)
        if reason:
            hour.rejected[row["trajectoryId"]] = (reason, paths)
        else:
            eligible.setdefault((window, row["agentId"]), []).append((row, steps))
    held = list(logs)
    for (window, agent), own in eligible.items():
        own.sort(key=lambda found: (found[0]["startTime"], found[0]["trajectoryId"]))
        hours[window].episodes[agent] = _episode(own, held, min_steps, purposes)
    for hour in hours.values():
        hour.ready = sum(episode["usable"] for episode in hour.episodes.values()) >= min_agents
    return hours


def window_of(row: Row) -> str:
    """The canonical "windowId", else the hour of "startTime"."""
    given = row["windowId"]
    named = re.fullmatch(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):00", given) if given else None
    if named:
        try:
            datetime(*(int(part) for part in named.groups()))  # type: ignore[arg-type]
            return str(given)
        except ValueError:
            pass
    return f"{row['startTime']:%Y-%m-%dT%H}:00"


def judged(row: Row) -> tuple[list[tuple[int, Any]], str, frozenset[str]]:
    """The completed steps with their places in stepsJson, or the rejection reason and the places of what is wrong."""
    nothing: frozenset[str] = frozenset()
    if row["isEvaluation"]:
        return [], "evaluation", nothing
    if not row["isTrainingData"]:
        return [], "not_training_data", nothing
    if any((row[column] or "").startswith("benchmark-") for column in ("scenarioId", "windowId")):
        return [], "benchmark", nothing
    try:
        parsed = strict(row["stepsJson"])
    except json.JSONDecodeError as fault:
        return [], "malformed_json", frozenset({f"character {fault.pos}"})
    except (ValueError, RecursionError):
        return [], "malformed_json", nothing
    faults = frozenset(_faults(parsed))
    if faults:
        return [], "malformed_shape", faults
    completed = [(place, step) for place, step in enumerate(parsed) if step["action"]["actionType"] != "pending"]
    if completed and max(abs(_pnl(completed[0][1])), abs(_end_pnl(row, completed))) > MOST_DOLLARS:
        return [], "malformed_shape", nothing
    return completed, "" if completed else "no_steps", nothing


def strict(text: str) -> Any:
    """JSON as the standard has it.

    Raises:
        ValueError: it is not.
        RecursionError: nested more deeply than Python reads.
    """
    parsed = json.loads(text, parse_constant=_refuse, parse_int=lambda digits: float(digits) if len(digits) > _MOST_DIGITS else int(digits))
    expected_low = -1  # where the second half of a pair must stand
    for escape in _SURROGATES.finditer(text):
        unit = int(escape[1][1:], 16) if escape[1].startswith("u") else 0
        is_low = 0xDC00 <= unit <= 0xDFFF
        if is_low != (escape.start() == expected_low):
            raise ValueError("half a pair")
        if expected_low >= 0 and escape.start() > expected_low:
            raise ValueError("half a pair")
        expected_low = escape.end() if 0xD800 <= unit <= 0xDBFF else -1
    if expected_low >= 0:
        raise ValueError("half a pair")
    return parsed


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _faults(parsed: Any) -> Iterator[str]:
    if not isinstance(parsed, list):
        yield "$"
        return
    for place, step in enumerate(parsed):
        path = f"$[{place}]"
        if not isinstance(step, dict):
            yield path
            continue
        state, action = step.get("environmentState"), step.get("action")
        if not isinstance(state, dict):
            yield f"{path}.environmentState"
        else:
            names = ("agentBalance", "agentPnL", "openPositions")
            yield from (f"{path}.environmentState.{name}" for name in names if not number(state.get(name)))
        if not isinstance(action, dict):
            yield f"{path}.action"
        elif not isinstance(action.get("actionType"), str) or action["actionType"] == "":
            yield f"{path}.action.actionType"


def number(value: Any) -> bool:
    """True for a JSON number that a double holds."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _episode(own: list[tuple[Row, list[tuple[int, Any]]]], logs: list[Row], min_steps: int, purposes: Sequence[str]) -> dict[str, Any]:
    steps = [step for _, some in own for _, step in some]
    deltas = [_minus(_end_pnl(row, some), _pnl(some[0][1])) for row, some in own]
    wins, losses = sum(delta > 0 for delta in deltas), sum(delta < 0 for delta in deltas)
    sources: Counter[str] = Counter()
    texts: list[Any] = []
    for row, some in own:
        source, calls = _calls(row, some, [log for log in logs if log["trajectoryId"] == row["trajectoryId"]])
        sources[source] += 1
        texts += _sequences(row, some, calls, purposes, logged=source == "llm_call_logs")
    start, end = _pnl(steps[0]), _end_pnl(*own[-1])
    done = [step["action"]["actionType"] for step in steps if step["action"].get("success") is True]
    return {
        "trajectory_ids": tuple(row["trajectoryId"] for row, _ in own),
        "used_ids": tuple(row["trajectoryId"] for row, _ in own if row["usedInTraining"]),
        "steps": len(steps),
        "start_pnl": start,
        "end_pnl": end,
        "window_pnl": _minus(end, start),
        "wins": wins,
        "losses": losses,
        "win_rate": wins / (wins + losses) if wins + losses else None,
        "trades": sum(kind != "HOLD" and any(word in kind for word in ("TRADING", "BUY", "SELL")) for kind in done),
        "posts": sum("POST" in kind for kind in done),
        "message_sources": {source: sources[source] for source in ("embedded", "llm_call_logs", "synthetic")},
        "actions": dict(Counter(step["action"]["actionType"].replace("\0", "\ufffd") for step in steps)),
        "usable": len(steps) >= min_steps,
        "trainable_sequences": len(texts),
        "sequences": texts,
    }


def _pnl(step: Any) -> float:
    return float(step["environmentState"]["agentPnL"])


def _minus(end: float, start: float) -> float:
    return max(-_LARGEST, min(_LARGEST, end - start))  # kept finite


def _end_pnl(row: Row, steps: list[tuple[int, Any]]) -> float:
    if row["finalPnL"] is not None and math.isfinite(row["finalPnL"]):  # infinite as NaN: no P&L
        return float(row["finalPnL"])
    try:
        metrics = strict(row["metricsJson"])
    except (ValueError, RecursionError):
        metrics = None
    recorded = metrics.get("finalPnL") if isinstance(metrics, dict) else None
    return float(recorded) if recorded is not None and number(recorded) else _pnl(steps[-1][1])


def _calls(row: Row, steps: list[tuple[int, Any]], logs: list[Row]) -> tuple[str, dict[int, list[Row]]]:
    """The message source, and the calls by the place of their step."""
    embedded = {place: _objects(step.get("llmCalls")) for place, step in steps}
    if any(embedded.values()):
        return "embedded", embedded
    if not logs:
        return "synthetic", {}
    calls: dict[int, list[Row]] = {}
    for log in sorted(logs, key=lambda log: (log["timestamp"], log["callId"])):
        place = _step_of(log, row["trajectoryId"], strict(row["stepsJson"]))
        if place is not None:
            calls.setdefault(place, []).append(log)
    return "llm_call_logs", calls


def _objects(value: Any) -> list[Row]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _step_of(log: Row, trajectory_id: str, steps: list[Any]) -> int | None:
    """A step that is named but not there takes its call along; a call before all steps is the first's; of equal numbers the last counts."""
    named = re.fullmatch(re.escape(trajectory_id) + "-step-([0-9]+)", log["stepId"])
    if named:
        places = [place for place, step in enumerate(steps) if step_number(step, place) == int(named[1])]
        return places[-1] if places else None
    moment = log["timestamp"].replace(tzinfo=UTC).timestamp() * 1000
    begun = [place for place, step in enumerate(steps) if number(step.get("timestamp")) and step["timestamp"] <= moment]
    return begun[-1] if begun else 0


def step_number(step: Any, place: int) -> int:
    """stepNumber where it is a whole number, else the place in stepsJson."""
    recorded = step.get("stepNumber")
    whole = type(recorded) is int or (type(recorded) is float and recorded.is_integer())
    return int(recorded) if whole else place


def _sequences(
    row: Row, steps: list[tuple[int, Any]], calls: dict[int, list[Row]], purposes: Sequence[str], *, logged: bool
) -> Iterator[Any]:
    """(trajectory, step, messages, response) of every call that trains; without a prompt or an answer there is no sequence."""
    for place, step in steps:
        own = calls.get(place, [])
        trading = any(word in step["action"]["actionType"] for word in ("TRADING", "BUY", "SELL", "HOLD"))
        first_does = trading and "action" in purposes and not any(call.get("purpose") == "action" for call in own)
        for call in [call for index, call in enumerate(own) if call.get("purpose") in purposes or (first_does and index == 0)]:
            messages, response = _messages(call, logged), call.get("response")
            if messages and isinstance(response, str) and response:
                yield row["trajectoryId"], step_number(step, place), messages, response


def _messages(call: Row, logged: bool) -> list[tuple[str, str]]:
    system, user = call.get("systemPrompt"), call.get("userPrompt")
    recorded = _chat(call["messagesJson"]) if logged else []
    if recorded:
        return recorded
    if not isinstance(user, str) or not user:
        return []
    return [("system", system), ("user", user)] if isinstance(system, str) and system else [("user", user)]


def _whole(content: Any) -> Any:
    return content.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if isinstance(content, str) else content


def _chat(text: str | None) -> list[tuple[str, str]]:
    """The messages of a log where they are texts by role that end with what the user asked; half of a surrogate pair is U+FFFD."""
    try:
        found = json.loads(text or "null", parse_constant=lambda _: None, strict=False)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        return []
    chat = [(message.get("role"), _whole(message.get("content"))) for message in found]
    valid = all(role in ("system", "user", "assistant") and isinstance(content, str) for role, content in chat)
    return chat if valid and chat and chat[-1][0] == "user" and chat[-1][1] else []
