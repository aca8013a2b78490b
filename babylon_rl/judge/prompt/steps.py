"""Steps of an episode: read as they were recorded, and rendered with all that a judge may see.

Steps count as in ``decode``; their calls come from the steps, otherwise from the log, and texts may hold anything. Rendered, repetitions
appear once: an answer equal to the action's own parameters is left out, as are numbers that the state holds; ids without a meaning are
shortened.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from babylon_rl.episodes.decode import EnvironmentState, Fault, Step, StepCall, decode, recorded_value
from babylon_rl.episodes.trajectories import embedded_calls, logged_calls
from babylon_rl.judge.prompt.condense import StepText, pieces, plain
from babylon_rl.judge.prompt.injection import bounded, flat
from babylon_rl.judge.prompt.privacy import PrivateFields
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import logged_reasoning
from babylon_rl.store.trajectories import call_log_rows, trajectories_by_id

_MOST_DEEP = 6  # levels of parameters and results that are shown
_LONGEST_ACTION = 80  # characters of an action's type, which is free text
_GAME_ID = re.compile(r"\d{12,}")
_DECISIONS = ("BUY", "SELL", "TRADING")  # an action is of a kind if its type contains one of the words
_POSTS, _MESSAGES = ("POST", "COMMENT"), ("MESSAGE", "CHAT", "DM")
_KEY = re.compile(r'"(\w+)"\s*:')
_TEXT_KEYS = ("content", "text", "message", "body", "comment", "post")


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One LLM call: prompts, response, and the reasoning recorded beside it."""

    system: str
    prompt: str
    response: str
    reasoning: str


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One completed step; ``parameters``, ``result`` and ``error`` are as recorded."""

    state: EnvironmentState
    action_type: str
    succeeded: bool
    parameters: Any
    result: Any
    error: Any
    reasoning: str
    calls: tuple[RecordedCall, ...]


def read_transcripts(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, list[RecordedStep]]:
    """Read the steps of some trajectories by id; missing and rejected ones are absent."""
    transcripts: dict[str, list[RecordedStep]] = {}
    silent: dict[str, Sequence[Step]] = {}
    for row in trajectories_by_id(connection, trajectory_ids):
        decoded = decode(row)
        if isinstance(decoded, Fault):
            continue
        steps = decoded.completed
        if any(step.llm_calls for step in steps):
            transcripts[row.trajectory_id] = _recorded(steps, [embedded_calls(step) for step in steps], {})
        else:
            silent[row.trajectory_id] = steps
    # trajectories without calls in their steps may have them in the log
    reasoning = logged_reasoning(connection, list(silent))
    # the rows of the log come in order of their trajectory, as groupby needs
    for trajectory_id, logs in groupby(list(call_log_rows(connection, list(silent))), key=lambda log: log.trajectory_id):
        steps = silent.pop(trajectory_id)
        transcripts[trajectory_id] = _recorded(steps, logged_calls(logs, trajectory_id, steps), reasoning)
    return transcripts | {trajectory_id: _recorded(steps, [()] * len(steps), {}) for trajectory_id, steps in silent.items()}


def _recorded(steps: Sequence[Step], calls: Sequence[Sequence[StepCall]], reasoning: dict[str, str]) -> list[RecordedStep]:
    """Combine decoded steps and their calls."""
    recorded = []
    for step, served in zip(steps, calls, strict=True):
        action = step.action
        # reasons beside a call in the step; those of a logged call come by its id
        notes = [call.reasoning for call in step.llm_calls or ()]
        recorded.append(
            RecordedStep(
                step.environment_state,
                action.action_type,
                action.succeeded,
                _shallow(recorded_value(action.parameters)),
                _shallow(recorded_value(action.result)),
                _shallow(recorded_value(action.error)),
                _text(action.reasoning),
                tuple(_call(call, notes[place] if place < len(notes) else None, reasoning) for place, call in enumerate(served)),
            )
        )
    return recorded


def _shallow(value: Any, deep: int = _MOST_DEEP) -> Any:
    """A JSON value down to ``deep`` levels."""
    if not isinstance(value, dict | list):
        return value
    if deep == 0:
        return "…"
    if isinstance(value, list):
        return [_shallow(entry, deep - 1) for entry in value]
    return {key: _shallow(entry, deep - 1) for key, entry in value.items()}


def _call(call: StepCall, note: Any, reasoning: dict[str, str]) -> RecordedCall:
    """One call with its reasoning: that of the step, else that of the log."""
    system, prompt = _text(call.system_prompt), _text(call.user_prompt)
    if isinstance(call.messages, list) and call.messages and not prompt:
        prompt = "\n".join(_text(message.get("content")) for message in call.messages if isinstance(message, dict))
    logged = reasoning.get(call.call_id, "") if isinstance(call.call_id, str) else ""
    return RecordedCall(system, prompt, _text(call.response), _text(note) or logged)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def keys_and_texts(steps: Sequence[RecordedStep]) -> tuple[set[str], set[str]]:
    """Words of some steps that are not names, and their texts.

    The former are action types, and keys of recorded values and of JSON in texts.
    """
    calls = [call for step in steps for call in step.calls]
    texts = {text for call in calls for text in (call.system, call.prompt, call.response, call.reasoning)}
    texts |= {step.reasoning for step in steps}
    keys = {step.action_type for step in steps} | {key for text in texts for key in _KEY.findall(text)}
    keys.update(*(_keys_of(value) for step in steps for value in (step.parameters, step.result)))
    return keys, texts


def _keys_of(value: Any) -> Iterator[str]:
    """Yield all keys of a JSON value, at any depth."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield str(key)
            yield from _keys_of(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _keys_of(entry)


def render_steps(steps: Sequence[RecordedStep], rename: Callable[[str], str], private: PrivateFields) -> list[StepText]:
    """Render the steps of an episode, numbered from 1."""
    return [_render_step(number, step, rename, private) for number, step in enumerate(steps, 1)]


def _render_step(number: int, step: RecordedStep, rename: Callable[[str], str], private: PrivateFields) -> StepText:
    """Render one step; every text passes through privacy and renaming."""
    seen: list[str] = []
    words: list[str] = []

    def own(text: str) -> str:
        return flat(rename(bounded(text)))

    def served(text: str) -> list[str]:
        return [flat(rename(piece)) for piece in pieces(bounded(text))]

    # prompts and answers
    for call in step.calls:
        seen += served(private.text("system_prompt", call.system))
        seen += served(private.text("user_prompt", call.prompt))
        response = own(_answer(call.response, step, private))
        if response and not _says_the_same(call.response, step):
            words.append(response)
    # reasons, each once: the step and its call often record the same
    for note in dict.fromkeys((step.reasoning, *(call.reasoning for call in step.calls))):
        if reasoning := own(private.text("reasoning", note)):
            words.append(f"(why) {reasoning}")
    # the action with parameters and result
    named = own(plain(_meaningful(_allowed(step, private), step)))
    result = _result(step, private)
    outcome = "" if step.succeeded else " FAILED"
    action = own(step.action_type[:_LONGEST_ACTION]) + outcome
    brief = f"{action} {named}" if named else action
    result_text = own(plain(result)) if result not in (None, {}, "", []) else ""
    held = step.state
    state = f"balance {held.agent_balance:.8g}, P&L {held.agent_pnl:.8g}, {held.open_positions:g} open" if private.allows("state") else ""
    # trades that succeeded are shortened last
    decision = step.succeeded and "HOLD" not in step.action_type and _is(step, _DECISIONS)
    full = f"{brief} -> {result_text}" if result_text else brief
    return StepText(number, tuple(seen), state, tuple(words), full, brief, decision)


def _says_the_same(response: str, step: RecordedStep) -> bool:
    """True for an answer that only repeats the action and its parameters."""
    if response.strip() == step.action_type:
        return True
    if not step.parameters or response.lstrip()[:1] != "{":
        return False
    try:
        value = json.loads(response)
    except (ValueError, RecursionError):
        return False
    # the parameters, and beside them at most one short text such as the action's name
    if not isinstance(value, dict) or len(value) > 2:
        return False
    return any(entry == step.parameters for entry in value.values()) and all(
        entry == step.parameters or (isinstance(entry, str) and len(entry) < 24) for entry in value.values()
    )


def _answer(response: str, step: RecordedStep, private: PrivateFields) -> str:
    """A model's answer without private parts; in a posting step the answer is a post."""
    for kind, words in (("messages", _MESSAGES), ("posts", _POSTS)):
        if _is(step, words):
            response = private.text(kind, response)
    return private.text("response", response)


def _is(step: RecordedStep, words: Sequence[str]) -> bool:
    """True if the action's type contains one of the words."""
    return any(word in step.action_type for word in words)


def _allowed(step: RecordedStep, private: PrivateFields) -> Any:
    """The parameters without private parts."""
    kind = "messages" if _is(step, _MESSAGES) else "posts"
    parameters = private.entries("parameters", step.parameters)
    # an agent's own texts come under posts or messages, which may be private where parameters are not
    if isinstance(parameters, dict):
        parameters = {
            key: private.text(kind, entry) if isinstance(entry, str) and key.casefold() in _TEXT_KEYS else entry
            for key, entry in parameters.items()
        }
    if private.allows("parameters"):
        return parameters
    return private.text("parameters", plain(parameters)) or None


def _meaningful(parameters: Any, step: RecordedStep) -> Any:
    """Parameters without values of the state and without long ids."""
    if not isinstance(parameters, dict):
        return parameters
    state_values = (step.state.agent_pnl, step.state.agent_balance)
    return {key: value for key, value in parameters.items() if not _is_state(value, state_values) and not _is_bare_id(key, value)}


def _is_state(value: Any, known: tuple[float, float]) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value != 0 and value in known


def _is_bare_id(key: str, value: Any) -> bool:
    """True for a long numeric id that means nothing to a reader."""
    named = key.endswith("Id") and not key.startswith(("market", "question"))
    return named and isinstance(value, str) and _GAME_ID.fullmatch(value) is not None


def _result(step: RecordedStep, private: PrivateFields) -> Any:
    """The error or the result, without private parts and repeated parameters."""
    value = {"error": step.error} if step.error else step.result
    if value is None:
        return None
    if not private.allows("result"):
        return private.text("result", plain(value))
    value = private.entries("result", value)
    if isinstance(value, dict) and isinstance(step.parameters, dict):
        return {key: entry for key, entry in value.items() if key not in step.parameters or step.parameters[key] != entry}
    return value
