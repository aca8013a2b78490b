"""Rendering of a window's group for the judge, within a token budget.

This file decides what the judge is shown: the hour's market (templates.py), the lines that agents share (condense.py), and the steps
of each usable episode (steps.py), without any agent's id or name. request.py makes requests of it, and escapes the texts, which are raw
here.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from babylon_rl.episodes.reading import by_rows
from babylon_rl.files.spill import Spill, Spilled
from babylon_rl.judge.consensus import MIN_SUBGROUP
from babylon_rl.judge.prompt.condense import LEAST_TOKENS, Condensed, SharedLines, StepText, condense, in_full
from babylon_rl.judge.prompt.forms import with_flags
from babylon_rl.judge.prompt.injection import escaped
from babylon_rl.judge.prompt.privacy import LEAST_NAME, HourVocabulary, NameReplacer, PrivateFields, private_fields
from babylon_rl.judge.prompt.request import CONTEXT_SHARE, RenderedEpisode, RenderedGroup
from babylon_rl.judge.prompt.rubric import RUBRIC_VERSION, system_prompt
from babylon_rl.judge.prompt.steps import RecordedStep, keys_and_texts, read_transcripts, render_steps
from babylon_rl.judge.prompt.templates import (
    hidden_context,
    knowledge_context,
    market_context,
    market_terms,
    news_context,
    question_names,
)
from babylon_rl.judge.versions import REQUEST_TOKENS
from babylon_rl.llm.tokens import table_entry, token_counter
from babylon_rl.market.outcomes import WindowOutcomes, stored_outcomes
from babylon_rl.settings import JudgeSettings, Settings
from babylon_rl.store import judge_inputs as store
from babylon_rl.store.connection import Connection
from babylon_rl.store.hindsight import recorded_knowledge
from babylon_rl.types import Episode, HourEpisodes
from babylon_rl.versions import content_version

OVERHEAD_TOKENS = 90  # of an episode in a request: tags, P&L, its id in the list and in the answer's schema
OUTCOME_SHARE, COMMON_SHARE = 0.3, 0.3  # of a request, at most
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

    Args:
        readings: the hours, without texts; these are read here, one hour's at a time.
        agents: those to show, by window; None: all.
        secret: the key of hashes that JUDGE_PRIVATE_FIELDS asks for.

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


def _context(
    connection: Connection,
    outcomes: WindowOutcomes,
    episodes: Sequence[Episode],
    settings: JudgeSettings,
    private: PrivateFields,
) -> list[str]:
    """Sentences on the hour, without private fields."""
    sentences = market_context(outcomes) if private.allows("market") else []
    if private.allows("news"):
        sentences += news_context(outcomes)
    if private.allows("hidden_answers"):
        answers = store.hidden_answers(connection, [prediction.market_id for prediction in outcomes.predictions])
        sentences += hidden_context(outcomes, answers)
    if private.allows("game_knowledge"):
        ids = [trajectory_id for episode in episodes for trajectory_id in episode.trajectory_ids]
        sentences += knowledge_context(metadata for _, metadata in sorted(recorded_knowledge(connection, ids)))
    return sentences


def _group(
    connection: Connection, outcomes: WindowOutcomes, episodes: Sequence[Episode], names: Mapping[str, Sequence[str]],
    settings: Settings, private: PrivateFields,
) -> RenderedGroup:  # fmt: skip
    """Render a group, with the flags of its texts."""
    vocabulary = HourVocabulary(
        market_terms(outcomes), {name for agent, own in names.items() for name in own if name != agent or len(name) < LEAST_NAME}
    )
    # an hour's texts may be too many for the memory: they are read in portions, and lie on disk from then on
    spill: Spill[list[RecordedStep]] = Spill(settings.home)
    places = []
    for some in by_rows(episodes):
        steps = read_transcripts(connection, [trajectory_id for episode in some for trajectory_id in episode.trajectory_ids])
        for episode in some:
            own = [step for trajectory_id in episode.trajectory_ids for step in steps.pop(trajectory_id, ())]
            vocabulary.add(*keys_and_texts(own))
            places += spill.write([own])
    sentences, recorded = _context(connection, outcomes, episodes, settings, private), Spilled(spill, places)
    return with_flags(_written(sentences, outcomes, episodes, recorded, names, vocabulary.words, settings, private))


def _written(
    sentences: Sequence[str], outcomes: WindowOutcomes, episodes: Sequence[Episode], recorded: Iterable[Sequence[RecordedStep]],
    names: Mapping[str, Sequence[str]], words: Collection[str], settings: Settings, private: PrivateFields,
) -> RenderedGroup:  # fmt: skip
    """Render a group within the request's token budget.

    One episode's whole texts are in memory at a time.
    """
    encoded = token_counter(settings.judge_model)

    def count(text: str) -> int:
        return encoded(escaped(text))  # as request.py writes it

    # the context first; it may take only its share
    budget = request_tokens(settings)
    sentences = _fitting(sentences, int(budget * OUTCOME_SHARE), count)
    aliases = question_names(outcomes) if private.allows("market") else {}
    # names and steps as texts, before any shortening
    kept = Spill[list[StepText]](settings.home)
    rendered = (
        render_steps(steps, NameReplacer(episode.agent_id, names, aliases, words), private)
        for episode, steps in zip(episodes, recorded, strict=True)
    )
    own = Spilled(kept, kept.write(rendered))
    # shared lines get numbers, so that each is paid for once
    shared = SharedLines.of(lambda: (line for steps in own for step in steps for line in step.seen), int(budget * COMMON_SHARE), count)
    # sizes in full decide how many episodes fit one request, and the share of each
    written = Spill[Condensed](settings.home)
    whole = Spilled(written, written.write(in_full(_numbered(steps, shared), count) for steps in own))
    sizes = [text.tokens for text in whole]
    common = shared.text(text.text for text in whole)
    # 200 tokens for the sentences and tags around these texts, which request.py writes
    left = budget - count(system_prompt()) - count("\n".join(sentences)) - count(common) - 200
    max_episodes = _max_episodes(sizes, settings.judge_group_size, left)
    share = _share(sizes, max_episodes, left)
    shown = tuple(
        _episode(episode, condense(text, _numbered(steps, shared), share, count), private)
        for episode, text, steps in zip(episodes, whole, own, strict=True)
    )
    # shortening may have removed the last reference to a shared line
    common = shared.text(episode.text for episode in shown)
    window = outcomes.window
    version = content_version(
        [RUBRIC_VERSION, window, sentences, common, max_episodes, [[e.agent_id, e.text, e.pnl, e.steps] for e in shown]]
    )
    return RenderedGroup(window, tuple(sentences), common, shown, version, max_episodes)


def _numbered(steps: Sequence[StepText], shared: SharedLines) -> list[StepText]:
    """The steps with numbers for shared lines."""
    return [replace(step, seen=tuple(map(shared.written, step.seen))) for step in steps]


def _episode(episode: Episode, text: Condensed, private: PrivateFields) -> RenderedEpisode:
    return RenderedEpisode(
        agent_id=episode.agent_id,
        text=text.text,
        tokens=text.tokens,
        left_out=text.left_out,
        pnl=episode.window_pnl if private.allows("pnl") else None,
        steps=episode.steps,
        shortened=text.shortened,
        decisions_shortened=text.decisions_shortened,
    )


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
    """Largest number of episodes per request such that any of them fit in full.

    Never below MIN_SUBGROUP, the fewest that can still be put on one scale.
    """
    for place, size in enumerate(sorted(sizes, reverse=True)):
        left -= size + OVERHEAD_TOKENS
        if left < 0:
            return max(MIN_SUBGROUP, min(group_size, place))
    return group_size


def _share(sizes: Sequence[int], max_episodes: int, left: int) -> int:
    """Tokens per episode such that the ``max_episodes`` largest fit into ``left``.

    Tokens that small episodes do not use go to the others.
    """
    largest = sorted(sizes)[-max_episodes:]
    left -= OVERHEAD_TOKENS * len(largest)
    for place, size in enumerate(largest):
        share = left // (len(largest) - place)
        if size > share:
            return max(LEAST_TOKENS, share)
        left -= size
    return max(LEAST_TOKENS, largest[-1]) if largest else LEAST_TOKENS


def request_tokens(settings: JudgeSettings) -> int:
    """Token limit of a request to JUDGE_MODEL.

    Three quarters of its context where litellm knows it, JUDGE_REQUEST_TOKENS at most.
    """
    context = (table_entry(settings.judge_model) or {}).get("max_input_tokens")
    known = [int(context * CONTEXT_SHARE)] if isinstance(context, int) else []
    configured = [settings.judge_request_tokens] if settings.judge_request_tokens is not None else []
    return max(LEAST_REQUEST_TOKENS, min([*known, *configured], default=REQUEST_TOKENS))
