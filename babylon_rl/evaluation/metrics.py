"""Metrics of a run, and the results built from them: money, risk, forecasts, decisions and reactions of one agent.

A question's purchase is read as a forecast: paying 0.70 for a share of YES says that YES has 70 % or more. ``brier`` scores what was
paid, ``marketBrier`` the crowd's probability of the same side at the same moment, and ``edge`` is the mean of right (1 or 0) less paid.
Positions follow one after another, each with what it brought; together they are the run's whole P&L.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Any

import msgspec
from msgspec import structs

from babylon_rl.evaluation.ceiling import ceiling_usd, errors_by_kind, expected_usd
from babylon_rl.evaluation.results import (
    BENCHMARK,
    ActionTaken,
    Bin,
    Forecast,
    Metrics,
    Moment,
    PerpMetrics,
    PredictionMetrics,
    Result,
    RunTrajectory,
    SocialMetrics,
    Timing,
)
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.market.simulation.actions import Action, Invalid, kind
from babylon_rl.market.simulation.agents import Choice
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.games import Game
from babylon_rl.market.simulation.ledger import Fill, Refusal, Settlement
from babylon_rl.market.simulation.prompting import choice_of, stake_usd
from babylon_rl.market.simulation.record import AgentRecord, Outcome
from babylon_rl.market.simulation.run import Run
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.store.benchmarks import MarketResult

OPENING, CLOSING = ("buy_prediction", "open_perp"), ("sell_prediction", "close_perp")


def purchases(record: AgentRecord) -> Iterator[Fill]:
    """The fills that opened positions or added to them, by tick."""
    for outcome in record.outcomes:
        if isinstance(outcome, Fill) and outcome.kind in OPENING:
            yield outcome


def profits(record: AgentRecord, exchange: Exchange) -> dict[str, float]:
    """Dollars of a run's positions after fees and funding, by id, in order of opening. ``exchange`` is in its state at the run's end."""
    by_id = {fill.position: 0.0 for fill in purchases(record)}
    for closing in chain(record.outcomes, *record.closed.values(), record.settled):
        if isinstance(closing, Fill | Settlement) and closing.profit is not None:
            by_id[closing.position] += closing.profit
    account = exchange.accounts[record.agent_id]
    # Still open at the end: worth the proceeds of closing them now.
    worth = {perp.id: exchange.worth(perp) - perp.margin - perp.paid for perp in account.perps.values()}
    worth |= {shares.id: exchange.worth(shares) - shares.cost for shares in account.shares.values()}
    for name, usd in worth.items():
        by_id[name] += usd
    return by_id


BINS = 10
INVALID = "invalid"
FEWEST_TO_DRAW = 4  # changes behind a Sharpe ratio in a picture: of two alike it is a ratio of any size
_DIRECTION = {"long": 1, "yes": 1, "short": -1, "no": -1}


def metrics_of(
    actions: Sequence[ActionTaken], equity: Sequence[float], forecasts: Sequence[Forecast], start_balance: float, optimum: float
) -> Metrics:
    """The metrics that follow from a run's decisions, forecasts and equity at moments 0 to the last; the others have their defaults.

    ``optimum`` is the oracle's P&L.
    """
    opened = [action.correctness for action in actions if action.correctness is not None]
    pnl, pnls = equity[-1] - start_balance, _pnls(opened)
    # Positions that came out at exactly 0 are neither, and not in the win rate.
    won, lost = sum(usd > 0.0 for usd in pnls), sum(usd < 0.0 for usd in pnls)
    shares = action_shares(map(action_name, actions))
    invalid, refused = (
        Counter(str(action.data.get(why)) for action in actions if action.data.get("outcome") == outcome)
        for outcome, why in (("invalid", "reason"), ("refused", "code"))
    )
    posts = sum(action.type == "post" and action.data.get("outcome") == "filled" for action in actions)
    durations = [action.duration for action in actions]
    brier, market_brier, edge = forecast_scores(forecasts)
    return Metrics(
        total_pnl=pnl,
        prediction_metrics=_predictions([position for position in opened if "predictionCorrect" in position]),
        perp_metrics=_perps(_pnls(position for position in opened if "predictionCorrect" not in position), equity),
        social_metrics=SocialMetrics(posts_created=posts, groups_joined=0, messages_received=0, reputation_gained=0.0),
        timing=Timing(
            avg_response_time=_mean(durations) or 0.0,
            max_response_time=max(durations, default=0.0),
            total_duration=math.fsum(durations),
        ),
        optimality_score=optimality_score(pnl, optimum),
        return_share=pnl / start_balance if start_balance > 0.0 else 0.0,
        sharpe=sharpe(equity),
        max_drawdown_share=max(drawdown_shares(equity)) if start_balance > 0.0 else None,
        win_rate=share(won, won + lost),
        brier=brier,
        market_brier=market_brier,
        edge=edge,
        calibration=calibration(forecasts),
        invalid=dict(sorted(invalid.items())),
        refused=dict(sorted(refused.items())),
        invalid_rate=share(invalid.total(), len(actions)),
        action_shares=shares,
        action_entropy=entropy_bits(shares),
    )


def forecasts(record: AgentRecord, scenario: Scenario) -> list[Forecast]:
    """Purchases of questions' shares as forecasts, without fees."""
    rows = []
    for fill in purchases(record):
        if fill.kind == "buy_prediction":
            question = scenario.question(fill.market)
            yes = fill.side == "yes"
            crowd = question.crowd[fill.tick]
            paid = min(1.0, max(0.0, fill.price))
            rows.append(Forecast(
                tick=fill.tick, market=fill.market, side=fill.side, paid=paid, crowd=crowd if yes else 1.0 - crowd,
                right=yes == question.answer,
            ))  # fmt: skip
    return rows


