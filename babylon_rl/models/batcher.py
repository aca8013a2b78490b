"""Batches of the requests of all clients, side by side, a core each.

Answers under a grammar are short: those that wait for one adapter are finished as one list, so that their prompts share a prefix, and the
lists of several adapters or of many requests at the same time. Threads that share a batch would wait for each other after every operation;
a batch that is alone takes all of them. The weights are in memory once, and the number of threads changes no bit of an answer. Free texts
are continued token by token beside each other, adapter by adapter; a new one joins between two tokens.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

import torch

from babylon_rl.models.generation import Generation, Row
from babylon_rl.models.policy import Policy
from babylon_rl.models.row_attention import attention_by_row
from babylon_rl.models.scoring import causal_model

FEWEST_APART = 4  # waiting requests that are worth a second batch
LINGER_S = 0.005
# Looking for an adapter may cost a request to a storage, and minutes while that is down.
REMEMBERED_S = 5.0
FindAdapter = Callable[[str], Path | None]
Result = TypeVar("Result")


class PendingAnswer:
    """A request and the tokens of its answer so far.

    ``tokens`` and ``ended`` may be read at any time; ``left`` is set when nobody waits for the answer any more.
    """

    def __init__(self, row: Row) -> None:
        self.row, self.left = row, False
        self.tokens: Sequence[int] = ()
        self._failure: BaseException | None = None
        self.ended, self._news = False, asyncio.Event()

    async def more(self) -> bool:
        """Wait for further tokens; False once the answer is complete. Raises the error of its batch."""
        await self._news.wait()
        self._news.clear()
        if self._failure is not None:
            raise self._failure
        return not self.ended

    def report(self, failure: BaseException | None = None) -> None:
        """Show the tokens that the row has now, or the failure."""
        self.tokens, self.ended, self._failure = tuple(self.row.tokens), self.row.done, failure
        self._news.set()


class _Worker:
    """A thread with a policy of its own, on the weights of all."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.jobs = policy, 0
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="policy")


