"""Agreement of a judge with the market, measured on agents of known skill.

The agents play hours, the judge scores them, and ranks are compared.

Skill is expected P&L: the mean over many markets like the judged hours, with everybody at one table as there, in other markets than
those. It is what a single hour shows only through luck. The correlation is of ranks (Spearman) within an hour, as training takes scores
only against the others of their hour; its interval is over hours, the independent draws. Beside it stands what a judge reaches that only
counts the money that came: a judge is worth its price where it sees skill that an hour's luck hides.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.errors import MarketError
from babylon_rl.evaluation.gate import NOTHING
from babylon_rl.evaluation.statistics.intervals import Interval, mean_interval, paired_interval
from babylon_rl.judge.consensus import spearman
from babylon_rl.judge.hindsight import sync_hindsight
from babylon_rl.judge.scoring import score_windows
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.outcomes import sync_outcomes
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import ONE_TICK_GAME
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.run import encode_run, play
from babylon_rl.market.simulation.strategies import NAMES, factory
from babylon_rl.market.spawn import SpawnedPlayer, SpawnRequest, spawn
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_report import JudgeAgreement
from babylon_rl.store.recording import newest_simulated_hour
from babylon_rl.store.windows import stored_episodes
from babylon_rl.types import GroupScores
from babylon_rl.versions import content_version
from babylon_rl.windows import HOUR, window_of, window_start

FIRST = "2025-02-01T00:00"
SKILL_MARKETS = 200
SEED_PREFIX = "skill/"  # prefix that no judged hour's market has
# A player that never trades is asked nothing, so its hour has no text that a judge could read.
PLAYERS = tuple(SpawnedPlayer(f"calibration-{number}", name) for number, name in enumerate((n for n in NAMES if n != NOTHING), start=1))


@dataclass(frozen=True)
class Skill:
    """Expected dollars an hour of an agent, with the standard error of that mean."""

    agent_id: str
    name: str
    expected_usd: float
    standard_error: float


def skills(markets: int = SKILL_MARKETS, on_market: Callable[[], None] = lambda: None) -> tuple[Skill, ...]:
    """Measure the skill of every player over ``markets`` (2 or more) markets.

    The markets have the preset of spawned hours; 200 take about 4 s.
    """
    pnls = np.empty((markets, len(PLAYERS)))
    for index in range(markets):
        # Markets apart from the judged hours: skill measured in the same ones would hold their luck.
        seed = f"{SEED_PREFIX}{index}"
        scenario = generate(preset("hour", seed=seed, agents=len(PLAYERS), edition=TRAINING))
        run = play(scenario, {player.agent_id: factory(player.strategy, scenario) for player in PLAYERS}, seed=seed)
        pnls[index] = [run.pnl_usd[player.agent_id] for player in PLAYERS]
        on_market()
    means, errors = pnls.mean(axis=0), pnls.std(axis=0, ddof=1) / math.sqrt(markets)
    return tuple(Skill(p.agent_id, p.strategy, float(m), float(e)) for p, m, e in zip(PLAYERS, means, errors, strict=True))


def calibration_windows(hours: int) -> list[str]:
    return [window_of(window_start(FIRST) + HOUR * index) for index in range(hours)]


def calibration_name(seed: int) -> str:
    """Name of the hours of ``seed``; it changes when the market's code gives other hours."""
    scenario = generate(preset("hour", seed=f"{SEED_PREFIX}name", agents=len(PLAYERS), edition=TRAINING))
    run = play(scenario, {player.agent_id: factory(player.strategy, scenario) for player in PLAYERS}, game=ONE_TICK_GAME)
    prompts = [[call.messages for call in record.calls.values()] for record in run.records.values()]
    return content_version([seed, FIRST, NAMES, encode_run(run).decode(), prompts])[:16]


FEWEST_HOURS = 2
_SAME = 1e-12


