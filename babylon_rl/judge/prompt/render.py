"""Rendering of a window's group for the judge, within a token budget: the hour's market and the steps of each usable episode.

This file decides what the judge is shown: the hour's market (templates.py), the lines that agents share (request.py), and the steps of
each usable episode, without any agent's id or name. request.py makes requests of it, and escapes the texts, which are raw here.

Steps count as in ``decode``; their calls come from the steps, otherwise from the log, and texts may hold anything. Rendered, repetitions
appear once: an answer equal to the action's own parameters is left out, as are numbers that the state holds; ids without a meaning are
shortened.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from babylon_rl.episodes.decode import EnvironmentState, Fault, Step, StepCall, decode, recorded_value
from babylon_rl.episodes.reading import by_rows
from babylon_rl.episodes.trajectories import StepPlaces, calls_by_step, logged_call, step_minutes
from babylon_rl.files.spill import Spill, Spilled
from babylon_rl.judge.consensus import MIN_SUBGROUP
from babylon_rl.judge.parts import Part, hour_parts, part_results
from babylon_rl.judge.plan import REQUEST_TOKENS
from babylon_rl.judge.prompt import templates
from babylon_rl.judge.prompt.forms import with_flags
from babylon_rl.judge.prompt.injection import bounded, escaped, flat
from babylon_rl.judge.prompt.privacy import LEAST_NAME, HourVocabulary, PrivateFields, name_replacer, private_fields
from babylon_rl.judge.prompt.request import (
    CONTEXT_SHARE,
    LEAST_TOKENS,
    ActedPart,
    Condensed,
    RenderedEpisode,
    RenderedGroup,
    StepText,
    condense,
    in_full,
    named_lines,
    parts_lines,
    pieces,
    plain,
    shared_lines,
)
from babylon_rl.llm.tokens import table_entry, token_counter
from babylon_rl.market.outcomes import WindowOutcomes, stored_outcomes
from babylon_rl.settings import JudgeSettings, Settings
from babylon_rl.store import judge_inputs as store
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import logged_reasoning, recorded_knowledge
from babylon_rl.store.trajectories import call_log_rows, trajectories_by_id
from babylon_rl.types import Episode, HourEpisodes
from babylon_rl.versions import content_version

_MOST_DEEP = 6  # levels of parameters and results that are shown
_LONGEST_ACTION = 80  # characters of an action's type, which is free text
_GAME_ID = re.compile(r"\d{12,}")
_DECISIONS = ("BUY", "SELL", "TRADING")  # an action is of a kind if its type contains one of the words
_POSTS, _MESSAGES = ("POST", "COMMENT"), ("MESSAGE", "CHAT", "DM")
_KEY = re.compile(r'"(\w+)"\s*:')
_TEXT_KEYS = ("content", "text", "message", "body", "comment", "post")


@dataclass(frozen=True, slots=True)
class RecordedCall:
    system: str
    prompt: str
    response: str
    reasoning: str


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One completed step; ``parameters``, ``result`` and ``error`` are as recorded, ``minute`` is the hour's in which it began."""

    state: EnvironmentState
    action_type: str
    succeeded: bool
    parameters: Any
    result: Any
    error: Any
    reasoning: str
    calls: tuple[RecordedCall, ...]
    minute: int = 0


def read_transcripts(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, list[RecordedStep]]:
    """Read the steps of some trajectories by id; missing and rejected ones are absent."""
    transcripts: dict[str, list[RecordedStep]] = {}
    silent: dict[str, tuple[Sequence[Step], list[int]]] = {}
    for row in trajectories_by_id(connection, trajectory_ids):
        decoded = decode(row)
        if isinstance(decoded, Fault):
            continue
        steps = decoded.completed
        minutes = step_minutes(row.window, row.start_time, [step.began_ms for step in steps])
        if any(step.llm_calls for step in steps):
            transcripts[row.trajectory_id] = _recorded(steps, [step.llm_calls or () for step in steps], minutes, {})
        else:
            silent[row.trajectory_id] = steps, minutes
    reasoning = logged_reasoning(connection, list(silent))
    # the rows of the log come in order of their trajectory, as groupby needs
    logged = {name: list(logs) for name, logs in groupby(call_log_rows(connection, list(silent)), key=lambda log: log.trajectory_id)}
    for trajectory_id, (steps, minutes) in silent.items():
        calls = calls_by_step(logged.get(trajectory_id, ()), trajectory_id, StepPlaces.of(steps), logged_call)
        transcripts[trajectory_id] = _recorded(steps, calls, minutes, reasoning)
    return transcripts


