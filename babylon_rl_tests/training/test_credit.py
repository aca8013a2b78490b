"""Credit by part: from a simulated hour to the advantages of its calls, and what a batch fixes of them."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import pytest

from babylon_rl.episodes.reading import read_window
from babylon_rl.judge.consensus import scores_document
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.market.spawn import SpawnRequest, spawn, training_seed
from babylon_rl.recorder import milliseconds
from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batch_episodes
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.training.backends.protocol import TrainPlan, TrainSequence
from babylon_rl.training.batches import batch_settings, prepare_batch
from babylon_rl.training.conversion import convert, preflight_document, preflight_lines
from babylon_rl.training.freezing import count_freezable, freeze
from babylon_rl.windows import window_start
from babylon_rl_tests.rows import AFTER, WINDOW
from babylon_rl_tests.scored import read_hours, score_windows


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that judge hours by part."""
    return settings.model_copy(update={"credit": "part"})


@pytest.fixture
def hour(database: Database, settings: Settings) -> Iterator[Connection]:
    """A simulated hour of six scripts, read and judged."""
    with database.connect() as connection:
        spawn(connection, SpawnRequest(6, 0, 1, 0, start=WINDOW), AFTER, None)
        score_windows(connection, [WINDOW], settings, AFTER)
        connection.commit()
        yield connection


def converted(connection: Connection, settings: Settings, **changes: str) -> tuple[list[TrainSequence], list[str]]:
    """Sequences of a frozen batch of all hours, and the lines of its pre-flight."""
    chosen = settings.model_copy(update=changes)
    batch = freeze(connection, chosen, AFTER).batch
    assert batch is not None
    prepared = prepare_batch(connection, batch.batch_id, chosen, AFTER)
    found = convert(connection, prepared.remaining, batch_settings(prepared.batch, chosen))
    return list(found.sequences), preflight_lines(preflight_document(found, prepared.remaining, {}, TrainPlan()), "base")


def test_by_part_the_calls_of_an_agent_have_the_advantages_of_their_parts(hour: Connection, settings: Settings) -> None:
    sequences, lines = converted(hour, settings)
    parts = {(part.agent_id, part.start_minute): part for part in stored_scores(hour, [WINDOW])[WINDOW].parts}
    assert len(sequences) == len(parts) == 72 and {start for _, start in parts} == set(range(0, 60, 5))
    for one in sequences:
        own = parts[one.agent_id, one.minute - one.minute % 5]
        assert (one.advantage, one.score, one.part) == (own.advantage, own.score, own.start_minute)
    for agent in {one.agent_id for one in sequences}:
        assert len({one.advantage for one in sequences if one.agent_id == agent}) > 3
    assert not any("whole hour" in line for line in lines)


def market(window: str) -> Scenario:
    """The market of the first simulated hour of an empty database."""
    start = milliseconds(window_start(window))
    config = preset("hour", seed=training_seed(0, window), agents=6, edition=TRAINING, start_ms=start)
    return generate(config, start_prices={}, question_numbers=list(range(1, config.predictions + 1)))


def test_a_wrong_answer_at_a_stock_report_has_a_negative_advantage_on_average(hour: Connection, settings: Settings) -> None:
    sequences, _ = converted(hour, settings)
    scenario = market(WINDOW)
    names = {asset.ticker: asset.name for asset in scenario.assets}
    reports = {event.tick: event for event in scenario.events if event.about in names and event.direction and not event.rumour}
    texts = {tick: event.text for tick, event in reports.items()}
    assert all(any(texts[tick] in one.messages[-1]["content"] for one in sequences if one.minute // 5 == tick) for tick in texts)
    right, wrong = [], []
    for one in sequences:
        event = reports.get(one.minute // 5)
        if event is not None and names[event.about] in one.response:
            follows = ('"buy"' in one.response) == (event.direction > 0)
            (right if follows else wrong).append(one.advantage)
    assert right and wrong and fmean(wrong) < 0 < fmean(right)


def test_by_the_hour_each_call_has_its_episodes_advantage(hour: Connection, settings: Settings) -> None:
    sequences, lines = converted(hour, settings, credit="hour")
    group = stored_scores(hour, [WINDOW])[WINDOW]
    assert not group.parts and "parts" not in scores_document(group)
    assert {(one.agent_id, one.advantage, one.part) for one in sequences} == {(e.agent_id, e.advantage, None) for e in group.scores}
    assert not any("whole hour" in line for line in lines)


def test_an_hour_that_was_not_judged_by_part_gives_its_own_advantage_and_says_so(hour: Connection, settings: Settings) -> None:
    batch = freeze(hour, settings, AFTER).batch
    assert batch is not None
    prepared = prepare_batch(hour, batch.batch_id, settings, AFTER)
    older = [replace(episode, parts=()) for episode in prepared.remaining]
    found = convert(hour, older, settings)
    assert {(one.agent_id, one.advantage) for one in found.sequences} == {(episode.agent_id, episode.advantage) for episode in older}
    lines = preflight_lines(preflight_document(found, older, {}, TrainPlan()), "base")
    assert "  Advantage of the whole hour: 72 sequences of hours not judged by part" in lines


def test_a_batch_keeps_the_parts_that_it_was_judged_with(hour: Connection, settings: Settings) -> None:
    before, _ = converted(hour, settings)
    hour.execute('UPDATE babylon_rl.part_scores SET "advantage" = 0')
    (batch_id,) = hour.execute('SELECT "batchId" FROM babylon_rl.batches').fetchone() or ("",)
    assert list(convert(hour, read_batch_episodes(hour, batch_id), settings).sequences) == before


def test_an_hour_trains_where_any_part_differs(hour: Connection, settings: Settings) -> None:
    hour.execute('UPDATE babylon_rl.group_scores SET "spread" = 0')
    assert count_freezable(hour, settings, AFTER).trajectories == 72
    hour.execute('UPDATE babylon_rl.part_scores SET "advantage" = 0')
    assert dict(count_freezable(hour, settings, AFTER).not_trainable) == {"in groups without spread": 72}


def test_scores_show_the_parts_and_go_with_their_hour(hour: Connection, settings: Settings) -> None:
    parts = scores_document(stored_scores(hour, [WINDOW])[WINDOW])["parts"]
    assert set(parts[0]) == {"agentId", "startMinute", "endMinute", "score", "advantage"} and len(parts) == 72
    hour.execute("""DELETE FROM trajectories WHERE "agentId" IN ('test-agent-1', 'test-agent-2')""")
    read_hours(hour, [WINDOW], settings, AFTER)
    score_windows(hour, [WINDOW], settings, AFTER)
    assert hour.execute("SELECT count(*) FROM babylon_rl.part_scores").fetchone() == (0,)
    assert len(read_window(hour, WINDOW, settings).episodes) == 4
