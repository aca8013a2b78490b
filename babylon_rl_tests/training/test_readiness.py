"""The rules that bar an episode, each with its own condition and the first that holds counting; and the checks of readiness."""

import re
from datetime import timedelta
from itertools import combinations
from typing import Any

import pytest
from msgspec import to_builtins
from psycopg.types.json import Jsonb

from babylon_rl.serving.status_shapes import ReadinessDocument
from babylon_rl.store.batches import last_completed_at
from babylon_rl.store.connection import Connection
from babylon_rl.store.freezing import reason_case
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import RULES, UNREAD, count_freezable, freeze
from babylon_rl.training.readiness import not_ready, readiness
from babylon_rl.windows import window_of
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.training.sample import NOW, value

EPISODE = {
    "used": False, "held": False, "left": None, "usable": True, "trainableSequences": 3, "syntheticRows": 0, "leakedCalls": 0,
    "unjudged": False, "usableInHour": 5, "quarantined": False, "flat": False, "gone": False, "settled": True,
}  # fmt: skip
# What makes each rule hold.
CHANGES: dict[str, dict[str, Any]] = {
    "late_after_training": {"used": True},
    "in a live batch": {"held": True},
    "left out by dropout": {"left": "dropout"},
    "used as baseline alone": {"left": "baseline"},
    "in short episodes": {"usable": False},
    "synthetic": {"trainableSequences": 0, "syntheticRows": 3},
    "leak": {"trainableSequences": 3, "leakedCalls": 3},
    "without a call that trains": {"trainableSequences": 0},
    "late_after_judging": {"unjudged": True},
    "in thin hours": {"usableInHour": 4},
    "in quarantined hours": {"quarantined": True},
    "in groups without spread": {"flat": True},
    "changed since the hour was read": {"gone": True},
    "in hours not settled": {"settled": False},
}
COLUMNS = """"used" bool, "held" bool, "left" text, "usable" bool, "trainableSequences" int, "syntheticRows" int, "leakedCalls" int,
    "unjudged" bool, "usableInHour" int, "quarantined" bool, "flat" bool, "gone" bool, "settled" bool"""


def reason(connection: Connection, **changes: Any) -> str | None:
    query = f"SELECT {reason_case(RULES)} FROM jsonb_to_record(%(row)s) AS episode ({COLUMNS})"
    row = connection.execute(query, {"row": Jsonb(EPISODE | changes), "min_agents": 5}).fetchone()
    assert row is not None
    return row[0]


def test_an_episode_that_no_rule_bars_may_train(connection):
    assert reason(connection) is None


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_bars_by_its_own_condition(connection, rule):
    assert reason(connection, **CHANGES[rule]) == rule


def test_the_first_rule_that_holds_counts(connection):
    order = list(RULES)
    for first, second in combinations(order, 2):
        both = reason(connection, **{**CHANGES[second], **CHANGES[first]})
        assert both is not None and order.index(both) <= order.index(first), (first, second)


def test_every_new_trajectory_is_freezable_or_counted_with_a_reason(connection, settings):
    counted = count_freezable(connection, settings, NOW)
    new = value(
        connection,
        """
        SELECT count(*) FROM babylon_rl.episodes e CROSS JOIN LATERAL unnest(e."trajectoryIds") AS i (id)
        JOIN trajectories t ON t."trajectoryId" = i.id WHERE NOT t."usedInTraining" AND e."window" >= '2025-10-26'
        """,
    )
    assert counted.trajectories + sum(counted.not_trainable.values()) == new > 600
    assert set(counted.not_trainable) <= {*RULES, UNREAD}


ENOUGH = {"training_min_trajectories": 373, "training_min_groups": 6}


def test_the_checks_come_in_the_promised_order(connection, settings):
    def reason(**changes):
        state = readiness(connection, settings.model_copy(update=ENOUGH | {"data_quality_threshold": 0.0} | changes), NOW)
        assert state.ready == (state.reason == "Ready to train!")
        return state.reason

    assert reason() == "Ready to train!"
    assert reason(training_min_trajectories=374, training_min_groups=99, data_quality_threshold=1.0) == "Need 1 more trajectories"
    assert reason(training_min_groups=7, data_quality_threshold=1.0) == "Need more scenario groups (6/7 minimum)"
    assert reason(data_quality_threshold=1.0).startswith("Data quality too low (")
    assert reason(data_quality_threshold=1.0).endswith("% < 100%)")


def test_the_default_threshold_reads_as_promised(connection, settings):
    reason = readiness(connection, settings.model_copy(update=ENOUGH), NOW).reason
    assert reason.endswith("% < 95%)")


