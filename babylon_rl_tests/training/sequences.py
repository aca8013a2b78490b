"""Training sequences made by hand: ticks in which several agents were shown the same and answered differently."""

from typing import Any

from babylon_rl.market.simulation.prompting import format_of
from babylon_rl.training.backends.protocol import StepMetrics, TrainIteration, TrainSequence

MARKETS = ("OPENLIE", "TESLAI")
SCHEMA = format_of(MARKETS)
BUY, SELL, HOLD = '{"action": "buy", "market": "OPENLIE"}', '{"action": "sell", "market": "OPENLIE"}', '{"action": "hold"}'
GOOD, BAD = "OPENLIE beats every estimate", "OPENLIE recalls its product"


def make_messages(news: str = GOOD, agent: str = "agent-1") -> list[dict[str, str]]:
    """What one agent was shown: the beginning is the same for all agents of a tick."""
    return [{"role": "system", "content": "You are a trader."}, {"role": "user", "content": f"News: {news}\nYou: {agent}"}]


def make_sequence(response: str = BUY, advantage: float = 1.0, **changes: Any) -> TrainSequence:
    agent, news = changes.get("agent_id", "agent-1"), changes.pop("news", GOOD)
    return TrainSequence(
        **{
            "messages": make_messages(news, agent), "response": response, "response_format": SCHEMA, "logprobs": None,
            "advantage": advantage, "window": "2025-11-15T10:00", "agent_id": agent, "trajectory_id": "t", "call_id": "c",
            "step": 0, "source": "embedded", "purpose": "action", "model": "base",
        } | changes
    )  # fmt: skip


def make_lesson(ticks: int = 6) -> list[TrainSequence]:
    """Good news reward buying, bad news selling; holding is neither here nor there."""
    lesson = []
    for tick in range(ticks):
        for news, right, wrong in ((GOOD, BUY, SELL), (BAD, SELL, BUY)):
            for agent, (response, advantage) in enumerate(((right, 1.2), (wrong, -1.2), (HOLD, 0.0))):
                window = f"2025-11-15T{tick:02}:00"
                lesson.append(make_sequence(response, advantage, news=f"{news} {tick}", agent_id=f"agent-{agent}", window=window))
    return lesson


def make_iteration(sequences: list[TrainSequence], step: int = 1, steps: int = 1, seed: int = 0, passes: int = 1) -> TrainIteration:
    return TrainIteration("batch-1", step, sequences, seed, steps, passes)


def ignore(_: StepMetrics) -> None:
    """Nobody watches."""


ONLY = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "hold"}}}
OPEN = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}}
UNTRAINABLE = {
    "not_in_grammar": make_sequence('{"action":"buy"}'),
    "empty": make_sequence(""),
    "too_long": make_sequence(messages=make_messages("long " * 1000)),
    "no_choice": make_sequence('"hold"', response_format=ONLY),
    "open_schema": make_sequence("anything", response_format=OPEN),
    "template": make_sequence(messages=[{"role": "narrator", "content": "x"}]),
}