def _recorded(
    steps: Sequence[Step], calls: Sequence[Sequence[StepCall]], minutes: Sequence[int], reasoning: dict[str, str]
) -> list[RecordedStep]:
    return [
        RecordedStep(
            step.environment_state,
            step.action.action_type,
            step.action.succeeded,
            _shallow(recorded_value(step.action.parameters)),
            _shallow(recorded_value(step.action.result)),
            _shallow(recorded_value(step.action.error)),
            _text(step.action.reasoning),
            tuple(_call(call, reasoning) for call in served),
            minute,
        )
        for step, served, minute in zip(steps, calls, minutes, strict=True)
    ]


def _shallow(value: Any, deep: int = _MOST_DEEP) -> Any:
    if not isinstance(value, dict | list):
        return value
    if deep == 0:
        return "…"
    if isinstance(value, list):
        return [_shallow(entry, deep - 1) for entry in value]
    return {key: _shallow(entry, deep - 1) for key, entry in value.items()}


def _call(call: StepCall, reasoning: dict[str, str]) -> RecordedCall:
    system, prompt = _text(call.system_prompt), _text(call.user_prompt)
    if isinstance(call.messages, list) and call.messages and not prompt:
        prompt = "\n".join(_text(message.get("content")) for message in call.messages if isinstance(message, dict))
    # the reason beside a call in its step; that of a logged call comes by its id
    logged = reasoning.get(call.call_id, "") if isinstance(call.call_id, str) else ""
    return RecordedCall(system, prompt, _text(call.response), _text(call.reasoning) or logged)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def keys_and_texts(steps: Sequence[RecordedStep]) -> tuple[set[str], set[str]]:
    """Words of some steps that are no names (action types, keys of recorded values and of JSON in texts), and their texts."""
    calls = [call for step in steps for call in step.calls]
    texts = {text for call in calls for text in (call.system, call.prompt, call.response, call.reasoning)}
    texts |= {step.reasoning for step in steps}
    keys = {step.action_type for step in steps} | {key for text in texts for key in _KEY.findall(text)}
    keys.update(*(_keys_of(value) for step in steps for value in (step.parameters, step.result)))
    return keys, texts


def _keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from map(str, value)
        value = list(value.values())
    for entry in value if isinstance(value, list) else ():
        yield from _keys_of(entry)


def render_steps(steps: Sequence[RecordedStep], rename: Callable[[str], str], private: PrivateFields) -> list[StepText]:
    return [_render_step(number, step, rename, private) for number, step in enumerate(steps, 1)]


def _render_step(number: int, step: RecordedStep, rename: Callable[[str], str], private: PrivateFields) -> StepText:
    """Render one step; every text passes through privacy and renaming."""
    seen: list[str] = []
    words: list[str] = []

    def own(text: str) -> str:
        return flat(rename(bounded(text)))

    def served(text: str) -> list[str]:
        return [flat(rename(piece)) for piece in pieces(bounded(text))]

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
    return any(word in step.action_type for word in words)


def _allowed(step: RecordedStep, private: PrivateFields) -> Any:
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
    """The parameters without numbers that the state holds, and without long numeric ids, which mean nothing to a reader."""
    if not isinstance(parameters, dict):
        return parameters
    held = (step.state.agent_pnl, step.state.agent_balance)
    meaningful = {}
    for key, value in parameters.items():
        is_state = isinstance(value, int | float) and not isinstance(value, bool) and value != 0 and value in held
        names_id = key.endswith("Id") and not key.startswith(("market", "question"))
        if not is_state and not (names_id and isinstance(value, str) and _GAME_ID.fullmatch(value)):
            meaningful[key] = value
    return meaningful


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


OVERHEAD_TOKENS = 90  # of an episode in a request: tags, P&L, its id in the list and in the answer's schema
PART_TOKENS = 12  # of a part of an episode in a request
OUTCOME_SHARE, COMMON_SHARE, PARTS_SHARE = 0.3, 0.3, 0.1  # of a request, at most
LEAST_REQUEST_TOKENS = 2_000


def render_groups(
    connection: Connection,
    readings: Mapping[str, HourEpisodes],
    settings: Settings,
    *,
    agents: Mapping[str, Collection[str]] | None = None,
    secret: bytes = b"",
) -> dict[str, RenderedGroup]:
    """Render the groups of some hours, by window; hours without a usable episode are absent.

    Texts are read here, one hour's at a time. ``agents`` are those to show, by window (None: all), ``secret`` is the key of hashes.

    Raises:
        SettingsError: JUDGE_PRIVATE_FIELDS names an unknown field.
    """
    private = private_fields(settings, secret)
    groups = {
        window: [episode for episode in reading.usable_episodes if agents is None or episode.agent_id in agents[window]]
        for window, reading in readings.items()
    }
    groups = {window: episodes for window, episodes in groups.items() if episodes}
    markets = stored_outcomes(connection, list(groups), settings)
    known = store.known_names(connection, sorted({episode.agent_id for reading in readings.values() for episode in reading.episodes}))
    shown = {}
    for window, episodes in groups.items():
        # names of this hour alone: its rendering must not depend on the other hours in the call
        own: dict[str, list[str]] = {agent: [agent] for agent in sorted({episode.agent_id for episode in readings[window].episodes})}
        for name in known:
            if name.agent_id in own and name.counts_in(window):
                own[name.agent_id].append(name.name)
        shown[window] = _group(connection, markets.get(window, WindowOutcomes(window)), episodes, own, settings, private)
    return shown


