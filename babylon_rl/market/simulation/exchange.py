"""The markets of a scenario as agents move them: quotes, orders, and settlements by time.

A run alternates: agents act at tick t by `apply`, then `advance` brings what happened by t + 1: prices and beliefs move, funding is
settled, positions without margin are liquidated, questions are resolved. Balances never fall below zero: an order that is not covered is
refused, and the house bears what a position loses beyond its margin. Orders are carried out in full, or refused and change nothing.

A position is worth what closing it now would bring after its fee: its owner's own impact counts against it, so trading by itself
never makes anybody richer, not even on paper.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.actions import (
    MAX_POST_CHARACTERS,
    Action,
    BuyPrediction,
    ClosePerp,
    Hold,
    OpenPerp,
    SellPrediction,
    WritePost,
    kind,
)
from babylon_rl.market.simulation.arithmetic import exp
from babylon_rl.market.simulation.config import HOUR_S, START_BALANCE, MarketModel
from babylon_rl.market.simulation.ledger import (
    Account,
    Fill,
    PerpPosition,
    QuestionQuote,
    Quotes,
    Refusal,
    RefusalCode,
    Settlement,
    SharePosition,
    StockQuote,
)
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.market.simulation.venue import PerpBook, Pool

DUST_USD = 0.01  # what would be left below this is closed too
MIN_SHARE = 1e-6


class _Refused(Exception):
    """An action cannot be carried out."""

    def __init__(self, code: RefusalCode, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Exchange:
    """The exchange of one run.

    Args:
        agents: the ids of those who trade, in a fixed order.
        start_balance: dollars for each, or by agent id.
        model: fees, impact, leverage and depth; by default those that the scenario was generated with.

    Attributes:
        tick: the moment it is, 0 to ``scenario.ticks``.
        accounts: by agent id; books: by ticker; pools: by question id, from the question's first moment on.
        house_cash: dollars of the house, which is everybody else: the crowd, the makers and the venue. It may be negative.
        posted: tick, agent and text of agents' posts.

    Raises:
        MarketError: an id given twice, or a start balance that is missing or below zero.
    """

    def __init__(
        self,
        scenario: Scenario,
        agents: Sequence[str],
        start_balance: float | Mapping[str, float] = START_BALANCE,
        model: MarketModel | None = None,
    ) -> None:
        self.scenario = scenario
        self.model = model or scenario.model or MarketModel()
        self.tick = self._positions = 0
        self.house_cash = 0.0
        self.accounts: dict[str, Account] = {}
        for agent in agents:
            balance = start_balance.get(agent, -1.0) if isinstance(start_balance, Mapping) else start_balance
            if agent in self.accounts or not 0.0 <= balance < math.inf:
                raise MarketError(f"Agent {agent!r} cannot start with {balance} $: each agent is named once and starts with 0 or more.")
            self.accounts[agent] = Account(agent, float(balance))
        self.books = {asset.ticker: PerpBook(asset, self.model.impact_per_usd) for asset in scenario.assets}
        self.pools: dict[str, Pool] = {}
        self.posted: list[tuple[int, str, str]] = []
        self._recovery = 1.0 - exp(-self.model.recovery_per_hour * scenario.tick_seconds / HOUR_S)
        self._open: list[Pool] = []
        self._coming = sorted(scenario.questions, key=lambda question: (question.created_tick, question.number, question.id))
        self._quotes: Quotes | None = None
        self._open_questions()
        self._write_paths()

    @property
    def over(self) -> bool:
        """Whether the last moment has come."""
        return self.tick >= self.scenario.ticks

    def worth(self, position: PerpPosition | SharePosition) -> float:
        """Proceeds of closing a position now, never below 0. After the fee and with its margin."""
        if isinstance(position, SharePosition):
            pool = self.pools[position.market]
            return pool.worth(position.side, position.shares) * (1.0 - self.model.fee)
        usd = self.books[position.ticker].mark * position.exit_units
        return max(0.0, position.margin + position.direction * (usd - position.notional) - self.model.fee * usd)

    def equity(self, agent_id: str) -> float:
        """An agent's dollars: its balance and the worth of all that it holds."""
        account = self.accounts[agent_id]
        held: list[PerpPosition | SharePosition] = [*account.perps.values(), *account.shares.values()]
        usd = account.balance
        for position in held:
            usd += self.worth(position)
        return usd

    def quotes(self) -> Quotes:
        """Markets that can be traded now, with prices after this tick's orders so far."""
        if self._quotes is None:
            stocks = tuple(self._stock_quote(book) for book in self.books.values())
            self._quotes = Quotes(stocks, tuple(self._question_quote(pool) for pool in self._open))
        return self._quotes

    def apply(self, agent_id: str, action: Action) -> Fill | Refusal:
        """Carry out an agent's action at the present tick, or say why not. KeyError when there is no such agent."""
        account = self.accounts[agent_id]
        try:
            return self._carry_out(account, action)
        except _Refused as refused:
            return Refusal(self.tick, agent_id, kind(action), refused.code, refused.reason)

    def close_all(self, agent_id: str) -> list[Fill]:
        """Close all that an agent holds, at the last moment too. It belongs to this moment, whose prices are those after it."""
        account = self.accounts[agent_id]
        if not account.open_positions:
            return []
        closed = [self._close_perp(account, ClosePerp(ticker)) for ticker in list(account.perps)]
        for market, side in list(account.shares):
            closed.append(self._sell_prediction(account, SellPrediction(market, "yes" if side == "yes" else "no")))
        self._quotes = None
        for book in self.books.values():
            book.path[-1] = book.mark
        for pool in self.pools.values():
            pool.path[-1] = pool.yes_price
        return closed

    def advance(self) -> list[Settlement]:
        """Let one tick pass; returns its settlements, in the order of markets, then agents. Nothing happens once the market is over."""
        if self.over:
            return []
        self.tick += 1
        self._quotes = None
        settled: list[Settlement] = []
        funding = self.tick % self.scenario.funding_ticks == 0
        for book in self.books.values():
            book.move_to(self.tick, self._recovery)
            if funding:
                rates, number = book.asset.funding, self.tick // self.scenario.funding_ticks - 1
                settled += self._settle_funding(book, rates[number] if number < len(rates) else 0.0)
            if book.open_units > 0.0:
                settled += self._liquidate(book)
        for pool in self._open:
            if pool.question.resolve_tick <= self.tick:
                settled += self._resolve(pool)
            else:
                self.house_cash += pool.crowd_moves(self.tick, self._recovery)
        self._open = [pool for pool in self._open if pool.resolved is None]
        self._open_questions()
        self._write_paths()
        return settled

    def _stock_quote(self, book: PerpBook) -> StockQuote:
        asset, every = book.asset, self.scenario.funding_ticks
        number = self.tick // every
        before = book.path[-2] if len(book.path) > 1 else book.path[-1]
        rate = asset.funding[number] if number < len(asset.funding) else 0.0
        return StockQuote(
            asset.ticker, asset.name, book.mark, 100.0 * (book.mark / before - 1.0), rate, (number + 1) * every,
            book.open_units * book.mark, book.volume,
        )  # fmt: skip

    def _question_quote(self, pool: Pool) -> QuestionQuote:
        question, price = pool.question, pool.yes_price
        before = pool.path[-2] if len(pool.path) > 1 else pool.path[-1]
        return QuestionQuote(
            question.id, question.number, question.text, price, 100.0 * (price - before), question.resolve_tick, pool.volume
        )

    def _open_questions(self) -> None:
        while self._coming and self._coming[0].created_tick <= self.tick:
            question = self._coming.pop(0)
            pool = Pool(question, self.tick, self.model.pool_shares)
            self.house_cash -= pool.sets
            self.pools[question.id] = pool
            self._open.append(pool)

    def _write_paths(self) -> None:
        for book in self.books.values():
            book.path.append(book.mark)
        for pool in self.pools.values():
            pool.path.append(pool.yes_price)

    def _carry_out(self, account: Account, action: Action) -> Fill:
        if isinstance(action, Hold):
            return Fill(self.tick, account.agent_id, "hold")
        if isinstance(action, WritePost):
            if not 0 < len(action.text.strip()) <= MAX_POST_CHARACTERS:
                raise _Refused("text", f"a post has 1 to {MAX_POST_CHARACTERS} characters, this one {len(action.text)}")
            self.posted.append((self.tick, account.agent_id, action.text))
            return Fill(self.tick, account.agent_id, "post")
        if self.over:
            raise _Refused("over", f"the market ended with tick {self.tick}")
        self._quotes = None
        if isinstance(action, OpenPerp):
            return self._open_perp(account, action)
        if isinstance(action, ClosePerp):
            return self._close_perp(account, action)
        if isinstance(action, BuyPrediction):
            return self._buy_prediction(account, action)
        return self._sell_prediction(account, action)

    def _buy_prediction(self, account: Account, action: BuyPrediction) -> Fill:
        pool = self._open_pool(action)
        fee = self._covered_fee(account, action.usd, action.usd)
        shares = pool.buy(action.side, action.usd)
        account.balance -= action.usd + fee
        self._charge(account, fee)
        position = account.shares.get((action.market, action.side))
        if position is None:
            position = SharePosition(self._next_position(), action.market, action.side, self.tick)
            account.shares[action.market, action.side] = position
        position.shares += shares
        position.cost += action.usd + fee
        return Fill(
            self.tick, account.agent_id, "buy_prediction", action.market, action.side, shares, action.usd / shares, action.usd, fee,
            None, position.id,
        )  # fmt: skip

    def _sell_prediction(self, account: Account, action: SellPrediction) -> Fill:
        pool = self._open_pool(action)
        position = account.shares.get((action.market, action.side))
        if position is None:
            raise _Refused("nothing_to_close", f"no {action.side} shares of {action.market} are held")
        if not MIN_SHARE <= action.share <= 1.0:
            raise _Refused("amount", f"a share of {action.share} cannot be sold; allowed is {MIN_SHARE:g} to 1")
        share = 1.0 if position.shares * (1.0 - action.share) < DUST_USD else action.share
        shares, cost = position.shares * share, position.cost * share
        usd = pool.sell(action.side, shares)
        fee = usd * self.model.fee
        account.balance += usd - fee
        self._charge(account, fee)
        position.shares -= shares
        position.cost -= cost
        if share == 1.0:
            del account.shares[action.market, action.side]
        return Fill(
            self.tick, account.agent_id, "sell_prediction", action.market, action.side, shares, usd / shares, usd, fee, usd - fee - cost,
            position.id,
        )  # fmt: skip

    def _open_perp(self, account: Account, action: OpenPerp) -> Fill:
        """Open a position in a stock, or add to it on the same side."""
        model, book = self.model, self._book(action.ticker)
        if action.side not in ("long", "short"):
            raise _Refused("side", f"a stock has the sides long and short, not {str(action.side)[:20]!r}")
        if not 1.0 <= action.leverage <= model.max_leverage:
            raise _Refused("leverage", f"leverage {action.leverage:g} is not between 1 and {model.max_leverage:g}")
        usd = action.usd * action.leverage
        fee = self._covered_fee(account, action.usd, usd)
        direction = 1 if action.side == "long" else -1
        position = account.perps.get(action.ticker)
        if position is not None and position.direction != direction:
            raise _Refused("opposite_side", f"a {position.side} in {action.ticker} is open; close it first")
        room = model.max_impact * book.mark / book.per_unit if book.per_unit > 0.0 else math.inf
        units = book.units_for(direction, usd) if usd < room else room
        held = position.units if position is not None else 0.0
        pressure = book.pressure + direction * book.per_unit * units
        if usd >= room or abs(pressure) > max(abs(book.pressure), model.max_impact) or book.per_unit * (held + units) > model.max_impact:
            raise _Refused("too_large", f"{usd:.0f} $ more are more than the market of {action.ticker} takes")
        if position is None:
            position = PerpPosition(self._next_position(), action.ticker, direction, self.tick)
            account.perps[action.ticker] = position
        book.trade(direction, units, usd)
        book.open_units += units
        account.balance -= action.usd + fee
        self._charge(account, fee)
        position.units += units
        position.notional += usd
        position.margin += action.usd
        position.paid += fee
        position.exit_units = book.exit_units(direction, position.units)
        return Fill(self.tick, account.agent_id, "open_perp", action.ticker, action.side, units, usd / units, usd, fee, None, position.id)

    def _close_perp(self, account: Account, action: ClosePerp) -> Fill:
        """Close a position or part of it. A loss beyond its margin is the house's."""
        book, position = self._book(action.ticker), account.perps.get(action.ticker)
        if position is None:
            raise _Refused("nothing_to_close", f"no position in {action.ticker} is open")
        if not MIN_SHARE <= action.share <= 1.0:
            raise _Refused("amount", f"a share of {action.share} cannot be closed; allowed is {MIN_SHARE:g} to 1")
        share = 1.0 if position.units * book.mark * (1.0 - action.share) < DUST_USD else action.share
        units, notional, margin, paid = (share * part for part in (position.units, position.notional, position.margin, position.paid))
        usd = book.usd_for(-position.direction, units)
        book.trade(-position.direction, units, usd)
        book.open_units -= units
        left = max(0.0, margin + position.direction * (usd - notional))
        fee = min(usd * self.model.fee, left)
        self.house_cash += margin - left
        account.balance += left - fee
        self._charge(account, fee)
        position.units -= units
        position.notional -= notional
        position.margin -= margin
        position.paid -= paid
        if share == 1.0:
            del account.perps[action.ticker]
        else:
            position.exit_units = book.exit_units(position.direction, position.units)
        return Fill(
            self.tick, account.agent_id, "close_perp", action.ticker, position.side, units, usd / units, usd, fee,
            left - fee - margin - paid, position.id,
        )  # fmt: skip

    def _next_position(self) -> str:
        """A position's id; no two of a run are the same."""
        self._positions += 1
        return f"position-{self._positions}"

    def _charge(self, account: Account, fee: float) -> None:
        account.trades += 1
        account.fees += fee
        self.house_cash += fee

    def _covered_fee(self, account: Account, usd: float, traded_usd: float) -> float:
        """The fee of an order that takes ``usd`` from the balance. Raises _Refused: too few, or more than the balance with the fee."""
        fee = traded_usd * self.model.fee
        if not self.model.min_order_usd <= usd:
            raise _Refused("amount", f"{usd} $ are less than the smallest order, {self.model.min_order_usd:g} $")
        if not usd + fee <= account.balance:
            reason = f"{usd:.2f} $ with a fee of {fee:.2f} $ are more than the balance of {account.balance:.2f} $"
            raise _Refused("balance", reason)
        return fee

    def _book(self, ticker: str) -> PerpBook:
        if ticker not in self.books:
            raise _unknown(ticker, list(self.books))
        return self.books[ticker]

    def _open_pool(self, action: BuyPrediction | SellPrediction) -> Pool:
        pool = self.pools.get(action.market)
        if pool is None:
            if any(question.id == action.market for question in self._coming):
                raise _Refused("not_open", f"{action.market} is not open yet")
            raise _unknown(action.market, [pool.question.id for pool in self._open])
        if pool.resolved is not None:
            raise _Refused("resolved", f"{action.market} is resolved: {'YES' if pool.resolved else 'NO'}")
        if action.side not in ("yes", "no"):
            raise _Refused("side", f"a question has the sides yes and no, not {str(action.side)[:20]!r}")
        return pool

    def _settle_funding(self, book: PerpBook, rate: float) -> list[Settlement]:
        """Settle funding: longs pay ``rate`` of their position's worth, shorts receive it.

        A negative rate goes the other way round; worth is at the mark. An agent pays from its balance first, then from the position's
        margin; what neither covers is not paid.
        """
        settled = []
        for account in self.accounts.values():
            position = account.perps.get(book.asset.ticker)
            if position is None or rate == 0.0:
                continue
            due = position.direction * rate * position.units * book.mark
            from_margin = min(position.margin, max(0.0, due - account.balance))
            from_balance = min(due, account.balance)
            account.balance -= from_balance
            position.margin -= from_margin
            paid = from_balance + from_margin
            position.paid += paid
            account.funding += paid
            self.house_cash += paid
            settled.append(self._settlement("funding", account, position, book.mark, -paid, None))
        return settled

    def _liquidate(self, book: PerpBook) -> list[Settlement]:
        """Close at the mark every position whose margin with its profit is used up.

        That is at the maintenance margin; the rest goes to the house.
        """
        settled, mark = [], book.mark
        for account in self.accounts.values():
            position = account.perps.get(book.asset.ticker)
            if position is None or position.margin + position.profit_at(mark) > self.model.maintenance * position.units * mark:
                continue
            self.house_cash += position.margin
            book.open_units -= position.units
            del account.perps[book.asset.ticker]
            account.liquidations += 1
            settled.append(self._settlement("liquidation", account, position, mark, 0.0, -position.margin - position.paid))
        return settled

    def _settlement(
        self, kind: Literal["funding", "liquidation"], account: Account, position: PerpPosition, mark: float, usd: float,
        profit: float | None,
    ) -> Settlement:  # fmt: skip
        return Settlement(self.tick, account.agent_id, kind, position.ticker, position.side, position.units, mark, usd, profit, position.id)

    def _resolve(self, pool: Pool) -> list[Settlement]:
        """Publish a question's answer: every share of it is paid a dollar, the others nothing."""
        question = pool.question
        pool.resolved = question.answer
        settled = []
        for account in self.accounts.values():
            for side in ("yes", "no"):
                position = account.shares.pop((question.id, side), None)
                if position is None:
                    continue
                price = float((side == "yes") == question.answer)
                paid = price * position.shares
                account.balance += paid
                pool.sets -= paid
                settled.append(
                    Settlement(
                        self.tick, account.agent_id, "resolution", question.id, side, position.shares, price, paid, paid - position.cost,
                        position.id,
                    )
                )  # fmt: skip
        self.house_cash += pool.sets
        pool.sets = pool.yes = pool.no = pool.crowd_yes = pool.crowd_no = 0.0
        return settled


def _unknown(name: str, known: list[str]) -> _Refused:
    return _Refused("unknown_market", f"there is no market {name[:40]!r}; there are {', '.join(known) or 'none'}")