def test_the_object_has_its_promised_shape(connection, settings):
    document = to_builtins(ReadinessDocument.of(readiness(connection, settings, NOW)))
    assert set(document) >= {"ready", "reason", "stats", "notTrainable"}
    assert set(document["stats"]) == {"totalTrajectories", "unscoredTrajectories", "scenarioGroups", "dataQuality"}
    assert document["stats"]["totalTrajectories"] == 373
    assert document["notTrainable"] == {"synthetic": 204, "without a call that trains": 52, "in short episodes": 22}
    assert document["reason"] == "Need 627 more trajectories"
    assert 0 < document["stats"]["dataQuality"] < 1


def test_trajectories_count_whether_judged_or_not(connection, settings):
    before = readiness(connection, settings, NOW)
    assert before.unscored_trajectories == before.total_trajectories == 373
    score_windows(connection, ["2025-10-29T14:00"], settings, NOW)
    after = readiness(connection, settings, NOW)
    assert (after.total_trajectories, after.unscored_trajectories) == (373, 283)


def test_quality_is_the_mean_of_four_checks_over_the_newest_rows(connection, settings):
    quality = readiness(connection, settings, NOW).quality
    assert quality.rows == 50 and quality.has_steps == 1.0
    assert quality.mean == pytest.approx((quality.has_steps + quality.has_calls + quality.long_prompts + quality.has_results) / 4)
    # Rows that recorded no call fail two of the four.
    connection.execute("DELETE FROM llm_call_logs")
    connection.execute('UPDATE trajectories SET "stepsJson" = regexp_replace("stepsJson", \'"llmCalls"\', \'"calls"\', \'g\')')
    silent = readiness(connection, settings, NOW).quality
    assert (silent.has_calls, silent.long_prompts) == (0.0, 0.0)


def test_quality_is_of_the_newest_rows_whether_they_trained_or_not(connection, settings):
    before = readiness(connection, settings, NOW).quality
    # A training takes the rows that are good.
    connection.execute(
        """UPDATE trajectories SET "usedInTraining" = TRUE WHERE "trajectoryId" IN (
            SELECT unnest("trajectoryIds") FROM babylon_rl.episodes WHERE "trainableSequences" > 0)"""
    )
    assert readiness(connection, settings, NOW).quality == before
    assert str(not_ready(connection, settings.model_copy(update=ENOUGH), NOW)[0]).startswith("Need 373 more trajectories; ")


def test_trajectories_beyond_the_look_back_are_named_with_the_hours_that_train_them(connection, settings):
    later = NOW.replace(year=2026)
    connection.execute(
        """INSERT INTO trajectories SELECT (jsonb_populate_record(t, jsonb_build_object(
               'id', 'late', 'trajectoryId', 'late', 'windowId', %s::text, 'startTime', %s::timestamp, 'endTime', %s::timestamp))).*
           FROM trajectories t LIMIT 1""",
        [window_of(later), later, later],
    )
    state = readiness(connection, settings, later + timedelta(hours=1))
    assert state.reason.startswith("Need 1000 more trajectories; ") and state.total_trajectories == 0
    number, first, end = re.search(
        r"; (\d+) older trajectories are beyond LOOKBACK_HOURS \(168\): train them with --from (\S+) --to (\S+)$", state.reason
    ).groups()
    assert int(number) == 373 == count_freezable(connection, settings, later, windows=(first, end)).trajectories
    assert not_ready(connection, settings, later + timedelta(hours=1))[0] == state.reason
    assert "LOOKBACK_HOURS" not in readiness(connection, settings, NOW).reason


def test_mostly_synthetic_rows_are_named_with_the_cure(connection, settings):
    connection.execute('UPDATE babylon_rl.episodes SET "trainableSequences" = 0, "messageSources" = \'{"synthetic": 9}\'')
    state = readiness(connection, settings, NOW)
    assert state.reason.startswith("Need 1000 more trajectories; ")
    assert "are synthetic" in state.reason and "record the prompts" in state.reason


def test_an_empty_database_needs_everything(database, settings):
    with database.connect() as connection:
        state = readiness(connection, settings, NOW)
        assert (state.ready, state.reason, state.quality.mean) == (False, "Need 1000 more trajectories", 0.0)
        assert last_completed_at(connection) is None


@pytest.mark.slow
def test_a_training_uses_its_trajectories_up_and_starts_the_interval(connection, settings):
    batch = freeze(connection, settings, NOW).batch
    prepare_batch(connection, batch.batch_id, settings, NOW)
    train_batch(connection, batch.batch_id, settings, NOW)
    assert readiness(connection, settings, NOW).total_trajectories == 0
    assert NOW <= last_completed_at(connection) < NOW + timedelta(minutes=1)