def unreadable(connection: Connection, settings: JudgeSettings) -> list[str]:
    """Sentences on columns that this database role cannot read, with the consequence."""
    sentences = []
    if private_fields(settings).allows("hidden_answers") and not store.readable(connection, "Question", ("outcome",)):
        sentences.append(
            'The hidden answers (public."Question".outcome) may not be read by this role: the judge is not shown them. '
            "Grant it as docs/howto/least-privilege.sql does, or set JUDGE_PRIVATE_FIELDS=hidden_answers."
        )
    if not store.readable(connection, "User", store.NAME_COLUMNS):
        sentences.append(
            'The names of agents (public."User") may not be read by this role: texts that name an agent are shown as they are. '
            "Grant it as docs/howto/least-privilege.sql does."
        )
    return sentences


def _context(connection: Connection, outcomes: WindowOutcomes, episodes: Sequence[Episode], private: PrivateFields) -> list[str]:
    sentences = templates.market_context(outcomes) if private.allows("market") else []
    if private.allows("news"):
        sentences += templates.news_context(outcomes)
    if private.allows("hidden_answers"):
        answers = store.hidden_answers(connection, [prediction.market_id for prediction in outcomes.predictions])
        sentences += templates.hidden_context(outcomes, answers)
    if private.allows("game_knowledge"):
        ids = [trajectory_id for episode in episodes for trajectory_id in episode.trajectory_ids]
        sentences += templates.knowledge_context(metadata for _, metadata in sorted(recorded_knowledge(connection, ids)))
    return sentences


def _group(
    connection: Connection, outcomes: WindowOutcomes, episodes: Sequence[Episode], names: Mapping[str, Sequence[str]],
    settings: Settings, private: PrivateFields,
) -> RenderedGroup:  # fmt: skip
    vocabulary = HourVocabulary(
        templates.market_terms(outcomes), {name for agent, own in names.items() for name in own if name != agent or len(name) < LEAST_NAME}
    )
    # an hour's texts may be too many for the memory: they are read in portions, and lie on disk from then on
    spill: Spill[list[RecordedStep]] = Spill(settings.home)
    places, minutes = [], list[list[int]]()
    for some in by_rows(episodes):
        steps = read_transcripts(connection, [trajectory_id for episode in some for trajectory_id in episode.trajectory_ids])
        for episode in some:
            own = [step for trajectory_id in episode.trajectory_ids for step in steps.pop(trajectory_id, ())]
            vocabulary.add(*keys_and_texts(own))
            minutes.append([step.minute for step in own])
            places += spill.write([own])
    sentences, recorded = _context(connection, outcomes, episodes, private), Spilled(spill, places)
    return with_flags(_written(sentences, outcomes, episodes, recorded, minutes, names, vocabulary.words, settings, private))


