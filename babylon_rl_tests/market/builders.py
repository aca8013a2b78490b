"""Hours for the tests of what is written: a generated one, and one made by hand."""

from typing import Any

from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.scenario import Asset, Question, Scenario, WorldEvent, from_paths
from babylon_rl.recorder import milliseconds
from babylon_rl.windows import window_start

WINDOW = "2025-11-15T10:00"
STOCK, STOCK_NAME, QUESTION = "BLUFFSOCIAL", "Bluff Social", "Q7"
MOMENTS = 13


def make_scenario(**changes: Any) -> Scenario:
    """The hour of a seed, 0 by default, as spawn-agents plays it; its question is Q7."""
    given = {"seed": 0, "start_ms": milliseconds(window_start(WINDOW))} | changes
    return generate(preset("hour", **given), question_numbers=[7])


def make_hour(*, crowd: float = 0.5, events: tuple[WorldEvent, ...] = ()) -> Scenario:
    """Two stocks and a question that stand still."""
    assets = (Asset(STOCK, STOCK_NAME, (57.0,) * MOMENTS), Asset("TITANDIET", "Titan Diet", (19.0,) * MOMENTS))
    question = Question(QUESTION, 7, "Will it happen?", True, (crowd,) * MOMENTS, 0, MOMENTS)
    return from_paths(
        tick_seconds=300, assets=assets, questions=(question,), events=events, start_ms=milliseconds(window_start(WINDOW))
    )  # fmt: skip


def make_event(tick: int = 0, about: str = STOCK, direction: int = 1, *, rumour: bool = False) -> WorldEvent:
    return WorldEvent(tick, about, f"news about {about}", direction, 0.9, rumour, "deal", 1.0, "true", 0.0, 1)
