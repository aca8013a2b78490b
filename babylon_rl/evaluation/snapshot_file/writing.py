"""From a scenario to its snapshot."""

import hashlib

from babylon_rl.evaluation.snapshot_file.opportunities import opportunities
from babylon_rl.evaluation.snapshot_file.optimality import listed, optimum
from babylon_rl.evaluation.snapshot_file.optimum import PolicyClass, best_plan
from babylon_rl.evaluation.snapshot_file.origin import camel_fields
from babylon_rl.evaluation.snapshot_file.schema import VERSION, Generator, GroundTruth, PricePoint, Snapshot
from babylon_rl.evaluation.snapshot_file.ticks import PRICE_DECIMALS, Recording
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.scenario import FORMAT, Scenario

ID_CHARACTERS = 16


def from_scenario(scenario: Scenario, policy: PolicyClass | None = None) -> Snapshot:
    """Write a scenario as a snapshot; the same scenario gives the same bytes. Nothing is read from the clock.

    A scenario without a config (a recorded one) becomes a snapshot that is replayed from its states.
    """
    recording, config = Recording(scenario), scenario.config
    plan = best_plan(scenario, policy=policy)
    return Snapshot(
        id=_id(scenario),
        version=VERSION,
        created_at=scenario.start_ms,
        duration=scenario.ticks * scenario.tick_seconds,
        tick_interval=scenario.tick_seconds,
        initial_state=recording.initial_state,
        ticks=tuple(recording.ticks()),
        ground_truth=GroundTruth(
            market_outcomes={question.id: question.answer for question in scenario.questions},
            price_history=_price_history(scenario),
            optimal_actions=listed(plan),
            social_opportunities=opportunities(scenario),
            optimum=optimum(scenario, plan),
        ),
        seed=config.seed if config is not None else None,
        config=camel_fields(config) if config is not None else None,
        generator=_generator(scenario),
    )


def _generator(scenario: Scenario) -> Generator | None:
    if scenario.config is None:
        return None
    return Generator(FORMAT, scenario.digest, camel_fields(scenario.model if scenario.model is not None else MarketModel()))


def _price_history(scenario: Scenario) -> dict[str, tuple[PricePoint, ...]]:
    times = [scenario.timestamp_ms(tick) for tick in range(scenario.ticks + 1)]
    return {
        asset.ticker: tuple(
            PricePoint(tick, time, round(price, PRICE_DECIMALS)) for tick, (time, price) in enumerate(zip(times, asset.prices, strict=True))
        )
        for asset in scenario.assets
    }


def _id(scenario: Scenario) -> str:
    """From everything in the market, its config and seed included: two markets never share one."""
    return f"snapshot-{hashlib.sha256(f'{VERSION}/{scenario.digest}'.encode()).hexdigest()[:ID_CHARACTERS]}"
