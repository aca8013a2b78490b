"""Hindsight: correctness of an hour's actions, and leaks in its training texts.

``sync_hindsight`` keeps babylon_rl.hindsight, action_outcomes and leaks equal to the current trajectories and market, so that a late
official answer updates its hours. Texts are read one trajectory at a time.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from babylon_rl.episodes.decode import Decoded, Fault, Step
from babylon_rl.episodes.reading import stream_trajectories
from babylon_rl.judge.leakage import (
    UNRESOLVED,
    HiddenAnswer,
    Leak,
    LeakContext,
    find_leaks,
    knowledge_needles,
    knowledge_numbers,
    leaks_hidden_answer,
)
from babylon_rl.judge.prompt.privacy import private_fields
from babylon_rl.judge.prompt.templates import folded, game_knowledge, market_name
from babylon_rl.market.correctness import HourMarket, Targets, correctness, intent
from babylon_rl.market.outcomes import PredictionOutcome, WindowOutcomes, read_many_outcomes
from babylon_rl.settings import HEURISTIC, HourSettings, Settings
from babylon_rl.store import hindsight as store
from babylon_rl.store.columns import portions, storable
from babylon_rl.store.connection import Connection
from babylon_rl.store.hindsight import HourHindsight, StoredAction, StoredHour, StoredLeak
from babylon_rl.store.judge_inputs import hidden_answers, recorded_knowledge
from babylon_rl.store.judge_report import HourVerdicts, hour_verdicts
from babylon_rl.store.trajectories import TrajectoryRow
from babylon_rl.store.windows import chunks, lock_windows, trajectories_read
from babylon_rl.types import Trajectory
from babylon_rl.windows import is_complete, window_end

ROWS_AT_ONCE = 10_000  # trajectories whose actions are held before they are written
_NAMED_HIDDEN = re.compile(r"\bhidden\b", re.IGNORECASE)


def sync_hindsight(connection: Connection, windows: Iterable[str], settings: Settings, now: datetime) -> dict[str, HourHindsight]:
    """Update the stored hindsight of some hours; equal content is not written.

    Hours that are not complete at ``now``, or that babylon_rl.windows does not hold (no rows, or not read yet), are absent from the
    result and have nothing stored. Up to a week of hours is one transaction, under each hour's lock. ``connection`` should not be inside
    a transaction, which would put off the commit.

    Raises:
        UsageError: one of ``windows`` is not a window id.
    """
    hindsights: dict[str, HourHindsight] = {}
    for chunk in chunks(window for window in windows if is_complete(window, now)):
        with connection.transaction():
            lock_windows(connection, chunk)
            targets = Targets(store.organizations(connection), store.questions(connection))
            # batches bound the memory; the transaction covers all of them
            for hours in portions(store.hours_read(connection, chunk).items(), lambda hour: hour[1], ROWS_AT_ONCE):
                seen = _labels_and_leaks(connection, [window for window, _ in hours], targets, settings)
                hindsights |= {hour.window: hour for hour in store.replace(connection, seen, now)}
    return hindsights


def hour_secrets(connection: Connection, outcomes: WindowOutcomes, trajectory_ids: Sequence[str]) -> dict[str, LeakContext]:
    """Secrets of the texts of some trajectories of an hour, by id: its open questions, and each one's own gameKnowledge."""
    answers = hidden_answers(connection, [question.market_id for question in outcomes.predictions])
    hour, knowledge = _secrets(outcomes, answers), _knowledge(connection, trajectory_ids, [outcomes])
    return {own: replace(hour, **knowledge[own]) if own in knowledge else hour for own in trajectory_ids}


def _knowledge(connection: Connection, trajectory_ids: Sequence[str], markets: Iterable[WindowOutcomes]) -> dict[str, dict[str, Any]]:
    """Secret texts and numbers of each trajectory's gameKnowledge, as fields of its ``LeakContext``; absent without any."""
    # a value that every agent could read in the market proves no leak
    public = _public(markets)
    secrets = {}
    for trajectory_id, metadata in recorded_knowledge(connection, trajectory_ids):
        known = game_knowledge(metadata)
        needles, numbers = tuple(text for text in knowledge_needles(known) if text not in public), knowledge_numbers(known) - public
        if needles or numbers:
            secrets[trajectory_id] = {"knowledge": needles, "numbers": numbers}
    return secrets


def _public(markets: Iterable[WindowOutcomes]) -> frozenset[str]:
    """Folded texts and numbers that every agent could read in the market."""
    public: set[str] = set()
    for market in markets:
        for question in market.predictions:
            public |= {folded(question.question), question.market_id, *map(folded, question.news)}
            # in the forms in which knowledge_numbers writes a secret number, or nothing would be found equal
            for value in (question.start_probability, question.end_probability):
                public |= {repr(value), f"{value:.6g}", f"{100 * value:.6g}%"}
        for stock in market.stocks:
            public |= {folded(stock.name), folded(stock.organization_id), *map(folded, stock.news)}
    return frozenset(public)


