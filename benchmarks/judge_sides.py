"""The two that are compared in benchmarks/judge.py: ART's ruler_score_group and our group judge, each as it ships, on the same server."""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before litellm is imported: nothing is fetched

from judge_groups import RULES, Group

from babylon_rl.judge.client import JudgeClient, JudgeReply
from babylon_rl.judge.group_outcomes import GroupOutcome, ScoredGroup, UnscorableGroup
from babylon_rl.judge.prompt.request import RenderedEpisode, RenderedGroup
from babylon_rl.settings import Settings
from babylon_rl.versions import content_version
from babylon_rl_tests.judge.in_memory import MemoryCache, judge_groups

MODEL = "openai/scripted"
CONCURRENCY = 16
SECRET = b"of a benchmark"
Scores = list[float] | None  # in the order of a group's episodes; None where there are none


@dataclass(frozen=True)
class Run:
    """What some groups came to: their scores, seconds on the clock and of this process, and groups that wait to be asked again."""

    scores: Sequence[Scores]
    seconds: float
    cpu_seconds: float
    waiting: int = 0


def with_art(groups: Sequence[Group], url: str, timeout_s: float) -> Run:
    """ART's way: one request a group, the rest as litellm and the OpenAI client do it by default."""
    from art.rewards import ruler_score_group

    asked = [_trajectories(group) for group in groups]
    extra: dict[str, object] = {"api_base": url, "api_key": "any", "timeout": timeout_s}

    async def all_groups() -> list[Scores]:
        slots = asyncio.Semaphore(CONCURRENCY)

        async def one(group: Any) -> Scores:
            async with slots:
                scored = await ruler_score_group(group, MODEL, extra, swallow_exceptions=True)
            return None if scored is None else [trajectory.reward for trajectory in scored.trajectories]

        return await asyncio.gather(*(one(group) for group in asked))

    with contextlib.redirect_stdout(StringIO()):  # what it prints of every exception it swallows
        return _timed(all_groups)


def with_ours(groups: Sequence[Group], url: str, timeout_s: float, orders: int, max_orders: int | None = None) -> Run:
    """Our ruler in so many orders, answers kept in memory."""
    shown = [_shown(group) for group in groups]
    settings = _settings(url, timeout_s, orders, max_orders or orders)
    waiting = 0

    async def all_groups() -> list[Scores]:
        nonlocal waiting
        async with JudgeClient(settings) as caller:
            found = await _judged(shown, caller, settings, MemoryCache())
        waiting = sum(not isinstance(outcome, (ScoredGroup, UnscorableGroup)) for outcome in found)
        return [_scores(group, outcome) for group, outcome in zip(groups, found, strict=True)]

    run = _timed(all_groups)
    return Run(run.scores, run.seconds, run.cpu_seconds, waiting)


def own_overhead(groups: Sequence[Group], url: str, orders: int) -> Run:
    """Our ruler when every answer is there at once, without a connection (the answers are fetched before), for all groups together.

    On a busy machine the seconds on the clock are others' too; the processor's are ours alone.
    """
    shown = [_shown(group) for group in groups]
    settings = _settings(url, 60.0, orders, orders)

    class Recorded:
        """Asks a judge the first time and repeats its answer ever after."""

        def __init__(self, judge: JudgeClient) -> None:
            self.judge = judge
            self.answers: dict[str, JudgeReply] = {}

        async def ask(self, messages: Sequence[dict[str, str]], schema: dict[str, object]) -> JudgeReply:
            asked = messages[1]["content"]
            if asked not in self.answers:
                self.answers[asked] = await self.judge.ask(messages, schema)
            return self.answers[asked]

    async def twice() -> Run:
        async with JudgeClient(settings) as caller:
            asker = Recorded(caller)
            await _judged(shown, asker, settings, MemoryCache())
        began, cpu = time.perf_counter(), time.process_time()
        await _judged(shown, asker, settings, MemoryCache())
        return Run([], time.perf_counter() - began, time.process_time() - cpu)

    return asyncio.run(twice())


async def _judged(shown: Sequence[RenderedGroup], asker: JudgeClient, settings: Settings, cache: MemoryCache) -> list[GroupOutcome]:
    found = await judge_groups(shown, asker, SECRET, settings, cache)
    return [found[group.window] for group in shown]


def _scores(group: Group, outcome: GroupOutcome) -> Scores:
    if not isinstance(outcome, ScoredGroup):
        return None
    return [outcome.agreement.scores[episode.agent] for episode in group.episodes]


def _timed(work: Any) -> Run:
    began, cpu = time.perf_counter(), time.process_time()
    scores = asyncio.run(work())
    return Run(scores, time.perf_counter() - began, time.process_time() - cpu)


def _trajectories(group: Group) -> Any:
    import art

    return art.TrajectoryGroup(
        [
            art.Trajectory(
                messages_and_choices=[
                    {"role": "system", "content": RULES},
                    *(
                        message
                        for shown, answer in episode.steps
                        for message in ({"role": "user", "content": shown}, {"role": "assistant", "content": answer})
                    ),
                ],
                reward=0.0,
            )
            for episode in group.episodes
        ]
    )


def _shown(group: Group) -> RenderedGroup:
    episodes = tuple(
        RenderedEpisode(text, len(text) // 4, agent_id=episode.agent, steps=len(episode.steps))
        for episode in group.episodes
        for text in ["\n".join(f"{shown}\n{answer}" for shown, answer in episode.steps)]
    )
    version = content_version([group.window, [[episode.agent_id, episode.text] for episode in episodes]])
    return RenderedGroup(group.window, (), RULES, episodes, version)


def _settings(url: str, timeout_s: float, orders: int, max_orders: int) -> Settings:
    values = {name: field.default for name, field in Settings.model_fields.items()}
    chosen = {
        "judge_model": MODEL, "judge_base_url": url, "openai_api_key": "any",
        "judge_concurrency": CONCURRENCY, "judge_orders": orders,
    }  # fmt: skip
    return Settings(_env_file=None, **(values | chosen)).model_copy(
        update={"judge_max_orders": max_orders, "judge_timeout_seconds": timeout_s}
    )