def forecast_scores(forecasts: Sequence[Forecast]) -> tuple[float | None, float | None, float | None]:
    """Brier score of what was paid, that of the crowd, and the edge; None without a forecast."""
    return (
        _mean([(forecast.paid - forecast.right) ** 2 for forecast in forecasts]),
        _mean([(forecast.crowd - forecast.right) ** 2 for forecast in forecasts]),
        _mean([forecast.right - forecast.paid for forecast in forecasts]),
    )


def calibration(forecasts: Sequence[Forecast]) -> list[Bin]:
    """Forecasts in ten bins by price paid; empty bins are left out."""
    of_bin: dict[int, list[Forecast]] = {}
    for forecast in forecasts:
        # A price of exactly 1 belongs to the last bin.
        of_bin.setdefault(min(BINS - 1, int(forecast.paid * BINS)), []).append(forecast)
    return [
        Bin(
            low=number / BINS, high=(number + 1) / BINS, count=len(members),
            forecast=math.fsum(forecast.paid for forecast in members) / len(members),
            observed=sum(forecast.right for forecast in members) / len(members),
        )
        for number, members in sorted(of_bin.items())
    ]  # fmt: skip


def action_name(action: ActionTaken) -> str:
    """A decision's kind with its side, such as ``open_perp:long``."""
    return f"{action.type}:{action.data['side']}" if action.type != INVALID and "side" in action.data else action.type


def action_shares(names: Iterable[str]) -> dict[str, float]:
    """Each kind's share of all decisions, by name; refused orders count as ordered. Empty without a decision."""
    counts = Counter(names)
    return {name: counts[name] / counts.total() for name in sorted(counts)}


def entropy_bits(shares: Mapping[str, float]) -> float | None:
    """Shannon's entropy of the shares: 0 for one action only, None without any."""
    if not shares:
        return None
    return max(0.0, -math.fsum(share * math.log2(share) for share in shares.values() if share > 0.0))


def sharpe(equity: Sequence[float]) -> float | None:
    """Sharpe ratio: mean over standard deviation of the changes, times the root of their number.

    None for fewer than two changes, or without spread.
    """
    changes = [after - before for before, after in pairwise(equity)]
    if len(changes) < 2:
        return None
    mean = math.fsum(changes) / len(changes)
    spread = math.sqrt(math.fsum((change - mean) ** 2 for change in changes) / (len(changes) - 1))
    return mean / spread * math.sqrt(len(changes)) if spread > 1e-9 else None


