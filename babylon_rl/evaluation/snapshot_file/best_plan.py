"""Best plan of one agent in a scenario, within a stated class of plans.

The exchange's constraints hold.

The class (`PolicyClass`) acts once a tick, as every agent does: on stocks at even ticks, on questions at odd ones (on either at every tick
where there is only one kind). The start balance is shared beforehand and profits are not put at risk again:

* stocks: one position at a time, long or short in one of them, each opened with the same margin at the same leverage, never through a
  liquidation, closed after at most ``max_turns`` turns or worth its price at the end;
* questions: each is bought at most once, for the same dollars, and kept to its answer or to the end.

Fees, funding, liquidation, limits and the depth of questions' pools are the exchange's; the agent's own impact on stocks is left out, so
that the best plan can be found exactly: of positions one after another by dynamic programming, of purchases by assignment to ticks.
Purchases trade with a pool that nobody else has pushed: shares and their worth at the end follow from the crowd's belief, impact included.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file.schema import OptimalAction, Optimum
from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, OpenPerp
from babylon_rl.market.simulation.arithmetic import exp
from babylon_rl.market.simulation.config import HOUR_S, START_BALANCE, MarketModel
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.scenario import Question, Scenario

Floats = NDArray[np.float64]
SIDES = (1, -1)  # long, short
USD_DECIMALS = 2
_AGENT = "planner"


@dataclass(frozen=True)
class Purchase:
    """Purchase of YES or NO shares at a tick, with its profit after fees."""

    market: str
    yes: bool
    tick: int
    usd: float
    profit: float


def best_purchases(scenario: Scenario, model: MarketModel, turns: range, usd: float) -> tuple[Purchase, ...]:
    """The most profitable purchases for ``usd`` dollars each, in order of ticks.

    At most one a question and one a tick.
    """
    from scipy.optimize import linear_sum_assignment

    ticks = np.array(turns, dtype=np.int64)
    if not len(ticks) or not scenario.questions:
        return ()
    # Profit of every question at every turn, for both sides.
    offers = np.array([[_profits(question, scenario, model, usd, yes)[ticks] for yes in (True, False)] for question in scenario.questions])
    # Nothing is gained by not buying, so an assignment may leave any question out.
    gains = np.maximum(offers.max(axis=1), 0.0)
    # the others can take at most as many ticks from a question as there are others
    few = min(len(scenario.questions), len(ticks))
    columns = np.unique(np.argsort(-gains, axis=1, kind="stable")[:, :few])
    rows, picked = linear_sum_assignment(gains[:, columns], maximize=True)
    purchases = []
    for row, column in zip(rows, columns[picked], strict=True):
        if gains[row, column] > 0.0:
            yes = bool(offers[row, 0, column] >= offers[row, 1, column])
            purchases.append(Purchase(scenario.questions[row].id, yes, int(ticks[column]), usd, float(gains[row, column])))
    return tuple(sorted(purchases, key=lambda purchase: purchase.tick))


def _profits(question: Question, scenario: Scenario, model: MarketModel, usd: float, yes: bool) -> Floats:
    """Profit of a purchase at each tick, held to the answer or the end.

    -inf when the question is not open.
    """
    mine, other = pool_shares(question, model, yes)
    # Constant product: a share for every dollar, and those that the purchase takes out of the pool.
    shares = usd + mine * usd / (other + usd)
    if question.resolve_tick <= scenario.ticks:
        worth = shares if question.answer is yes else np.zeros_like(shares)
    else:
        worth = worth_at_end(question, scenario, model, usd, yes, shares) * (1.0 - model.fee)
    return np.where(is_open(question, scenario), worth - usd * (1.0 + model.fee), -np.inf)


def pool_shares(question: Question, model: MarketModel, yes: bool) -> tuple[Floats, Floats]:
    """The maker's shares of the bought side and of the other, at every moment.

    Only the crowd moves this pool.
    """
    crowd = np.array(question.crowd, dtype=np.float64)
    root = np.sqrt(crowd / (1.0 - crowd))
    sides = (model.pool_shares / root, model.pool_shares * root)
    return sides if yes else (sides[1], sides[0])


def is_open(question: Question, scenario: Scenario) -> NDArray[np.bool_]:
    """Moments at which the question can be bought, as a mask."""
    moments = np.arange(scenario.ticks + 1)
    return (moments >= question.created_tick) & (moments < min(question.resolve_tick, scenario.ticks))


def worth_at_end(question: Question, scenario: Scenario, model: MarketModel, usd: float, yes: bool, shares: Floats) -> Floats:
    """Proceeds of selling at the last moment.

    By then the crowd has taken back most of the purchase's effect on the odds.
    """
    mine, other = pool_shares(question, model, yes)
    pushed = ((other + usd) / other) ** 2  # odds of the bought side over the crowd's, right after the purchase
    pushed = pushed if yes else 1.0 / pushed  # those of YES, which return to the crowd's evenly
    staying = np.ones(scenario.ticks + 1)
    staying[1:] = exp(-model.recovery_per_hour * scenario.tick_seconds / HOUR_S)
    left = np.cumprod(staying)[::-1]  # after as many ticks as there are from each moment to the end
    root = np.sqrt(1.0 + (pushed - 1.0) * left)
    root = root if yes else 1.0 / root
    mine_then, other_then = mine[-1] / root, other[-1] * root
    # Selling into a constant-product pool: the positive root of its quadratic.
    total = mine_then + other_then + shares
    worth: Floats = 2.0 * shares * other_then / (total + np.sqrt(total * total - 4.0 * shares * other_then))
    return worth


@dataclass(frozen=True)
class PolicyClass:
    """Constants of the class: margin and dollars for questions, as shares of the start balance.

    The remainder pays fees.
    """

    start_balance: float = START_BALANCE
    stock_share: float = 0.4
    leverage: float = 5.0
    question_share: float = 0.5
    max_turns: int = 240

    @property
    def margin_usd(self) -> float:
        """The margin of a position in a stock."""
        return self.start_balance * self.stock_share

    def question_usd(self, questions: int) -> float:
        """Dollars paid for the shares of one question."""
        return self.start_balance * self.question_share / max(1, questions)

    def turns(self, scenario: Scenario) -> tuple[range, range]:
        """The ticks at which stocks and questions are traded."""
        both = bool(scenario.assets and scenario.questions)
        return range(0, scenario.ticks, 1 + both), range(int(both), scenario.ticks, 1 + both)

    def sentence(self, questions: int) -> str:
        """The class in words."""
        return (
            f"one action a tick (stocks at even ticks, questions at odd ones); stocks: one position at a time, {self.margin_usd:.0f} $ of "
            f"margin at leverage {self.leverage:g}, held for at most {self.max_turns} turns; questions: each bought at most once for "
            f"{self.question_usd(questions):.0f} $ and kept to its answer or the end; profits are not staked again; fees, funding, "
            "liquidation and pool depth as on the exchange, own impact on stocks left out"
        )


@dataclass(frozen=True)
class Trip:
    """Position in a stock from ``opened`` to ``closed``, with its profit after fees.

    A position closed at the last moment is still open.
    """

    ticker: str
    direction: int
    opened: int
    closed: int
    profit: float


@dataclass(frozen=True)
class BestPlan:
    """The best plan of the class; ``pnl`` in dollars."""

    trips: tuple[Trip, ...]
    purchases: tuple[Purchase, ...]
    policy: PolicyClass
    ticks: int

    @property
    def pnl(self) -> float:
        """Dollars that the plan earns, own impact on stocks left out."""
        return math.fsum([trip.profit for trip in self.trips] + [purchase.profit for purchase in self.purchases])

    def actions(self) -> dict[int, Action]:
        """Actions by tick."""
        by_tick: dict[int, Action] = {}
        for trip in self.trips:
            by_tick[trip.opened] = OpenPerp(
                trip.ticker, "long" if trip.direction > 0 else "short", self.policy.margin_usd, self.policy.leverage
            )
            if trip.closed < self.ticks:
                by_tick[trip.closed] = ClosePerp(trip.ticker)
        for purchase in self.purchases:
            by_tick[purchase.tick] = BuyPrediction(purchase.market, "yes" if purchase.yes else "no", purchase.usd)
        return dict(sorted(by_tick.items()))


def best_plan(scenario: Scenario, model: MarketModel | None = None, policy: PolicyClass | None = None) -> BestPlan:
    """The plan of the class that earns most; the first in time where several do.

    Raises:
        MarketError: the class stakes more than the start balance with its fees, or more leverage than the exchange allows.
    """
    model, policy = model or scenario.model or MarketModel(), policy if policy is not None else PolicyClass()
    # Stakes and their fees must fit into the balance before anything is earned.
    staked = policy.stock_share * (1.0 + policy.leverage * model.fee) + policy.question_share * (1.0 + model.fee)
    if not 1.0 <= policy.leverage <= model.max_leverage or staked > 1.0 or min(policy.stock_share, policy.question_share) < 0.0:
        raise MarketError(
            f"This class cannot be played: it stakes {staked:.1%} of the balance, fees included, at leverage {policy.leverage:g}; "
            f"allowed are 100 % and 1 to {model.max_leverage:g}."
        )
    stock_turns, question_turns = policy.turns(scenario)
    usd = policy.question_usd(len(scenario.questions))
    return BestPlan(
        trips=_best_trips(scenario, model, policy, stock_turns) if scenario.assets else (),
        purchases=best_purchases(scenario, model, question_turns, usd) if usd >= model.min_order_usd else (),
        policy=policy,
        ticks=scenario.ticks,
    )


def _best_trips(scenario: Scenario, model: MarketModel, policy: PolicyClass, turns: range) -> tuple[Trip, ...]:
    """Best sequence of trips, by dynamic programming over moments without a position.

    ``best[i]`` is the maximum before the i-th turn.
    """
    market = _Stocks(scenario, model, policy, turns)
    best = np.zeros(len(turns) + 1)
    chosen: list[tuple[int, int, int, float] | None] = []  # opening turn, stock, direction and profit of the trip that ends at a turn
    for turn in range(len(turns) + 1):
        # Trips are limited, so the search is linear in time.
        first = max(0, turn - policy.max_turns)
        trip, most = None, best[turn]
        profits = market.profits(first, turn)
        if profits.size:
            # What could be earned before the opening turn, and this trip.
            totals = profits + best[first:turn]
            at = int(np.argmax(totals))
            if totals.flat[at] > most:
                side, stock, opened = (int(index) for index in np.unravel_index(at, totals.shape))
                most, trip = totals.flat[at], (first + opened, stock, SIDES[side], float(profits.flat[at]))
        chosen.append(trip)
        if turn < len(turns):
            best[turn + 1] = most
    return _followed(scenario, turns, chosen)


def _followed(scenario: Scenario, turns: range, chosen: list[tuple[int, int, int, float] | None]) -> tuple[Trip, ...]:
    moments, trips, turn = [*turns, scenario.ticks], [], len(turns)
    while turn >= 0:
        trip = chosen[turn]
        if trip is None:
            turn -= 1
            continue
        opened, stock, direction, profit = trip
        trips.append(Trip(scenario.assets[stock].ticker, direction, moments[opened], moments[turn], profit))
        turn = opened - 1  # what is flat before the opening turn was flat after the one before it
    return tuple(reversed(trips))


class _Stocks:
    """Profits of all trips that end at a turn, for turns in order.

    Index ``len(turns)`` is the end of the market.
    """

    def __init__(self, scenario: Scenario, model: MarketModel, policy: PolicyClass, turns: range) -> None:
        prices = np.array([asset.prices for asset in scenario.assets], dtype=np.float64)
        self._moments = [*turns, scenario.ticks]
        self._prices, self._at = prices, prices[:, self._moments]
        self._paid = np.cumsum(_funding(scenario), axis=1)[:, self._moments]
        self._usd, self._fee = policy.margin_usd * policy.leverage, model.fee
        self._lowest, self._highest = self._at.copy(), self._at.copy()  # since a turn, for positions opened in it
        share, maintenance = 1.0 / policy.leverage, model.maintenance
        # a long is liquidated at this share of its entry price, a short at that one
        self._floor, self._ceiling = (1.0 - share) / (1.0 - maintenance), (1.0 + share) / (1.0 + maintenance)
        # The exchange limits how far an order moves a stock: at a lower price the same dollars are more units, and move it further.
        room = self._usd * model.impact_per_usd / model.max_impact if model.max_impact > 0.0 else 1.0
        self._open = self._at > prices[:, :1] * room

    def profits(self, first: int, turn: int) -> Floats:
        """Profits of closing at ``turn``, sides x stocks x opening turns ``first..turn-1``.

        In dollars; -inf where it is not allowed.
        """
        if turn == 0:
            return np.empty((2, len(self._prices), 0))
        # Prices after the previous turn, with both ends of positions that close now.
        since = self._prices[:, self._moments[turn - 1] + 1 : self._moments[turn] + 1]
        window = slice(first, turn)
        low, high, entry = self._lowest[:, window], self._highest[:, window], self._at[:, window]
        # Extremes since opening, updated in place for every open turn.
        np.minimum(low, since.min(axis=1, keepdims=True), out=low)
        np.maximum(high, since.max(axis=1, keepdims=True), out=high)
        usd, fee = self._usd, self._fee
        units = usd / entry
        worth, funding = units * self._at[:, turn : turn + 1], units * (self._paid[:, turn : turn + 1] - self._paid[:, window])
        charges = fee * (usd + worth)
        gain = worth - usd - funding
        # No opening whose impact would exceed its limit, and no trip through a liquidation.
        allowed = self._open[:, window]
        long = np.where(allowed & (low > entry * self._floor), gain - charges, -np.inf)
        short = np.where(allowed & (high < entry * self._ceiling), -gain - charges, -np.inf)
        return np.stack((long, short))


def _funding(scenario: Scenario) -> Floats:
    """Funding that a long of one unit pays at every moment in dollars, stocks x moments."""
    due = np.zeros((len(scenario.assets), scenario.ticks + 1))
    for row, asset in enumerate(scenario.assets):
        for number, rate in enumerate(asset.funding):
            tick = (number + 1) * scenario.funding_ticks
            if tick <= scenario.ticks:
                due[row, tick] = rate * asset.prices[tick]
    return due


def upper_bound(scenario: Scenario, start_balance: float = START_BALANCE) -> float:
    """Upper bound, in dollars, on the P&L of any plan, at any stake and leverage.

    It holds for an agent that never has more than the start balance at risk and buys a question at most once. It frees the agent of fees,
    of one action a tick, of liquidation and of its impact on stocks; funding is only ever received. Two limits stay: the margins of all
    stocks together are at most the start balance, at the highest leverage, so each tick earns at most the move of the stock that moves
    most; and each question, by itself, gives at most what its pool has for the whole balance.
    """
    model = scenario.model or MarketModel()
    stocks = _stocks_bound(scenario, model, start_balance) if scenario.assets else 0.0
    return stocks + math.fsum(_question_bound(question, scenario, model, start_balance) for question in scenario.questions)


def _stocks_bound(scenario: Scenario, model: MarketModel, balance: float) -> float:
    """Upper bound for stocks: the best move of every tick.

    Units are those that the balance buys at the stock's lowest price so far.
    """
    prices = np.array([asset.prices for asset in scenario.assets], dtype=np.float64)
    # As if every position had been opened at the lowest price so far.
    units = balance * model.max_leverage / np.minimum.accumulate(prices, axis=1)[:, :-1]
    earned = units * np.abs(np.diff(prices, axis=1)) + np.abs(_funding(scenario)[:, 1:]) * units
    return math.fsum(earned.max(axis=0).tolist())


def _question_bound(question: Question, scenario: Scenario, model: MarketModel, balance: float) -> float:
    """Upper bound for a question: the best purchase with the whole balance.

    Without an answer in the market either side counts, sold at its highest possible price.
    """
    opened, answered = is_open(question, scenario), question.resolve_tick <= scenario.ticks
    if not opened.any():
        return 0.0
    best = 0.0
    for yes in (question.answer,) if answered else (True, False):
        mine, other = pool_shares(question, model, yes)
        surplus = mine * balance / (other + balance)  # shares received beyond one for each dollar
        if not answered:
            odds = other[-1] / mine[-1] * ((other + balance) / other) ** 2
            # a share is sold for no more than the price that the purchase could leave, and was bought for no less than the one it met
            surplus = np.minimum(surplus, balance * np.maximum(0.0, odds / (1.0 + odds) * (mine + other) / other - 1.0))
        best = max(best, float(surplus[opened].max()))
    return best


def optimality_score(pnl: float, best_pnl: float) -> float:
    """`optimality`, 0 to 100, where the best of the class earns ``best_pnl`` dollars."""
    if best_pnl <= 0.0:
        return 100.0 if pnl >= 0.0 else 0.0
    return 100.0 * max(0.0, min(1.0, pnl / best_pnl))


def optimum(scenario: Scenario, plan: BestPlan) -> Optimum:
    """P&L of the best plan: in its own accounting, on the exchange, upper bound."""
    balance = plan.policy.start_balance
    return Optimum(
        pnl=round(plan.pnl, USD_DECIMALS),
        played=round(played(scenario, plan), USD_DECIMALS),
        upper_bound=round(upper_bound(scenario, balance), USD_DECIMALS),
        start_balance=balance,
        policy=plan.policy.sentence(len(scenario.questions)),
    )


def played(scenario: Scenario, plan: BestPlan) -> float:
    """Dollars that one agent earns on the exchange by carrying out a plan."""
    exchange, actions = Exchange(scenario, [_AGENT], plan.policy.start_balance), plan.actions()
    # Played on the real exchange, so that the class's accounting is checked.
    while not exchange.over:
        if exchange.tick in actions:
            exchange.apply(_AGENT, actions[exchange.tick])
        exchange.advance()
    return exchange.equity(_AGENT) - plan.policy.start_balance


def listed(plan: BestPlan) -> tuple[OptimalAction, ...]:
    """Actions of the plan in the form of a snapshot.

    Their values add up to the plan's profit.
    """
    actions = []
    for trip in plan.trips:
        side = "long" if trip.direction > 0 else "short"
        moves = "rises" if trip.direction > 0 else "falls"
        usd, leverage, value = plan.policy.margin_usd, plan.policy.leverage, round(trip.profit, USD_DECIMALS)
        reason = f"{trip.ticker} {moves} until tick {trip.closed}"
        actions.append(OptimalAction(trip.opened, "open_perp", trip.ticker, value, reason, side, usd, leverage))
        if trip.closed < plan.ticks:
            actions.append(OptimalAction(trip.closed, "close_perp", trip.ticker, 0.0, f"closes the {side} of tick {trip.opened}"))
    for purchase in plan.purchases:
        side = "yes" if purchase.yes else "no"
        reason = f"{side.upper()} of {purchase.market} is at its cheapest for what it comes to"
        value = round(purchase.profit, USD_DECIMALS)
        actions.append(OptimalAction(purchase.tick, "buy_prediction", purchase.market, value, reason, side, purchase.usd))
    return tuple(sorted(actions, key=lambda action: action.tick))