def _written(
    sentences: Sequence[str], outcomes: WindowOutcomes, episodes: Sequence[Episode], recorded: Iterable[Sequence[RecordedStep]],
    minutes: Sequence[Sequence[int]], names: Mapping[str, Sequence[str]], words: Collection[str], settings: Settings,
    private: PrivateFields,
) -> RenderedGroup:  # fmt: skip
    """Render a group within the request's token budget. One episode's whole texts are in memory at a time."""
    encoded = token_counter(settings.judge_model)

    def count(text: str) -> int:
        return encoded(escaped(text))  # as request.py writes it

    budget = request_tokens(settings)
    sentences = _fitting(sentences, int(budget * OUTCOME_SHARE), count)
    aliases = templates.question_names(outcomes) if private.allows("market") else {}
    kept = Spill[list[StepText]](settings.home)
    rendered = (
        render_steps(steps, name_replacer(episode.agent_id, names, aliases, words), private)
        for episode, steps in zip(episodes, recorded, strict=True)
    )
    own = Spilled(kept, kept.write(rendered))
    # shared lines get numbers, so that each is paid for once
    shared = shared_lines(lambda: (line for steps in own for step in steps for line in step.seen), int(budget * COMMON_SHARE), count)
    numbered = "\n".join(f"{number} {line}" for line, number in shared.items())
    # sizes in full decide how many episodes fit one request, and the share of each
    written = Spill[Condensed](settings.home)
    whole = Spilled(written, written.write(in_full(_numbered(steps, shared), count) for steps in own))
    sizes = [text.tokens for text in whole]
    common = named_lines(numbered, (text.text for text in whole))
    # 200 tokens for the sentences and tags around these texts, which request.py writes
    parts = hour_parts(episodes, max(1, int(budget * PARTS_SHARE) // (MIN_SUBGROUP * PART_TOKENS))) if settings.by_part else ()
    asked = [templates.system_prompt(settings.by_part), *parts_lines(outcomes.window, parts), "\n".join(sentences), common]
    left = budget - sum(map(count, asked)) - 200
    sizes = [size + PART_TOKENS * len(parts) for size in sizes]
    max_episodes = _max_episodes(sizes, settings.judge_group_size, left)
    share = _share(sizes, max_episodes, left)
    share -= PART_TOKENS * len(parts)
    shown = tuple(
        RenderedEpisode(
            agent_id=episode.agent_id,
            pnl=episode.window_pnl if private.allows("pnl") else None,
            steps=episode.steps,
            acted=_acted(episode, parts, begun, private),
            **vars(condense(text, _numbered(steps, shared), share, count)),
        )
        for episode, text, steps, begun in zip(episodes, whole, own, minutes, strict=True)
    )
    # shortening may have removed the last reference to a shared line
    common = named_lines(numbered, (episode.text for episode in shown))
    window = outcomes.window
    content: list[object] = [
        templates.RUBRIC_VERSION, window, sentences, common, max_episodes, [[e.agent_id, e.text, e.pnl, e.steps] for e in shown]
    ]  # fmt: skip
    # only where parts are judged: the versions of hours that are judged as a whole stay as they were
    content += [parts, [e.acted for e in shown]] if parts else []
    return RenderedGroup(window, tuple(sentences), common, shown, content_version(content), max_episodes, parts=parts)


def _acted(episode: Episode, parts: Sequence[Part], minutes: Sequence[int], private: PrivateFields) -> tuple[ActedPart, ...]:
    """Parts with steps of an episode; ``minutes`` are those of its steps in order."""
    results = part_results(episode, parts) if parts and private.allows("pnl") else {}
    found = []
    for place, part in enumerate(parts):
        own = [number for number, minute in enumerate(minutes, 1) if part.start <= minute < part.end]
        if own:
            found.append(ActedPart(place, own[0], own[-1], results[part].pnl if part in results else None))
    return tuple(found)


def _numbered(steps: Sequence[StepText], shared: Mapping[str, str]) -> list[StepText]:
    return [replace(step, seen=tuple(shared.get(line, line) for line in step.seen)) for step in steps]


def _fitting(sentences: Sequence[str], most: int, count: Callable[[str], int]) -> list[str]:
    """Keep the sentences that fit into ``most`` tokens, and count the others."""
    fitting: list[str] = []
    left = most
    for sentence in sentences:
        cost = count(sentence) + 1
        if cost <= left:
            fitting.append(sentence)
            left -= cost
    missing = len(sentences) - len(fitting)
    return fitting if not missing else [*fitting, f"[{missing} sentences left out]"]


def _max_episodes(sizes: Sequence[int], group_size: int, left: int) -> int:
    """Largest number of episodes per request such that any of them fit in full; MIN_SUBGROUP at least."""
    for place, size in enumerate(sorted(sizes, reverse=True)):
        left -= size + OVERHEAD_TOKENS
        if left < 0:
            return max(MIN_SUBGROUP, min(group_size, place))
    return group_size


def _share(sizes: Sequence[int], max_episodes: int, left: int) -> int:
    """Tokens per episode such that the ``max_episodes`` largest fit into ``left``; what small episodes do not use goes to others."""
    largest = sorted(sizes)[-max_episodes:]
    left -= OVERHEAD_TOKENS * len(largest)
    for place, size in enumerate(largest):
        share = left // (len(largest) - place)
        if size > share:
            return max(LEAST_TOKENS, share)
        left -= size
    return max(LEAST_TOKENS, largest[-1]) if largest else LEAST_TOKENS


def request_tokens(settings: JudgeSettings) -> int:
    """Token limit of a request to JUDGE_MODEL. Three quarters of its context where litellm knows it, JUDGE_REQUEST_TOKENS at most."""
    context = (table_entry(settings.judge_model) or {}).get("max_input_tokens")
    known = [int(context * CONTEXT_SHARE)] if isinstance(context, int) else []
    configured = [settings.judge_request_tokens] if settings.judge_request_tokens is not None else []
    return max(LEAST_REQUEST_TOKENS, min([*known, *configured], default=REQUEST_TOKENS))
