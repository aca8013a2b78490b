"""The markets of a scenario as agents move them: quotes, orders, and settlements by time.

A run alternates: agents act at tick t by `apply`, then `advance` brings what happened by t + 1: prices and beliefs move, funding is
settled, positions without margin are liquidated, questions are resolved. Balances never fall below zero: an order that is not covered is
refused, and the house bears what a position loses beyond its margin. Refused orders change nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from babylon_rl.market.simulation import orders
from babylon_rl.market.simulation.actions import MAX_POST_CHARACTERS, Action, BuyPrediction, ClosePerp, Hold, OpenPerp, WritePost, kind
from babylon_rl.market.simulation.arithmetic import exp
from babylon_rl.market.simulation.config import HOUR_S, START_BALANCE, MarketModel
from babylon_rl.market.simulation.ledger import Account, Fill, PerpPosition, QuestionQuote, Quotes, Refusal, Settlement, StockQuote
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.market.simulation.venue import PerpBook, Pool, Venue


class Exchange(Venue):
    """The exchange of one run.

    Args:
        agents: the ids of those who trade, in a fixed order.
        start_balance: dollars for each, or by agent id.
        model: fees, impact, leverage and depth; by default those that the scenario was generated with.

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
        super().__init__(scenario, agents, start_balance, model or scenario.model or MarketModel())
        self.posted: list[tuple[int, str, str]] = []  # tick, agent and text of agents' posts
        self._recovery = 1.0 - exp(-self.model.recovery_per_hour * scenario.tick_seconds / HOUR_S)
        self._open: list[Pool] = []
        self._coming = sorted(scenario.questions, key=lambda question: (question.created_tick, question.number, question.id))
        self._quotes: Quotes | None = None
        self._open_questions()
        self._write_paths()

    def apply(self, agent_id: str, action: Action) -> Fill | Refusal:
        """Carry out an agent's action at the present tick, or say why not. KeyError when there is no such agent."""
        account = self.accounts[agent_id]
        if self.over and not isinstance(action, Hold | WritePost):
            return orders.refusal(self, account, action, "over", f"the market ended with tick {self.tick}")
        if isinstance(action, Hold):
            return Fill(self.tick, agent_id, "hold")
        if isinstance(action, WritePost):
            return self._post(account, action)
        self._quotes = None
        if isinstance(action, OpenPerp):
            return orders.open_perp(self, account, action)
        if isinstance(action, ClosePerp):
            return orders.close_perp(self, account, action)
        if isinstance(action, BuyPrediction):
            return orders.buy_prediction(self, account, action)
        return orders.sell_prediction(self, account, action)

    def _post(self, account: Account, action: WritePost) -> Fill | Refusal:
        if not 0 < len(action.text.strip()) <= MAX_POST_CHARACTERS:
            reason = f"a post has 1 to {MAX_POST_CHARACTERS} characters, this one {len(action.text)}"
            return orders.refusal(self, account, action, "text", reason)
        self.posted.append((self.tick, account.agent_id, action.text))
        return Fill(self.tick, account.agent_id, kind(action))

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
                settled += settle_funding(self, book, rates[number] if number < len(rates) else 0.0)
            if book.open_units > 0.0:
                settled += liquidate(self, book)
        resolved = False
        for pool in self._open:
            if pool.question.resolve_tick <= self.tick:
                settled += resolve(self, pool)
                resolved = True
            else:
                pool.crowd_moves(self.tick, self._recovery, self.house)
        if resolved:
            self._open = [pool for pool in self._open if pool.resolved is None]
        self._open_questions()
        self._write_paths()
        return settled

    def quotes(self) -> Quotes:
        """Markets that can be traded now, with prices after this tick's orders so far."""
        if self._quotes is None:
            stocks = tuple(self._stock_quote(book) for book in self.books.values())
            self._quotes = Quotes(self.tick, stocks, tuple(self._question_quote(pool) for pool in self._open))
        return self._quotes

    def restate(self) -> None:
        """Write this moment's prices again.

        Positions that a mandate closes as a moment begins belong to it, and agents see prices after that.
        """
        self._quotes = None
        for book in self.books.values():
            book.path[-1] = book.mark
        for pool in self.pools.values():
            pool.path[-1] = pool.yes_price

    def _stock_quote(self, book: PerpBook) -> StockQuote:
        asset, every = book.asset, self.scenario.funding_ticks
        number = self.tick // every
        before = book.path[-2] if len(book.path) > 1 else book.path[-1]
        rate = asset.funding[number] if number < len(asset.funding) else 0.0
        return StockQuote(
            asset.ticker, asset.name, book.mark, 100.0 * (book.mark / before - 1.0), rate, (number + 1) * every, book.open_interest,
            book.volume,
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
            pool = Pool(question, self.tick, self.model.pool_shares, self.house)
            self.pools[question.id] = pool
            self._open.append(pool)

    def _write_paths(self) -> None:
        for book in self.books.values():
            book.path.append(book.mark)
        for pool in self.pools.values():
            pool.path.append(pool.yes_price)


def settle_funding(venue: Venue, book: PerpBook, rate: float) -> list[Settlement]:
    """Settle funding: longs pay ``rate`` of their position's worth, shorts receive it.

    A negative rate goes the other way round; worth is at the mark. An agent pays from its balance first, then from the position's margin;
    what neither covers is not paid.
    """
    settled = []
    for account in venue.accounts.values():
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
        venue.house.funding += paid
        venue.house.cash += paid
        settled.append(_settlement(venue, "funding", account, position, book.mark, -paid, None))
    return settled


def liquidate(venue: Venue, book: PerpBook) -> list[Settlement]:
    """Close at the mark every position whose margin with its profit is used up.

    That is at the maintenance margin; the rest goes to the house.
    """
    settled = []
    mark, maintenance = book.mark, venue.model.maintenance
    for account in venue.accounts.values():
        position = account.perps.get(book.asset.ticker)
        if position is None:
            continue
        left = position.margin + position.profit_at(mark)
        if left > maintenance * position.units * mark:
            continue
        house = venue.house
        house.cash += position.margin
        house.perp_profit -= position.profit_at(mark)
        house.liquidated += max(0.0, left)
        house.gaps += max(0.0, -left)
        book.open_units -= position.units
        del account.perps[book.asset.ticker]
        account.liquidations += 1
        profit = -position.margin - position.paid
        account.closed(profit)
        settled.append(_settlement(venue, "liquidation", account, position, mark, 0.0, profit))
    return settled


def resolve(venue: Venue, pool: Pool) -> list[Settlement]:
    """Publish a question's answer: every share of it is paid a dollar, the others nothing."""
    question = pool.question
    pool.resolved = question.answer
    settled = []
    for account in venue.accounts.values():
        for side in ("yes", "no"):
            position = account.shares.pop((question.id, side), None)
            if position is None:
                continue
            right = (side == "yes") == question.answer
            paid = position.shares if right else 0.0
            account.balance += paid
            pool.sets -= paid
            account.correct += right
            account.incorrect += not right
            profit = paid - position.cost
            account.closed(profit)
            settled.append(
                Settlement(
                    venue.tick, account.agent_id, "resolution", question.id, side, position.shares, float(right), paid, profit, position.id
                )
            )
    venue.house.cash += pool.sets
    pool.sets = pool.yes = pool.no = pool.crowd_yes = pool.crowd_no = 0.0
    return settled


def _settlement(
    venue: Venue, kind: Literal["funding", "liquidation"], account: Account, position: PerpPosition, mark: float, usd: float,
    profit: float | None,
) -> Settlement:  # fmt: skip
    return Settlement(venue.tick, account.agent_id, kind, position.ticker, position.side, position.units, mark, usd, profit, position.id)
