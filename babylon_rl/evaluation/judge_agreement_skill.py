"""What simulated agents of known skill earn on average, and the hours in which a judge is to tell them apart.

Skill is expected P&L: the mean over many markets like the judged hours, with everybody at one table as there, in other markets than
those. It is what a single hour shows only through luck.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import psycopg

from babylon_rl.evaluation.comparison import NOTHING
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.prompting import TRADER_V1
from babylon_rl.market.simulation.roster import NAMES, factory
from babylon_rl.market.simulation.run import encode_run, play
from babylon_rl.market.spawn import Player, SpawnRequest, spawn
from babylon_rl.versions import content_version
from babylon_rl.windows import HOUR, window_of, window_start

FIRST = "2025-02-01T00:00"
SKILL_MARKETS = 200
SEED_PREFIX = "skill/"  # no judged hour's market begins so
# Who never trades is asked nothing, so its hour has no text that a judge could read.
PLAYERS = tuple(Player(f"calibration-{number}", name) for number, name in enumerate((n for n in NAMES if n != NOTHING), start=1))


@dataclass(frozen=True)
class Skill:
    """Expected dollars an hour of an agent, with the standard error of that mean."""

    agent_id: str
    name: str
    expected_usd: float
    standard_error: float


def skills(markets: int = SKILL_MARKETS, on_market: Callable[[], None] = lambda: None) -> tuple[Skill, ...]:
    """The skill of every player, over ``markets`` (2 or more) markets of the preset that spawned hours have; 200 take about 4 s."""
    pnls = np.empty((markets, len(PLAYERS)))
    for index in range(markets):
        seed = f"{SEED_PREFIX}{index}"
        scenario = generate(preset("hour", seed=seed, agents=len(PLAYERS), edition=TRAINING.name))
        run = play(scenario, {player.agent_id: factory(player.strategy, scenario) for player in PLAYERS}, seed=seed)
        pnls[index] = [run.pnl_usd[player.agent_id] for player in PLAYERS]
        on_market()
    means, errors = pnls.mean(axis=0), pnls.std(axis=0, ddof=1) / math.sqrt(markets)
    return tuple(Skill(p.agent_id, p.strategy, float(m), float(e)) for p, m, e in zip(PLAYERS, means, errors, strict=True))


def calibration_windows(hours: int) -> list[str]:
    """The hours that are played."""
    return [window_of(window_start(FIRST) + HOUR * index) for index in range(hours)]


def play_hours(
    connection: psycopg.Connection[Any], windows: Sequence[str], seed: int, now: datetime, on_hour: Callable[[], None] = lambda: None
) -> None:
    """Let the players play consecutive hours and write them as a game would, into a database made for this."""
    request = SpawnRequest(agents=len(PLAYERS), model_agents=0, windows=len(windows), seed=seed, start=windows[0])
    spawn(connection, request, now, None, lambda _: on_hour(), players=PLAYERS)


def calibration_name(seed: int) -> str:
    """A name for the hours of ``seed``, another one whenever the market's code gives other hours."""
    scenario = generate(preset("hour", seed=f"{SEED_PREFIX}name", agents=len(PLAYERS), edition=TRAINING.name))
    run = play(scenario, {player.agent_id: factory(player.strategy, scenario) for player in PLAYERS}, script_prompts=TRADER_V1)
    asked = [[call.messages for call in record.calls.values()] for record in run.records.values()]
    return content_version([seed, FIRST, NAMES, encode_run(run).decode(), asked])[:16]
