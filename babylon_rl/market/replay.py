"""Replay of a simulated hour: dollars of every answer that an agent could have given, each played for its tick.

The hour is played again with everybody's recorded answers. At a recorded call the exchange is copied once for each answer that the call's
schema allows, and the tick is played in the copy with everybody else's recorded answers, in the recorded order of fills. An answer's
dollars are over those of holding: what is open moves with every answer but the one that closes it, and counts by what closing would bring.
So it is for each of several futures of the tick: the luck of one is more than most answers can gain.

A replay that differs from the record says nothing about the hour. Every prompt must be the recorded one to the byte, and every agent's P&L
the recorded one to the digits that are kept; otherwise the hour is refused. Left out: what an answer brings after its
tick.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.errors import MarketError, UsageError
from babylon_rl.market.simulation import prompting
from babylon_rl.market.simulation.actions import Action, Invalid
from babylon_rl.market.simulation.agents import STAKE_USD, Decision, Mandate, order
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game
from babylon_rl.market.simulation.generation import futures
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.record import HOLD
from babylon_rl.market.simulation.run import GameTable
from babylon_rl.market.simulation.scenario import Asset, Question, Scenario
from babylon_rl.market.simulation.strategies import STAKES_USD
from babylon_rl.models.grammar import language
from babylon_rl.types import SCRIPTED

FUTURES = 8  # of a tick
MOST_ANSWERS = 64  # of a group; a target over a part of them would push down all others


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """One recorded decision. ``call_id`` is empty where no call is on record; P&L is in dollars, as recorded.

    ``model`` is the one that was asked, or the name of a script, whose stake is its own. ``asks`` marks a call to be replayed with every
    answer.
    """

    trajectory_id: str
    start_pnl: float
    end_pnl: float
    call_id: str = ""
    messages: Sequence[dict[str, str]] = ()
    response: str = ""
    response_format: Mapping[str, Any] | None = None
    model: str = ""
    model_version: str | None = None
    asks: bool = False


@dataclass(frozen=True, slots=True)
class ReplayedCall:
    """The answers to one recorded prompt, each with its dollars over holding in every future of its tick; in the order of its schema."""

    trajectory_id: str
    call_id: str
    model_version: str | None
    answers: tuple[tuple[str, Sequence[float]], ...]


def replay(
    scenario: Scenario, seed: int, seats: Mapping[str, float], turns: Mapping[str, Sequence[RecordedTurn]], game: Game = ONE_TICK_GAME
) -> list[ReplayedCall]:
    """Play an hour again and return the answers to its calls that ask, by tick and seat.

    Args:
        seed: of the run.
        seats: start balances in dollars by agent id, in the order of seats.
        turns: each agent's recorded decisions, one a tick. game: what they played.

    Raises:
        MarketError: the replay differs from the record; the message names the first difference.
    """
    table = GameTable(scenario, {agent: lambda *_: _Recorded(game.mandate) for agent in seats}, seed, seats)
    found: list[ReplayedCall] = []
    for agent, own in turns.items():
        if len(own) != scenario.ticks:
            raise MarketError(f"{agent} has {len(own)} recorded decisions of {scenario.ticks}: the others are gone or do not count.")
    for tick in range(scenario.ticks):
        seen = table.look()
        actions = {agent: _decided(turns[agent][tick], turns[agent][tick].response, seen[agent], game) for agent in seats}
        others = futures(scenario, tick, FUTURES)
        for agent in seats:
            turn, observed = turns[agent][tick], seen[agent]
            if turn.call_id and list(turn.messages) != prompting.messages(observed, game.prompt_version):
                raise MarketError(f"The replay of tick {tick} shows {agent} another prompt than the recorded one.")
            if turn.asks and (answers := _answers(turn)):
                decided = {text: _decided(turn, text, observed, game) for text in answers}
                gained = tuple(gains(table, actions, agent, decided, others).items())
                found.append(ReplayedCall(turn.trajectory_id, turn.call_id, turn.model_version, gained))
        table.play(actions)
    table.look()
    for agent, own in turns.items():
        _same_money(table, agent, own)
    return found


class _Recorded:
    """Agent whose decisions are given from outside."""

    name = "recorded"

    def __init__(self, mandate: Mandate) -> None:
        self.mandate = mandate

    def decide(self, seen: Observation) -> Action:
        raise NotImplementedError("a recorded agent is given its actions")


def gains(
    table: GameTable,
    actions: Mapping[str, Decision],
    agent: str,
    decisions: Mapping[str, Decision],
    others: Sequence[Mapping[str, Asset | Question]],
) -> dict[str, list[float]]:
    """Play the tick with each decision that one agent could make; return their dollars over holding, by name and future.

    Args:
        actions: what everybody does.
        decisions: of the agent, by name. others: what differs in each of the tick's ``futures``.
    """
    gained = {name: list[float]() for name in decisions}
    for other in others:
        held = _brought(table, {**actions, agent: Decision(HOLD)}, agent, other)
        for name, decision in decisions.items():
            gained[name].append(_brought(table, {**actions, agent: decision}, agent, other) - held)
    return gained


def _brought(table: GameTable, actions: Mapping[str, Decision], agent: str, other: Mapping[str, Asset | Question]) -> float:
    """Dollars of one agent after the tick of these actions in a future."""
    scenario = table.exchange.scenario
    # What never changes is shared by the copy, in which the future's stocks and questions take the place of the market's own.
    shared: dict[int, object] = {id(one): one for one in (scenario, table.exchange.model)}
    shared |= {id(own): other.get(own.ticker, own) for own in scenario.assets}
    shared |= {id(own): other.get(own.id, own) for own in scenario.questions}
    return table.usd(agent, actions, copy.deepcopy(table.exchange, shared))


def _decided(turn: RecordedTurn, text: str, seen: Observation, game: Game) -> Decision:
    """The order of an answer, as the agent of this turn gave it."""
    choice = prompting.parse_choice(text, seen, game)
    if isinstance(choice, Invalid) or game.names_size:
        return Decision(prompting.ordered(text, seen, game))
    return Decision(order(choice, seen, STAKES_USD.get(turn.model.removeprefix(SCRIPTED), STAKE_USD)))


def _answers(turn: RecordedTurn) -> Sequence[str]:
    """Answers that the schema of a call allows, in its order; none where there are more than ``MOST_ANSWERS``."""
    try:
        named = (turn.response_format or {}).get("json_schema")
        allowed = language(named["schema"]) if isinstance(named, dict) and isinstance(named.get("schema"), dict) else ()
    except UsageError:  # not finitely many
        return ()
    return allowed if len(allowed) <= MOST_ANSWERS else ()


def _same_money(table: GameTable, agent: str, own: Sequence[RecordedTurn]) -> None:
    equity, start = table.seats[agent].record.equity, table.seats[agent].record.account.start
    earlier = own[0].start_pnl - start
    for tick, turn in enumerate(own):
        before, after = round(earlier + equity[tick], 6), round(earlier + equity[tick + 1], 6)
        if (before, after) != (turn.start_pnl, turn.end_pnl):
            brought, recorded = after - before, turn.end_pnl - turn.start_pnl
            raise MarketError(f"The replay of tick {tick} brings {agent} ${brought:.6f}, and ${recorded:.6f} is on record.")