def sharpe_path(equity: Sequence[float], fewest: int = 2) -> list[float | None]:
    """``sharpe`` up to every moment, None before ``fewest`` changes."""
    ratios: list[float | None] = [None] if len(equity) else []
    total = squares = 0.0
    for count, (before, after) in enumerate(pairwise(equity), 1):
        total, squares = total + after - before, squares + (after - before) ** 2
        variance = (squares - total * total / count) / (count - 1) if count > 1 else 0.0
        ratios.append(total / count / math.sqrt(variance) * math.sqrt(count) if count >= fewest and variance > 1e-12 else None)
    return ratios


def drawdowns(equity: Sequence[float]) -> list[float]:
    """Dollars below the highest equity so far, at every moment."""
    return [peak - value for peak, value in zip(accumulate(equity, max), equity, strict=True)]


def drawdown_shares(equity: Sequence[float]) -> list[float]:
    """``drawdowns`` as shares of the peak so far."""
    return [fall / peak if peak > 0.0 else 0.0 for fall, peak in zip(drawdowns(equity), accumulate(equity, max), strict=True)]


def reaction_ticks(record: AgentRecord, scenario: Scenario, ticks: int) -> tuple[list[float], int]:
    """Ticks from news to the first purchase in its direction, and the news count.

    News counts that says a direction and could be read within ``ticks``; a purchase counts while that news had an effect.
    """
    bought: dict[tuple[str, int], list[int]] = {}
    for fill in purchases(record):
        bought.setdefault((fill.market, _DIRECTION[fill.side]), []).append(fill.tick)
    delays, news = [], 0
    for event in scenario.events:
        if event.tick < ticks and event.direction:
            news += 1
            first = next((tick for tick in bought.get((event.about, event.direction), ()) if tick >= event.tick), None)
            # Later than its effect a purchase in the same direction is no reaction to it.
            if first is not None and first <= event.tick + event.ticks:
                delays.append(float(first - event.tick))
    return delays, news


def share(part: float, whole: float) -> float | None:
    """``part / whole``, None of nothing."""
    return part / whole if whole else None


def _predictions(opened: Sequence[Mapping[str, Any]]) -> PredictionMetrics:
    right, count, pnl = sum(bool(position["predictionCorrect"]) for position in opened), len(opened), math.fsum(_pnls(opened))
    return PredictionMetrics(
        total_positions=count, correct_predictions=right, incorrect_predictions=count - right, accuracy=share(right, count),
        avg_pnl_per_position=share(pnl, count), pnl=pnl,
    )  # fmt: skip


def _perps(pnls: Sequence[float], equity: Sequence[float]) -> PerpMetrics:
    won, pnl = sum(usd > 0.0 for usd in pnls), math.fsum(pnls)
    return PerpMetrics(
        total_trades=len(pnls), profitable_trades=won, win_rate=share(won, len(pnls)), avg_pnl_per_trade=share(pnl, len(pnls)),
        max_drawdown=max(drawdowns(equity)), pnl=pnl,
    )  # fmt: skip


def _pnls(opened: Iterable[Mapping[str, Any]]) -> list[float]:
    return [float(position.get("pnl", 0.0)) for position in opened]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


_NO_TRADE = ("hold", "post")


@dataclass(frozen=True)
class RunLabel:
    """Identity of a result: player, seed, repeat and engine. ``key`` is unique to player, market, seed and repeat.

    ``game`` is what a player that decides by the prompt plays, None of others.
    """

    name: str
    identity: str
    role: str
    mandate: str
    seed: int | str
    repeat: int
    key: str
    engine: str
    game: Game | None = None


def result_id(key: str) -> str:
    return f"result-{key}"