def _labels_and_leaks(connection: Connection, windows: Sequence[str], targets: Targets, settings: Settings) -> list[StoredHour]:
    markets = read_many_outcomes(connection, windows, settings)
    actions: dict[str, list[StoredAction]] = {window: [] for window in markets}
    leaks: dict[str, list[StoredLeak]] = {window: [] for window in markets}
    named = {
        window: HourMarket(
            # a change that is not a number would count as a fall
            {stock.organization_id: stock.change_percent for stock in market.stocks if math.isfinite(stock.change_percent)},
            {stock.ticker: stock.organization_id for stock in market.stocks},
        )
        for window, market in markets.items()
    }

    def label(row: TrajectoryRow, decoded: Decoded | Fault) -> None:
        if not isinstance(decoded, Fault):
            actions[row.window].extend(_actions(row, decoded.completed, targets, named[row.window]))

    knowledge = _knowledge(connection, trajectories_read(connection, windows), markets.values())
    answers = hidden_answers(connection, sorted({question.market_id for market in markets.values() for question in market.predictions}))
    secrets = {window: _secrets(market, answers) for window, market in markets.items()}
    looked_at: Counter[str] = Counter()
    for trajectory in stream_trajectories(connection, windows, settings, label):
        looked_at[trajectory.window] += len(trajectory.sequences)
        hour, own = secrets[trajectory.window], knowledge.get(trajectory.trajectory_id)
        leaks[trajectory.window].extend(_stored_leaks(trajectory, hour if own is None else replace(hour, **own)))
    return [StoredHour(window, looked_at[window], actions[window], leaks[window]) for window in markets]


def _actions(row: TrajectoryRow, steps: Sequence[Step], targets: Targets, market: HourMarket) -> Iterator[StoredAction]:
    """Yield the stored form of each action that has a target. Its words are kept once for all actions."""
    for place, step in enumerate(steps):
        intended = intent(step.action.action_type, bytes(step.action.parameters))
        if intended is not None:
            result = correctness(intended, targets, market)
            yield StoredAction(
                window=row.window, trajectory_id=row.trajectory_id, step=place, agent_id=row.agent_id,
                action_type=sys.intern(storable(step.action.action_type)), executed=step.action.succeeded, kind=intended.kind,
                target=sys.intern(storable(intended.target)), organization_id=result.organization_id, market_id=result.market_id,
                side=intended.side,
                outcome=result.outcome, change_percent=result.change_percent, correct=result.correct,
            )  # fmt: skip


def _stored_leaks(trajectory: Trajectory, context: LeakContext) -> Iterator[StoredLeak]:
    for place, sequence in enumerate(trajectory.sequences):
        first: dict[str, Leak] = {}
        for leak in find_leaks(sequence.messages, sequence.response, context):
            first.setdefault(leak.kind, leak)
        for kind, leak in first.items():
            yield StoredLeak(
                window=trajectory.window, trajectory_id=trajectory.trajectory_id, sequence=place, kind=kind,
                call_id=storable(sequence.call_id), detail=storable(f"{leak.where}: {leak.excerpt}"),
            )  # fmt: skip


def _secrets(outcomes: WindowOutcomes, hidden: Mapping[str, bool]) -> LeakContext:
    """Secrets of an hour: questions that were still open when it ended."""
    end = window_end(outcomes.window)
    # an answer that became official within the hour could be read by its agents
    secret = [question for question in outcomes.predictions if question.resolved_at is None or question.resolved_at >= end]
    numbers = frozenset(question.question_number for question in secret if question.question_number is not None)
    answers = tuple(answer for question in secret if (answer := _answer(question, hidden)) is not None)
    return LeakContext(frozenset(question.market_id for question in secret), numbers, answers=answers)


def _answer(question: PredictionOutcome, hidden: Mapping[str, bool]) -> HiddenAnswer | None:
    """Current answer of an open question, the official one before the engine's; None if unknown."""
    answer = hidden.get(question.market_id) if question.outcome == UNRESOLVED else question.outcome == "YES"
    number = question.question_number
    names = () if number is None else (f"Q{number}", f"question {number}", f"question #{number}")
    return None if answer is None else HiddenAnswer((*names, question.market_id, question.question), answer)


def verdicts_with_leaks(connection: Connection, windows: Sequence[str], settings: Settings) -> list[HourVerdicts]:
    """``hour_verdicts``, with the agents whose explanation repeats what is hidden from them."""
    hours = hour_verdicts(connection, windows)
    # the heuristic reads no answers, and a judge that is not shown them cannot repeat them
    judged = [hour.window for hour in hours if hour.held is not None and hour.held.judge != HEURISTIC]
    shown = judged and private_fields(settings).allows("hidden_answers")
    hidden = _open_answers(connection, judged, settings) if shown else {}
    return [replace(hour, telling=_telling(hour, hidden.get(hour.window, []))) for hour in hours]


def _telling(hour: HourVerdicts, hidden: Sequence[HiddenAnswer]) -> list[str]:
    said = ((score.agent_id, score.reasoning) for score in hour.scores)
    return [agent for agent, text in said if _NAMED_HIDDEN.search(text) or leaks_hidden_answer(text, hidden)]


def _open_answers(connection: Connection, windows: Sequence[str], settings: HourSettings) -> dict[str, list[HiddenAnswer]]:
    markets = read_many_outcomes(connection, windows, settings)
    answers = hidden_answers(connection, sorted({question.market_id for market in markets.values() for question in market.predictions}))
    return {
        window: [
            HiddenAnswer((market_name(question.market_id, question.question_number), question.question), answers[question.market_id])
            for question in market.predictions
            if question.outcome == UNRESOLVED and question.market_id in answers
        ]
        for window, market in markets.items()
    }
