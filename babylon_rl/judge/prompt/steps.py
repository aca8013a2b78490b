"""Rendering of one step: observations, answers, action, reasons.

Repetitions appear once: an answer equal to the action's own parameters is left out, as are numbers that the state holds; ids without a
meaning are shortened.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.judge.prompt.condense import StepText, pieces, plain
from babylon_rl.judge.prompt.injection import Flag, InjectionScreen, bounded, flat
from babylon_rl.judge.prompt.names import NameReplacer
from babylon_rl.judge.prompt.privacy import PrivateFields
from babylon_rl.judge.prompt.transcript import RecordedStep

_LONGEST_ACTION = 80
_GAME_ID = re.compile(r"\d{12,}")
_DECISIONS = ("BUY", "SELL", "TRADING")
_POSTS, _MESSAGES = ("POST", "COMMENT"), ("MESSAGE", "CHAT", "DM")
_TEXT_KEYS = ("content", "text", "message", "body", "comment", "post")


@dataclass(frozen=True)
class RenderedStep(StepText):
    """Text parts of one step before any shortening, with its flags."""

    flags: tuple[Flag, ...] = ()


def render_steps(
    steps: Sequence[RecordedStep], rename: NameReplacer, private: PrivateFields, *, masked: bool = False
) -> list[RenderedStep]:
    """Render the steps of an episode, numbered from 1; ``masked`` masks flagged passages."""
    return [_render_step(number, step, rename, private, masked) for number, step in enumerate(steps, 1)]


def _render_step(number: int, step: RecordedStep, rename: NameReplacer, private: PrivateFields, masked: bool) -> RenderedStep:
    """Render one step; every text passes through privacy, masking and renaming."""
    seen: list[str] = []
    words: list[str] = []
    screen = InjectionScreen(masked, rename)

    def own(text: str, where: str) -> str:
        return bounded(screen.text(text, f"step {number} {where}"))

    def served(text: str, where: str) -> list[str]:
        return screen.lines(pieces(bounded(text)), f"step {number} {where}")

    # prompts and answers
    for call in step.calls:
        seen += served(private.text("system_prompt", call.system), "system prompt")
        seen += served(private.text("user_prompt", call.prompt), "prompt")
        response = own(_answer(call.response, step, private), "response")
        if response and not _says_the_same(call.response, step):
            words.append(flat(rename(response)))
    # reasons, each once: the step and its call often record the same
    for note in dict.fromkeys((step.reasoning, *(call.reasoning for call in step.calls))):
        reasoning = own(private.text("reasoning", note), "reasoning")
        if reasoning:
            words.append(f"(why) {flat(rename(reasoning))}")
    # the action with parameters and result
    parameters = screen.value(_meaningful(_allowed(step, private), step), f"step {number} action")
    named = flat(rename(bounded(plain(parameters))))
    result = screen.value(_result(step, private), f"step {number} action")
    outcome = "" if step.succeeded else " FAILED"
    action = flat(rename(own(step.action_type[:_LONGEST_ACTION], "action"))) + outcome
    brief = f"{action} {named}" if named else action
    result_text = flat(rename(bounded(plain(result)))) if result not in (None, {}, "", []) else ""
    held = step.state
    state = f"balance {held.agent_balance:.8g}, P&L {held.agent_pnl:.8g}, {held.open_positions:g} open" if private.allows("state") else ""
    # trades that succeeded are shortened last
    decision = step.succeeded and "HOLD" not in step.action_type and _is(step, _DECISIONS)
    full = f"{brief} -> {result_text}" if result_text else brief
    return RenderedStep(number, tuple(map(flat, seen)), state, tuple(words), full, brief, decision, tuple(dict.fromkeys(screen.flags)))


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