def result_of(run: Run, agent_id: str, snapshot: Snapshot, label: RunLabel) -> Result:
    """The result of one agent of a run; strategies have response times of 0."""
    record, scenario, ticks = run.records[agent_id], run.scenario, run.ticks_played
    equity, account, made = list(record.equity), record.account, forecasts(record, scenario)
    actions = list(_actions(run, record))
    reactions, news = reaction_ticks(record, scenario, ticks)
    metrics = metrics_of(actions, equity, made, account.start, snapshot.best_pnl)
    metrics = structs.replace(
        metrics,
        perp_metrics=structs.replace(metrics.perp_metrics, liquidations=account.liquidations),
        social_metrics=structs.replace(metrics.social_metrics, messages_received=sum(post.tick < ticks for post in scenario.posts)),
        trades=account.trades,
        fees=account.fees,
        funding=account.funding,
        news_with_direction=news,
        reaction_ticks=_mean(reactions),
        reaction_share=share(len(reactions), news),
    )
    result = Result(
        id=result_id(label.key),
        agent_id=label.name,
        benchmark_id=snapshot.id,
        start_time=scenario.timestamp_ms(0),
        end_time=scenario.timestamp_ms(ticks),
        ticks_processed=ticks,
        actions=actions,
        metrics=metrics,
        trajectory=RunTrajectory(
            states=[
                Moment(tick=tick, timestamp=scenario.timestamp_ms(tick), balance=balance, equity=usd, open_positions=held)
                for tick, (balance, usd, held) in enumerate(zip(record.balance, equity, record.held, strict=True))
            ],
            actions=[msgspec.to_builtins(action) for action in record.actions],
            rewards=[after - before for before, after in pairwise(equity)],
            window_id=f"{BENCHMARK}{snapshot.id}",
        ),
        identity=label.identity,
        role=label.role,
        mandate=label.mandate,
        snapshot=snapshot.digest,
        seed=label.seed,
        repeat=label.repeat,
        ticks=scenario.ticks,
        tick_interval=scenario.tick_seconds,
        start_balance=account.start,
        optimum=snapshot.best_pnl,
        engine=label.engine,
        edition=scenario.config.edition if scenario.config is not None else "",
        complete=run.complete,
        stopped=run.stopped,
        forecasts=made,
    )
    if label.game is None or not run.complete:
        return result
    market = replace(snapshot, game=label.game)
    worth = structs.replace(metrics, expected_usd=expected_usd(result, market), ceiling_usd=ceiling_usd(market))
    return structs.replace(result, metrics=worth)


def stakes_usd(result: Result) -> list[float]:
    """Stakes of the orders that opened a position, leverage included."""
    return [usd for *_, usd in _opened(_decided(result))]


def _decided(result: Result) -> list[tuple[Action, Choice, str]]:
    """The order of every tick, its choice, and its outcome."""
    return [(order, choice_of(order), outcome) for order, outcome in result.orders]


def _opened(decided: Sequence[tuple[Action, Choice, str]]) -> list[tuple[int, str, int, float]]:
    """Tick, market, direction and stake of the orders that opened a position."""
    return [
        (tick, choice.market, choice.direction, stake_usd(order))
        for tick, (order, choice, outcome) in enumerate(decided)
        if outcome == "filled" and choice.market is not None
    ]


