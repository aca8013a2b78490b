"""Database access for an event loop (one connection, one thread, a transaction per step), and the limit on the cost of judging.

No transaction is open while a judge works, and the loop never waits for the database. Answers that arrive during a write are written
together in the next one.

Dollars spent today plus requests under way, of all runs, must stay below JUDGE_BUDGET_USD. A request is reserved at its expected cost
before it is sent, as its real cost is known only with its answer.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from babylon_rl.processes import is_running, own_name
from babylon_rl.store import judge_requests as stored
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_requests import Reservation, StoredAnswer

if TYPE_CHECKING:
    from babylon_rl.judge.prompt.request import JudgeRequest

P = ParamSpec("P")
T = TypeVar("T")

# A lease lasts four renewals, so that a slow database does not lose one that is in use.
LEASE, RENEWED_EVERY_S, ASK_AGAIN_S = timedelta(seconds=20), 5.0, 0.5
HEARTBEAT_S = 30.0


class JudgeStore:
    """Stored answers and the budget of all runs, for an event loop. It must be closed after the loop has ended, even by an error."""

    def __init__(self, connection: Connection, clock: Callable[[], datetime]) -> None:
        self.connection = connection
        self.clock = clock
        # the process, so that others can see whether it runs, and which of its runs
        self.holder = f"{own_name()}/{secrets.token_hex(4)}"
        # a single thread: the connection carries one transaction at a time
        self._thread = ThreadPoolExecutor(1, "judge-database")
        self._arrived: dict[str, StoredAnswer] = {}
        self._flushing: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Finish the current write, write the remaining answers, and release reservations and leases."""
        self._thread.shutdown()
        if not self.connection.closed:
            if self._arrived:  # the loop was ended between an answer and its row
                self._write_arrived(self.connection)
            stored.drop_reservations(self.connection, [self.holder])
            stored.drop_leases(self.connection, self.holder)

    async def run(self, work: Callable[Concatenate[Connection, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """Run ``work(connection, ...)`` in the database thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, self.connection, *arguments, **named))

    async def find(self, keys: Sequence[str]) -> dict[str, StoredAnswer]:
        return await self.run(stored.find_answers, keys)

    async def add(self, answer: StoredAnswer) -> None:
        """Write an answer; it is committed when this returns."""
        self._arrived[answer.key] = answer
        # one write at a time; an answer that arrives during it joins the next
        while answer.key in self._arrived:
            if self._flushing is None or self._flushing.done():
                self._flushing = asyncio.create_task(self.run(self._write_arrived))
            # a cancelled caller must not cancel the write of the others' answers
            await asyncio.shield(self._flushing)

    def check(self) -> None:
        """Raise the error of the last write, if it failed. An answer that cannot be stored is not worth paying for."""
        if self._flushing is not None and self._flushing.done():
            self._flushing.result()

    async def reserve(self, usd: float, most: float, paid: float) -> Reservation:
        """Reserve dollars if they fit beside the spending of all runs today, requests under way included; ``paid`` is this run's own."""
        return await self.run(self._reserve, usd, most, paid)

    async def give_back(self, usd: float) -> None:
        await self.run(stored.give_back, self.holder, usd, self.clock())

    def _reserve(self, connection: Connection, usd: float, most: float, paid: float) -> Reservation:
        """Reserve dollars; where they do not fit, first drop reservations of dead runs."""
        account = stored.reserve(connection, self.holder, usd, most, paid, self.clock())
        if account.fits or not (ended := [holder for holder in account.holders if is_running(holder) is False]):
            return account
        stored.drop_reservations(connection, ended)
        return stored.reserve(connection, self.holder, usd, most, paid, self.clock())

    def _write_arrived(self, connection: Connection) -> None:
        arrived = list(self._arrived.values())
        stored.add_answers(connection, arrived)
        # only what is committed: add waits until its answer is gone from here
        for answer in arrived:
            del self._arrived[answer.key]


async def run_with_heartbeat(work: Coroutine[Any, Any, None], store: JudgeStore, beat: Callable[[], None], every_s: float) -> None:
    """Await ``work`` and call ``beat`` in the database thread, at once and at intervals. An error from ``beat`` cancels the work."""

    async def beats() -> None:
        while True:
            await store.run(lambda connection: beat())
            await asyncio.sleep(every_s)

    async with task_group() as tasks:
        beating = tasks.create_task(beats())
        await work
        beating.cancel()


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks, of which the error that ended the others is raised alone; an interruption comes before any error."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as several:
        error = next((one for one in several.exceptions if not isinstance(one, Exception)), several.exceptions[0])
        raise error from error.__cause__


@asynccontextmanager
async def leasing(store: JudgeStore) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Give the function that acquires an hour's lease, once no other live run holds it; renew all leases meanwhile.

    The transaction that writes the hour returns its lease (``finish_hour``), ``JudgeStore.close`` the others.
    """
    gone: set[str] = set()

    async def acquire(window: str) -> None:
        while (other := await store.run(stored.claim_lease, window, store.holder, LEASE, list(gone))) is not None:
            # the holder's process is dead: take the lease over at once
            if is_running(other) is False:
                gone.add(other)
            elif other:
                await asyncio.sleep(ASK_AGAIN_S)

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEWED_EVERY_S)
            await store.run(stored.renew_leases, store.holder)

    renewing = asyncio.create_task(renew())
    try:
        yield acquire
    finally:
        renewing.cancel()


_LIMIT = "JUDGE_BUDGET_USD is {usd:g}: "  # prefix of the reason of a waiting hour, by which spent_until recognises it


class OverBudget(Exception):
    """A request would cost more than is left; the message is why its group waits."""


def spent_until(reason: str, usd: float | None, asked_at: datetime) -> datetime | None:
    """The end of the UTC day whose budget was spent, by a pending hour's reason.

    The day is that of ``asked_at``. None for another reason, and for a limit other than ``usd``, the present one.
    """
    if usd is None or not reason.startswith(_LIMIT.format(usd=usd)):
        return None
    return asked_at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


@dataclass
class Budget:
    """One run's view of the budget; ``usd`` None is no limit. Requests under way, of all runs, count at their expected cost.

    ``paid`` is the run's own sum, as the day's starts at 0 at midnight.
    """

    usd: float | None
    model: str
    store: JudgeStore
    paid: float = 0.0
    blind: bool = False

    @property
    def notes(self) -> list[str]:
        """Sentences on limits that the budget cannot enforce."""
        sentence = f"JUDGE_BUDGET_USD cannot be enforced: the price of {self.model} is in no table, and its answers count as unknown."
        return [sentence] if self.blind else []

    @asynccontextmanager
    async def reserved(self, requests: Iterable["JudgeRequest"]) -> AsyncIterator[None]:
        """Reserve the expected cost of some requests, and return it at the end. Without a limit none of them is counted.

        Raises:
            OverBudget: they do not fit.
        """
        expected = [] if self.usd is None else [request.expected_usd for request in requests]
        if self.usd is None or not expected:
            yield
            return
        self.blind |= None in expected
        usd = sum(part for part in expected if part is not None)
        account = await self.store.reserve(usd, self.usd, self.paid)
        if not account.fits:
            raise OverBudget(
                _LIMIT.format(usd=self.usd) + f"${account.spent:.4f} are spent today (UTC) or by this run, ${account.under_way:.4f} "
                f"are under way, and this hour takes about ${usd:.4f}. Raise it, or wait for tomorrow."
            )
        try:
            yield
        finally:
            # answers that came are stored by now, and count at their real cost
            await self.store.give_back(usd)