class Batcher:
    """Collects requests from the event loop; as many batches at once as torch's threads."""

    def __init__(self, policy: Policy, find_adapter: FindAdapter) -> None:
        self._policy, self._find_adapter = policy, find_adapter
        # On a GPU all is done in one stream.
        self._threads = 1 if policy.device.gpu else torch.get_num_threads()
        # The policy itself continues free texts; answers under a grammar are finished by others.
        self._texts = _Worker(policy)
        self._finishers = [_Worker(policy.twin()) for _ in range(self._threads)]
        self._bound: list[PendingAnswer] = []
        self._line: list[PendingAnswer] = []
        self._came = asyncio.Event()
        self._running: dict[str | None, tuple[Generation, list[PendingAnswer]]] = {}
        self._lookups: dict[str, asyncio.Task[Path | None]] = {}
        self._open: WeakSet[PendingAnswer] = WeakSet()
        self._failure: Exception | None = None

    def ask(self, row: Row) -> PendingAnswer:
        """Let a request wait for a batch."""
        asked = PendingAnswer(row)
        self._open.add(asked)
        if self._failure is not None:
            asked.report(self._failure)
        (self._line if row.node is None else self._bound).append(asked)
        self._came.set()
        return asked

    async def serves(self, name: str) -> bool:
        """Return True if there is such an adapter; one that is not loaded yet is loaded between two batches.

        Raises:
            ModelUnavailable: it cannot be fetched now.
            CheckpointError: its files are damaged, or of another base.
        """
        if name in self._policy.adapters:
            return True
        directory = await self._directory(name)
        if directory is None:
            return False

        def load(policy: Policy) -> None:
            # Asked again in the policy's own thread: another request may have loaded it meanwhile.
            if name not in policy.adapters:
                policy.add_adapter(name, directory)

        # The policy itself comes last: a name that it has may be asked for.
        for worker in (*self._finishers, self._texts):
            await self._in_thread(worker, partial(load, worker.policy))
        return True

    async def run(self) -> None:
        """Serve until cancelled; after an error, which is a defect, every request fails with it."""
        try:
            with contextlib.ExitStack() as stack:
                for worker in self._workers:
                    # For as long as it serves: to change a model there and back takes 2 ms, for every token of a text.
                    stack.enter_context(attention_by_row(causal_model(worker.policy.model)))
                await asyncio.gather(self._continue_texts(), *map(self._finish, self._finishers))
        except Exception as failure:
            self._failure = failure
            for asked in [asked for asked in self._open if not asked.ended]:
                asked.report(failure)
            raise
        finally:
            for worker in self._workers:
                worker.executor.shutdown()

    @property
    def _workers(self) -> tuple[_Worker, ...]:
        return (self._texts, *self._finishers)

    async def _directory(self, name: str) -> Path | None:
        """Look for an adapter in another thread; requests of the next seconds share the outcome."""
        if name not in self._lookups:
            self._lookups[name] = lookup = asyncio.create_task(asyncio.to_thread(self._find_adapter, name))
            forget = partial(self._lookups.pop, name)
            # From its end on, so that a lookup that takes minutes is shared by all who ask meanwhile.
            lookup.add_done_callback(lambda _: asyncio.get_running_loop().call_later(REMEMBERED_S, forget))
        # Shielded: a client that leaves must not cancel the lookup of the others.
        return await asyncio.shield(self._lookups[name])

    async def _finish(self, worker: _Worker) -> None:
        """Finish answers under a grammar, a batch at a time."""
        while True:
            await self._until(lambda: bool(self._bound))
            batch = self._batch()
            if batch:
                await self._attempt(worker, batch, partial(worker.policy.finish, [asked.row for asked in batch]))

    async def _continue_texts(self) -> None:
        """Continue free texts by a token at a time."""
        while True:
            if not self._running:
                await self._until(lambda: bool(self._line))
            await self._turn()

    async def _until(self, waiting: Callable[[], bool]) -> None:
        while not waiting():
            self._came.clear()
            await self._came.wait()
        # A short wait lets concurrent requests join the batch.
        await asyncio.sleep(LINGER_S)

    def _batch(self) -> list[PendingAnswer]:
        """Take waiting requests for the oldest one's adapter, leaving work for idle threads."""
        self._bound = [asked for asked in self._bound if not asked.left]
        if not self._bound:
            return []
        # In the order in which they came; what is read together moves no bit of an answer.
        same = [asked for asked in self._bound if asked.row.adapter == self._bound[0].row.adapter]
        # The finisher that asks may itself be loading an adapter, and no other be idle.
        idle = max(1, sum(not worker.jobs for worker in self._finishers))
        size = min(self._policy.sizes.rows, max(FEWEST_APART, -(-len(self._bound) // idle)))
        batch = same[:size]
        self._bound = [asked for asked in self._bound if asked not in batch]
        return batch

    async def _turn(self) -> None:
        """Admit new free texts, and continue every one by a token."""
        self._line = [asked for asked in self._line if not asked.left]
        for adapter, new in self._admitted().items():
            generation, those = self._running.setdefault(adapter, (self._policy.generation(adapter), []))
            those.extend(new)
            await self._advance(generation, those, [asked.row for asked in new])
        for generation, those in list(self._running.values()):
            await self._advance(generation, those, [])

    async def _advance(self, generation: Generation, those: list[PendingAnswer], new: Sequence[Row]) -> None:
        for asked in those:
            # Nobody waits for it any more: the row leaves the batch with this turn.
            asked.row.done |= asked.left
        going = await self._attempt(self._texts, those, partial(self._policy.advance, generation, new))
        those[:] = [asked for asked in those if not asked.row.done]
        if not going or not those:
            # After a failure nobody knows what the cache holds: the next texts of this adapter begin a new generation.
            del self._running[generation.adapter]

    async def _attempt(self, worker: _Worker, those: Sequence[PendingAnswer], work: Callable[[], None]) -> bool:
        # A failed batch fails every request in it; the server goes on.
        (done,), _ = await asyncio.wait([asyncio.ensure_future(self._in_thread(worker, work))])
        failure = done.exception()
        for asked in those:
            asked.report(failure)
        return failure is None

    async def _in_thread(self, worker: _Worker, work: Callable[[], Result]) -> Result:
        worker.jobs += 1
        try:
            # Divided among the workers at work, so that all together take no more threads than torch has.
            threads = max(1, self._threads // sum(one.jobs > 0 for one in self._workers))

            def compute() -> Result:
                if torch.get_num_threads() != threads:
                    torch.set_num_threads(threads)  # of this thread; others keep their number
                return work()

            return await asyncio.get_running_loop().run_in_executor(worker.executor, compute)
        finally:
            worker.jobs -= 1

    def _admitted(self) -> dict[str | None, list[PendingAnswer]]:
        """Take as many free texts from the queue's front as there is room for."""
        rows = [asked.row for _, those in self._running.values() for asked in those]
        # The longest that each may become.
        room = self._policy.sizes.cache_tokens - sum(len(row.prompt) + row.max_tokens for row in rows)
        admitted: dict[str | None, list[PendingAnswer]] = {}
        running, prompts = len(rows), 0
        while self._line:
            row = self._line[0].row
            room -= len(row.prompt) + row.max_tokens
            if running and (running == self._policy.sizes.rows or room < 0):
                break
            if prompts and prompts + len(row.prompt) > self._policy.sizes.prompt_tokens:
                break
            admitted.setdefault(row.adapter, []).append(self._line.pop(0))
            running, prompts = running + 1, prompts + len(row.prompt)
        return admitted