def market_result(result: Result, snapshot: Snapshot) -> MarketResult:
    """The gate's row of a result: counts of orders, and P&L after every tick.

    An opening order is right when its direction was the market's over the tick, the player's own impact left out. A closing counts as sold.
    """
    decided = _decided(result)
    outcomes = Counter(outcome for _, _, outcome in decided)
    valid = Counter("sell" if kind(order) in CLOSING else choice.action for order, choice, outcome in decided if outcome != "invalid")
    opened = _opened(decided)
    # The market's own path, without the player's impact.
    paths = {asset.ticker: asset.prices for asset in snapshot.scenario.assets}
    paths |= {question.id: question.crowd for question in snapshot.scenario.questions}
    # From moment 0 on, where it is 0; the row keeps it from the first tick on.
    pnls = [equity - result.start_balance for equity in result.equity]
    return MarketResult(
        snapshot=snapshot.id,
        pnl_usd=pnls[-1],
        wins=sum(profit > 0 for profit in result.profits),
        losses=sum(profit < 0 for profit in result.profits),
        trades=sum(outcome == "filled" and kind(order) not in _NO_TRADE for order, _, outcome in decided),
        decisions=len(decided),
        invalid=outcomes["invalid"],
        refused=outcomes["refused"],
        actions={action: valid[action] for action in ("buy", "sell", "hold")},
        predictions=len(opened),
        predictions_right=sum((paths[market][tick + 1] - paths[market][tick]) * sign > 0 for tick, market, sign, _ in opened),
        equity_usd=tuple(pnls[1:]),
        expected_usd=result.expected_usd,
        ceiling_usd=result.ceiling_usd,
        errors=() if result.expected_usd is None else errors_by_kind(result, snapshot),
        staked_usd=math.fsum(usd for *_, usd in opened),
    )


def decision_lines(run: Run, agent_id: str) -> Iterator[bytes]:
    """Every decision as a JSON line: action, outcome, money, and the model's request and answer."""
    record = run.records[agent_id]
    for tick in range(run.ticks_played):
        turn = record.turn(tick)
        settled = [settlement for settlement in record.settled if settlement.tick == tick + 1]
        yield msgspec.json.encode({
            "tick": tick, "timestamp": run.scenario.timestamp_ms(tick), "action": turn.action, "outcome": _outcome_values(turn.outcome),
            "closed": turn.closed, "settled": settled, "balance": turn.balance,
            "equity": turn.equity, "equityAfter": turn.equity_after, "call": turn.call,
        }) + b"\n"  # fmt: skip


def _actions(run: Run, record: AgentRecord) -> Iterator[ActionTaken]:
    brought = profits(record, run.exchange)
    for tick, (action, outcome) in enumerate(zip(record.actions, record.outcomes, strict=True)):
        correctness = None
        # Correctness stands with the purchase that opened the position, once.
        if isinstance(outcome, Fill) and outcome.kind in OPENING and outcome.position in brought:
            pnl = brought.pop(outcome.position)
            correctness = {"perpCorrect": pnl > 0.0, "pnl": pnl}
            if outcome.kind == "buy_prediction":
                answer = run.scenario.question(outcome.market).answer
                correctness = {"predictionCorrect": (outcome.side == "yes") == answer, "pnl": pnl}
        # An unusable answer is no order.
        order = {} if isinstance(outcome, Invalid) else msgspec.to_builtins(action)
        latency_ms = record.calls[tick].latency_ms if tick in record.calls else 0.0
        yield ActionTaken(
            tick=tick, timestamp=run.scenario.timestamp_ms(tick), type=order.pop("action", INVALID),
            data=order | _outcome_values(outcome), duration=max(0.0, latency_ms), correctness=correctness,
        )  # fmt: skip


def _outcome_values(outcome: Outcome) -> dict[str, Any]:
    """Outcome of an action as plain values: filled, refused or invalid, and how."""
    if isinstance(outcome, Invalid):
        return {"outcome": "invalid", "reason": outcome.reason}
    if isinstance(outcome, Refusal):
        return {"outcome": "refused", "code": outcome.code, "reason": outcome.reason}
    if not outcome.position:
        return {"outcome": "filled"}
    fill = {"outcome": "filled", "quantity": outcome.quantity, "price": outcome.price, "filledUsd": outcome.usd, "fee": outcome.fee}
    return {**fill, "position": outcome.position, **({} if outcome.profit is None else {"profit": outcome.profit})}


def optimality_score(pnl: float, best_pnl: float) -> float:
    """Score 0..100: P&L as a percentage of the oracle's, clamped. Where the oracle earns nothing, an agent that loses nothing has 100."""
    if best_pnl <= 0.0:
        return 100.0 if pnl >= 0.0 else 0.0
    return 100.0 * max(0.0, min(1.0, pnl / best_pnl))