def measure(
    connection: Connection,
    settings: Settings,
    now: datetime,
    *,
    hours: int = 24,
    skill_markets: int = SKILL_MARKETS,
    seed: int = 0,
    on_progress: Progress = no_progress,
) -> JudgeAgreement:
    """Calibrate the judge of ``settings`` in a migrated database that holds nothing else.

    Hours and scores of an earlier call are kept.

    Args:
        connection: in autocommit, as rooms open their own transactions.
        skill_markets: over how many markets skill is measured.
        seed: of the hours that are judged.

    Raises:
        MarketError: the judge scored fewer than two hours; the message has its reason for the first one that it did not.
        JudgeRefused: the judge answers nobody.
    """
    skills_of_players = skills(skill_markets, _counted(on_progress, "markets of known skill", skill_markets))
    windows = calibration_windows(hours)
    newest = newest_simulated_hour(connection)
    missing = [window for window in windows if newest is None or window > newest]
    if missing:
        played = _counted(on_progress, "hours played", len(missing))
        request = SpawnRequest(agents=len(PLAYERS), model_agents=0, windows=len(missing), seed=seed, start=missing[0])
        spawn(connection, request, now, None, lambda _: played(), players=PLAYERS)
        sync_windows(connection, windows, settings, now)
    sync_outcomes(connection, windows, settings, now)
    sync_hindsight(connection, windows, settings, now)
    scored = score_windows(connection, windows, settings, now, on_progress=on_progress)
    # An interval needs two independent hours.
    if len(scored) < FEWEST_HOURS:
        why = next(iter({**scored.pending, **scored.quarantined}.values()), "no hour has a group: check MIN_AGENTS_PER_WINDOW.")
        raise MarketError(f"{len(scored)} of {hours} hours were scored, which says nothing of the judge: {why}")
    money = {window: {e.agent_id: e.window_pnl for e in episodes} for window, episodes in stored_episodes(connection, list(scored)).items()}
    orders = 1 if settings.judge_model == HEURISTIC else settings.judge_orders
    groups = list(scored.values())
    return agreement(groups, money, skills_of_players, orders=orders, hours=hours, skill_markets=skill_markets, seed=seed, now=now)


def agreement(
    groups: Sequence[GroupScores],
    realized_usd: Mapping[str, Mapping[str, float]],
    players: Sequence[Skill],
    *,
    orders: int,
    hours: int,
    skill_markets: int,
    seed: int,
    now: datetime,
) -> JudgeAgreement:
    """Compare scores (a group an hour) with known skill and with realized dollars.

    ``realized_usd`` maps window to agent to P&L.

    Args:
        orders: in which each group was shown, as the setting says.
        hours: how many were to be judged.
    """
    expected = {skill.agent_id: skill.expected_usd for skill in players}
    of_scores, of_outcomes, of_money, flat = [], [], [], 0
    for group in groups:
        agents = [entry.agent_id for entry in group.scores]
        scores, skill = [entry.score for entry in group.scores], [expected[agent] for agent in agents]
        # Realized dollars are the baseline: a judge without insight reaches their correlation.
        money = [realized_usd[group.window][agent] for agent in agents]
        flat += max(scores) - min(scores) < _SAME
        # Ranks within an hour only, as training compares only within a group.
        of_scores.append(spearman(scores, skill) or 0.0)
        of_outcomes.append(spearman(scores, money) or 0.0)
        of_money.append(spearman(money, skill) or 0.0)
    first = groups[0]
    return JudgeAgreement(
        judge=first.judge,
        judge_version=first.judge_version,
        orders=orders,
        hours=len(groups),
        agents=len(players),
        skill_markets=skill_markets,
        seed=seed,
        without_spread=flat,
        not_judged=hours - len(groups),
        expected=_ends(mean_interval(of_scores), 1.0),
        realized=_ends(mean_interval(of_outcomes), 1.0),
        money=_ends(mean_interval(of_money), 1.0),
        over_money=_ends(paired_interval(of_scores, of_money), 2.0),
        rows=_rows(groups, realized_usd, players),
        measured_at=now,
    )


def _rows(groups: Sequence[GroupScores], realized_usd: Mapping[str, Mapping[str, float]], players: Sequence[Skill]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for skill in sorted(players, key=lambda player: -player.expected_usd):
        entries = [(group.window, entry) for group in groups for entry in group.scores if entry.agent_id == skill.agent_id]
        money = [realized_usd[window][skill.agent_id] for window, _ in entries]
        rows.append({
            "name": skill.name, "expected": skill.expected_usd, "standardError": skill.standard_error, "hours": len(entries),
            "realized": _mean(money), "score": _mean([entry.score for _, entry in entries]),
            "rank": _mean([float(entry.rank) for _, entry in entries]),
        })  # fmt: skip
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ends(interval: Interval, most: float) -> tuple[float, float, float]:
    """Mean, low and high, clamped to ``most``. That is 1 for a correlation, 2 for a difference of two."""
    return interval.mean, max(-most, interval.low), min(most, interval.high)


def _counted(on_progress: Progress, what: str, total: int) -> Callable[[], None]:
    done = iter(range(1, total + 1))
    return lambda: on_progress(what, next(done), total)
