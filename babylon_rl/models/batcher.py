"""Requests of all clients, answered together on one thread.

Answers under a grammar are short: all that wait are finished as one list, so that their prompts share a prefix and their clients ask again
at the same time. Free texts are continued token by token beside each other, adapter by adapter; a new one joins between two tokens.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from babylon_rl.models.generation import Generation
from babylon_rl.models.policy import MICRO_BATCH_ROWS, MICRO_BATCH_TOKENS, Policy
from babylon_rl.models.sampling import Row

BATCH_LIMIT = 32
LINGER_S = 0.005
# Keys and values of all running texts: with the packaged base 23 kB a token.
CACHE_TOKENS = 32_768
FindAdapter = Callable[[str], Path | None]


class Asked:
    """A request and the tokens of its answer so far.

    ``tokens``, ``logprobs`` and ``ended`` may be read at any time; ``left`` is set when nobody waits for the answer any more.
    """

    def __init__(self, row: Row) -> None:
        self.row, self.left = row, False
        self.tokens: Sequence[int] = ()
        self.logprobs: Sequence[float] = ()
        self._failure: BaseException | None = None
        self.ended, self._news = False, asyncio.Event()

    async def more(self) -> bool:
        """Wait for further tokens; False once the answer is complete.

        Raises:
            Exception: the error of the batch that it was in.
        """
        await self._news.wait()
        self._news.clear()
        if self._failure is not None:
            raise self._failure
        return not self.ended

    def report(self, failure: BaseException | None = None) -> None:
        """Show the tokens that the row has now, or the failure."""
        self.tokens, self.logprobs = tuple(self.row.tokens), tuple(self.row.logprobs)
        self._failure, self.ended = failure, self.row.done
        self._news.set()


class Batcher:
    """Collects requests from the event loop and answers them in batches on one thread."""

    def __init__(self, policy: Policy, find_adapter: FindAdapter) -> None:
        self._policy, self._find_adapter = policy, find_adapter
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._queue: asyncio.Queue[Asked] = asyncio.Queue()
        self._line: list[Asked] = []
        self._running: dict[str | None, tuple[Generation, list[Asked]]] = {}

    def ask(self, row: Row) -> Asked:
        """Put a request into the queue."""
        asked = Asked(row)
        self._queue.put_nowait(asked)
        return asked

    async def serves(self, name: str) -> bool:
        """Return True if there is such an adapter.

        One that is not loaded yet is loaded between two batches.

        Raises:
            ModelError: its files are damaged, or of another base.
        """
        if name in self._policy.adapters:
            return True
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._load, name)

    def _load(self, name: str) -> bool:
        # Asked again in the policy's own thread: another request may have loaded it meanwhile.
        if name not in self._policy.adapters:
            directory = self._find_adapter(name)
            if directory is None:
                return False
            self._policy.add_adapter(name, directory)
        return True

    async def run(self) -> None:
        """Serve until cancelled."""
        with self._executor:
            while True:
                await self._turn(await self._arrived())

    async def _arrived(self) -> list[Asked]:
        """Take the requests that wait; wait for one when nothing is running."""
        arrived = []
        if not self._running and not self._line:
            arrived.append(await self._queue.get())
            # A short wait lets concurrent requests join the batch.
            await asyncio.sleep(LINGER_S)
        while len(arrived) < BATCH_LIMIT and not self._queue.empty():
            arrived.append(self._queue.get_nowait())
        return [asked for asked in arrived if not asked.left]

    async def _turn(self, arrived: Sequence[Asked]) -> None:
        """Finish what arrived under a grammar, then continue every free text by a token."""
        bound = [asked for asked in arrived if asked.row.node is not None]
        if bound:
            await self._attempt(bound, partial(self._policy.finish, [asked.row for asked in bound]))
        self._line = [asked for asked in (*self._line, *arrived) if asked.row.node is None and not asked.left]
        for adapter, new in self._admitted().items():
            generation, those = self._running.setdefault(adapter, (self._policy.generation(), []))
            those.extend(new)
            await self._advance(adapter, generation, those, [asked.row for asked in new])
        for adapter, (generation, those) in list(self._running.items()):
            await self._advance(adapter, generation, those, [])

    async def _advance(self, adapter: str | None, generation: Generation, those: list[Asked], new: Sequence[Row]) -> None:
        for asked in those:
            asked.row.done |= asked.left
        going = await self._attempt(those, partial(self._policy.advance, generation, adapter, new))
        those[:] = [asked for asked in those if not asked.row.done]
        if not going or not those:
            del self._running[adapter]

    async def _attempt(self, those: Sequence[Asked], work: Callable[[], None]) -> bool:
        # A failed batch fails every request in it; the server goes on.
        (done,), _ = await asyncio.wait([asyncio.get_running_loop().run_in_executor(self._executor, work)])
        failure = done.exception()
        for asked in those:
            asked.report(failure)
        return failure is None

    def _admitted(self) -> dict[str | None, list[Asked]]:
        """Take as many free texts from the queue's front as there is room for."""
        rows = [asked.row for _, those in self._running.values() for asked in those]
        admitted: dict[str | None, list[Asked]] = {}
        longest = prompts = 0
        while self._line:
            row = self._line[0].row
            longest, count = max(longest, len(row.prompt)), prompts + 1
            widest = max(len(one.prompt) + one.max_tokens for one in (*rows, row))
            if rows and (len(rows) == MICRO_BATCH_ROWS or widest * (len(rows) + 1) > CACHE_TOKENS):
                break
            if prompts and longest * count > MICRO_BATCH_TOKENS:
                break
            admitted.setdefault(row.adapter, []).append(self._line.pop(0))
            rows.append(row)
            prompts = count
        return admitted
