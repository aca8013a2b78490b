"""A group of two toy episodes, and what a judge says of it: asked as the pipeline asks, by JudgeClient."""

import asyncio

from babylon_rl.judge.answers import EpisodeVerdict, read_answer
from babylon_rl.judge.client import JudgeClient
from babylon_rl.judge.prompt.request import RenderedEpisode, RenderedGroup, plan_requests
from babylon_rl.settings import Settings

GOOD, BAD = "agent-good", "agent-bad"
_PNL = {GOOD: 500.0, BAD: -500.0}
_TEXTS = {
    GOOD: "1. saw OPENLIE wins a large contract, at 100.00 | did BUY_SHARES ticker=OPENLIE",
    BAD: "1. saw OPENLIE wins a large contract, at 100.00 | did SELL_SHARES ticker=OPENLIE",
}
GROUP = RenderedGroup(
    "2025-11-15T08:00",
    ("Stocks over the hour, dollars at its start and its end: OPENLIE 100 120 +20.00% BULLISH.",),
    "",
    tuple(RenderedEpisode(text, len(text) // 4, agent_id=agent, pnl=_PNL[agent], steps=1) for agent, text in sorted(_TEXTS.items())),
    "two toy episodes",
)


def ask_judge(settings: Settings) -> dict[str, EpisodeVerdict]:
    """The verdicts of JUDGE_MODEL on GROUP by agent."""
    (request,) = plan_requests(GROUP, settings.judge_model, 0, b"of a live test", settings)

    async def ask() -> str:
        async with JudgeClient(settings) as caller:
            return (await caller.ask(request.messages, request.schema)).text

    found = read_answer(asyncio.run(ask()), list(request.ids))
    return {request.ids[identity]: verdict for identity, verdict in found.items()}
