"""Pool of groups under judgement: limited in size, results handed over at once.

Everything is cancelled when the run is.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from datetime import datetime

from babylon_rl.judge.prompt.group import ShownGroup
from babylon_rl.judge.ruler import Outcome, Ruler
from babylon_rl.judge.ruler_cache import AnswerCache, Asker
from babylon_rl.settings import Settings
from babylon_rl.windows import utc_now

Judge = Callable[[ShownGroup], Awaitable[Outcome]]
Done = Callable[[Outcome], Awaitable[None]]


async def judge_groups(
    groups: Sequence[ShownGroup],
    caller: Asker,
    secret: bytes,
    settings: Settings,
    cache: AnswerCache,
    clock: Callable[[], datetime] = utc_now,
) -> dict[str, Outcome]:
    """Judge groups with JUDGE_MODEL, without a database; outcomes by window, in the order given.

    Raises:
        JudgeRefused: the judge answers no request.
    """
    ruler = Ruler(caller, settings.judge_model, secret, settings, cache, clock)
    outcomes: dict[str, Outcome] = {}

    async def keep(outcome: Outcome) -> None:
        outcomes[outcome.group.window] = outcome

    async def given() -> AsyncIterable[ShownGroup]:
        for group in groups:
            yield group

    await run_pool(given(), ruler.judge, keep, settings.judge_concurrency)
    return {group.window: outcomes[group.window] for group in groups}


async def run_pool(groups: AsyncIterable[ShownGroup], judge: Judge, done: Done, concurrency: int) -> None:
    """Judge groups as they arrive and pass each outcome to ``done``.

    The caller limits the requests. This pool limits the groups under way to twice that number, so that neither reading further groups
    nor writing finished ones leaves the judge idle, and a long range is not held in memory.

    Raises:
        JudgeRefused: the judge answers no request; the other groups are cancelled.
    """
    slots = asyncio.Semaphore(2 * concurrency)

    async def one(group: ShownGroup) -> None:
        try:
            await done(await judge(group))
        finally:
            slots.release()

    # take a slot before reading the next group, so that no group waits in memory
    coming = aiter(groups)
    try:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await slots.acquire()
                group = await anext(coming, None)
                if group is None:
                    break
                tasks.create_task(one(group), name=group.window)
    except BaseExceptionGroup as several:
        raise _first(several) from None


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the others; an interruption comes before any error."""
    leaves: list[BaseException] = []
    for error in several.exceptions:
        leaves.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in leaves if not isinstance(error, Exception)), leaves[0])
