"""Dropout decided before a paid judge is asked: the judge sees the kept episodes alone, and the batch freezes exactly those."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from babylon_rl.judge.scoring import stored_scores
from babylon_rl.settings import Settings
from babylon_rl.store.batches import left_to_dropout, read_batch_episodes
from babylon_rl.store.database import Database
from babylon_rl.training.batches import prepare_batch
from babylon_rl.training.freezing import drop_before_judging, freeze
from babylon_rl_tests.assets.conftest import Bench, make_bench
from babylon_rl_tests.judge.model_judge import NOW, asking, filled
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.scored import score_windows

__all__ = ["make_bench"]
pytestmark = pytest.mark.slow

HOURS, AGENTS = 100, 15
TRAINER = {"train_rl_local": True, "local_base_model": "dry", "iterations": 1, "windows_per_iteration": 2}


@pytest.fixture
def judge() -> Iterator[Judge]:
    with judging() as running:
        yield running


@pytest.mark.long
def test_the_graphs_judge_sees_what_dropout_leaves_and_the_batch_freezes_exactly_that(
    make_bench: Callable[..., Bench], database: Database, settings: Settings, judge: Judge
) -> None:
    windows = filled(database, HOURS, AGENTS)
    older, newest = windows[-4:-2], windows[-2:]
    chosen = asking(settings.model_copy(update=TRAINER), judge.url)
    with database.connect(autocommit=True) as connection:
        score_windows(connection, older, chosen, NOW)  # without dropout, for comparison
        whole, before = judge.stats()["promptTokens"], judge.stats()["requests"]
    asked: dict[str, Any] = {"judge_model": chosen.judge_model, "judge_base_url": judge.url, "judge_disagreement": 1.0}
    bench = make_bench(database, NOW, **TRAINER, **asked)
    bench.run("score", newest[0], newest[1])
    with database.connect() as connection:
        gone = left_to_dropout(connection, windows)
        scores = stored_scores(connection, newest)
        judged = {(window, score.agent_id) for window, group in scores.items() for score in group.scores}
        spent, requests = judge.stats()["promptTokens"] - whole, judge.stats()["requests"] - before
        print(f"judged {len(judged)} of {2 * AGENTS} episodes in {requests} requests, {spent} tokens instead of {whole}")
        # 1,500 could train, so 30 % may go; an hour of 15 keeps the 10 that readiness wants of a group
        assert {window for window, _ in gone} == set(newest) and 2 <= len(gone) <= 10
        assert len(judged) == 2 * AGENTS - len(gone) and not judged & gone
        assert requests == before and spent < whole * (1 - 0.8 * len(gone) / (2 * AGENTS))
        # again, by hand and as a batch: nothing more is decided, asked or dropped
        assert not drop_before_judging(connection, newest, bench.babylon.settings, NOW).dropped
        batch = freeze(connection, bench.babylon.settings, NOW, seed=7, max_trajectories=2 * AGENTS).batch
        assert batch is not None
        frozen = {(episode.window, episode.agent_id) for episode in read_batch_episodes(connection, batch.batch_id)}
        assert {episode for episode in frozen if episode[0] in newest} == judged
        connection.commit()
        prepared = prepare_batch(connection, batch.batch_id, bench.babylon.settings, NOW)
        assert {(e.window, e.agent_id) for e in prepared.remaining} >= judged and judge.stats()["requests"] - before == requests


@pytest.mark.parametrize(
    "changes",
    [
        {"judge_model": "heuristic"},
        {"train_rl_local": False},  # nothing trains: whoever judges wants all scores
        {"training_min_trajectories": 1500},  # readiness would wait for the dropped
        {"training_min_group_size": AGENTS},
    ],
)
def test_nobody_is_dropped_where_that_saves_nothing_or_delays_a_training(
    database: Database, settings: Settings, changes: dict[str, Any]
) -> None:
    windows = filled(database, HOURS, AGENTS)
    chosen = asking(settings.model_copy(update=TRAINER), "http://127.0.0.1:9/v1", **changes)
    with database.connect() as connection:
        assert not drop_before_judging(connection, windows[-2:], chosen, NOW).dropped
        assert not left_to_dropout(connection, windows)


def test_an_hour_that_was_paid_for_or_decided_stays_whole(database: Database, settings: Settings, judge: Judge) -> None:
    windows = filled(database, HOURS, AGENTS)
    chosen = asking(settings.model_copy(update=TRAINER | {"training_min_group_size": 1}), judge.url)
    with database.connect() as connection:
        score_windows(connection, windows[-1:], chosen, NOW)
        first = drop_before_judging(connection, windows[-2:], chosen, NOW)
        assert {episode.window for episode in first.dropped} == {windows[-2]} and 0.25 < first.rate <= 0.3
        assert not drop_before_judging(connection, windows[-2:], chosen, NOW).dropped
        # the same agents go wherever the decision is made first
        connection.execute("DELETE FROM babylon_rl.dropped_episodes")
        connection.execute("DELETE FROM babylon_rl.dropout_decisions")
        assert drop_before_judging(connection, windows[-2:], chosen, NOW).dropped == first.dropped
