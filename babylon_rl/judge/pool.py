"""Many groups in one pool: bounded, finished groups handed over at once, everything cancelled when the run is."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from datetime import datetime

from babylon_rl.judge.ruler import Outcome, Ruler
from babylon_rl.judge.ruler_cache import AnswerCache, Asker
from babylon_rl.judge.shown import ShownGroup
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
    """Judge some groups with JUDGE_MODEL, without a database: what each came to, by window and in the order given.

    Raises:
        JudgeRefused: the judge answers nobody.
    """
    ruler = Ruler(caller, settings.judge_model, secret, settings, cache, clock)
    found: dict[str, Outcome] = {}

    async def keep(outcome: Outcome) -> None:
        found[outcome.group.window] = outcome

    async def given() -> AsyncIterable[ShownGroup]:
        for group in groups:
            yield group

    await run_pool(given(), ruler.judge, keep, settings.judge_concurrency)
    return {group.window: found[group.window] for group in groups}


async def run_pool(groups: AsyncIterable[ShownGroup], judge: Judge, done: Done, concurrency: int) -> None:
    """Judge groups as they come and hand each outcome to ``done``.

    The caller bounds the requests; here it is the groups under way that are, at twice that, so that neither the reading of further
    groups nor the writing of finished ones leaves it idle, and a long range is not held in memory.

    Raises:
        JudgeRefused: the judge answers nobody; the other groups are cancelled.
    """
    room = asyncio.Semaphore(2 * concurrency)

    async def one(group: ShownGroup) -> None:
        try:
            await done(await judge(group))
        finally:
            room.release()

    coming = aiter(groups)
    try:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await room.acquire()
                group = await anext(coming, None)
                if group is None:
                    break
                tasks.create_task(one(group), name=group.window)
    except BaseExceptionGroup as several:
        raise _first(several) from None


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the others: an interruption before all."""
    leaves: list[BaseException] = []
    for error in several.exceptions:
        leaves.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in leaves if not isinstance(error, Exception)), leaves[0])
