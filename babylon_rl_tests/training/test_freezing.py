import json
import threading
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import psycopg
import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.errors import BatchConflict, TrainingError, UsageError
from babylon_rl.store.batches import read_batch_episodes
from babylon_rl.store.freezing import FreezableEpisode, NewBatch, count_unread, insert_batch, look_at_newest
from babylon_rl.training.batches import cancel_batch, prepare_batch, train_batch
from babylon_rl.training.freezing import (
    DROPOUT_STEADY,
    RULES,
    count_freezable,
    decide_dropout,
    describe_reasons,
    dropout_rate,
    freezable_of,
    freeze,
    freeze_bounds,
)
from babylon_rl.training.readiness import readiness
from babylon_rl.windows import HOUR, window_of, window_range
from babylon_rl_tests.many_rows import ManyRows, insert_many
from babylon_rl_tests.plans import RecordedDatabase
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.training.sample import NOW, WITHOUT_SPREAD, value

READY = {f"2025-10-29T{hour}:00" for hour in ("04", "13", "14", "15", "16", "17")} | {"2025-10-30T01:00"}


def episode(agent: str, window: str = "2025-10-29T14:00", rows: int = 2, group_size: int = 8) -> FreezableEpisode:
    return FreezableEpisode(window, agent, rows, group_size)


def test_freezing_takes_exactly_what_was_counted(connection, settings):
    counted = count_freezable(connection, settings, NOW)
    batch = freeze(connection, settings, NOW, seed=1).batch
    assert batch is not None
    assert batch.trajectories == counted.trajectories == 373
    assert set(batch.windows) == set(counted.windows) == READY
    episodes = read_batch_episodes(connection, batch.batch_id)
    assert len(episodes) == counted.episodes
    assert [e.window for e in episodes] == sorted((e.window for e in episodes), reverse=True)
    assert (batch.batch_id, batch.version, batch.parent_version, batch.state) == ("batch-1761825600000", "v1.0.11", None, "pending")


def test_what_cannot_train_is_counted_by_reason(connection, settings):
    counted = count_freezable(connection, settings, NOW)
    assert counted.not_trainable == {"synthetic": 204, "without a call that trains": 52, "in short episodes": 22}
    assert describe_reasons(counted.not_trainable) == "204 synthetic, 52 without a call that trains, 22 in short episodes"


def test_rows_of_hours_that_nobody_read_are_said_to_be_so(sample_database, settings):
    with sample_database.connect() as connection:
        counted = count_freezable(connection, settings, NOW)
    assert counted.trajectories == 0
    assert list(counted.not_trainable) == ["in hours not read yet"]


def test_a_frozen_trajectory_is_in_one_live_batch_only(connection, settings):
    first = freeze(connection, settings, NOW, max_trajectories=100).batch
    second = freeze(connection, settings, NOW).batch
    assert first is not None and second is not None
    assert first.trajectories <= 100
    assert first.trajectories + second.trajectories == 373
    assert (first.version, second.version) == ("v1.0.11", "v1.0.12")
    assert first.batch_id != second.batch_id
    nothing = freeze(connection, settings, NOW)
    assert nothing.batch is None
    assert "373 in a live batch" in nothing.reason


def test_two_freezers_at_once_share_nothing(read_sample, settings):
    batches, errors = [], []
    both = threading.Barrier(2)

    def run():
        try:
            with read_sample.connect() as connection:
                both.wait()
                batches.append(freeze(connection, settings, NOW).batch)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(batch is None for batch in batches) == [False, True]


def test_the_unique_key_refuses_a_second_live_batch(connection, settings):
    held = freeze(connection, settings, NOW).batch
    taken = read_batch_episodes(connection, held.batch_id)[0]
    again = FreezableEpisode(taken.window, taken.agent_id, len(taken.trajectory_ids), 5)
    with pytest.raises(BatchConflict, match="already in a live batch"), connection.transaction():
        insert_batch(connection, NewBatch("batch-2", "dry", "dry", None, "v9.0.0", 0, {}, {}, NOW, [again]))
    assert value(connection, "SELECT count(*) FROM public.training_batches WHERE id = 'batch-2'") == 0


def test_an_hour_that_was_read_anew_meanwhile_is_not_frozen_by_half(connection, settings):
    bounds = freeze_bounds(connection, settings, NOW)
    taken = next(e for found, _ in look_at_newest(connection, bounds, RULES) for e in found)
    chosen = replace(taken, trajectories=taken.trajectories + 1)
    with pytest.raises(BatchConflict, match="was read anew while it was frozen"), connection.transaction():
        insert_batch(connection, NewBatch("batch-2", "dry", "dry", None, "v9.0.0", 0, {}, {}, NOW, [chosen]))
    assert value(connection, "SELECT count(*) FROM babylon_rl.batch_items") == 0


def test_ids_of_trajectories_never_leave_the_database(read_sample, settings):
    recorded = RecordedDatabase(read_sample.url)
    with recorded.connect() as connection:
        batch = freeze(connection, settings, NOW, seed=1).batch
        frozen = [id for episode in read_batch_episodes(connection, batch.batch_id) for id in episode.trajectory_ids]
        listed = value(connection, 'SELECT "trajectoryIds" FROM public.training_batches WHERE id = %s', batch.batch_id)
        items = connection.execute('SELECT "trajectoryId" FROM babylon_rl.batch_items ORDER BY "position"').fetchall()
    assert len(frozen) == batch.trajectories == len(set(frozen))
    assert json.loads(listed) == [id for (id,) in items] and set(frozen) == {id for (id,) in items}
    bound = " ".join(str(sent.parameters) for sent in recorded.sent)
    assert not [id for id in frozen if repr(id) in bound]


def test_cancelling_frees_the_trajectories(connection, settings):
    batch = freeze(connection, settings, NOW).batch
    cancelled = cancel_batch(connection, batch.batch_id, "wrong hours", NOW)
    assert (cancelled.state, cancelled.error) == ("failed", "Cancelled: wrong hours")
    assert count_freezable(connection, settings, NOW).trajectories == 373
    with pytest.raises(BatchConflict, match="failed already"):
        cancel_batch(connection, batch.batch_id, "again", NOW)


def test_a_range_replaces_the_look_back(connection, settings):
    batch = freeze(connection, settings, NOW, windows=("2025-10-29T13:00", "2025-10-29T15:00")).batch
    assert list(batch.windows) == ["2025-10-29T14:00", "2025-10-29T13:00"]
    with pytest.raises(UsageError, match="backwards"):
        freeze(connection, settings, NOW, windows=("2025-10-29T15:00", "2025-10-29T13:00"))


def test_the_look_back_counts_from_the_newest_hour_that_holds_rows(connection, settings):
    near = settings.model_copy(update={"lookback_hours": 9})
    for now in (NOW, NOW + timedelta(days=300)):
        assert set(count_freezable(connection, near, now).windows) == {"2025-10-29T17:00", "2025-10-30T01:00"}


def test_the_running_hour_is_not_frozen(connection, settings):
    during = count_freezable(connection, settings, NOW.replace(hour=1, minute=30))
    assert "2025-10-30T01:00" not in during.windows


def test_automation_waits_for_an_llm_judges_hours_to_settle(connection, settings):
    judged = settings.model_copy(update={"judge_model": "some/model"})
    now = NOW.replace(hour=3)
    assert "2025-10-30T01:00" in count_freezable(connection, judged, now).windows
    waiting = count_freezable(connection, judged, now, settled=True)
    assert "2025-10-30T01:00" not in waiting.windows
    assert waiting.not_trainable["in hours not settled"] == 6


def test_newest_windows_come_first(connection, settings):
    batch = freeze(connection, settings, NOW, max_trajectories=69).batch
    assert set(batch.windows) <= {"2025-10-30T01:00", "2025-10-29T17:00"}
    assert batch.trajectories <= 69


@pytest.mark.parametrize("most", [20, 60, 100, 200])
def test_a_maximum_takes_whole_hours_but_for_the_oldest(connection, settings, most):
    counted = count_freezable(connection, settings, NOW).windows
    batch = freeze(connection, settings, NOW, max_trajectories=most).batch
    taken = Counter()
    for episode in read_batch_episodes(connection, batch.batch_id):
        taken[episode.window] += len(episode.trajectory_ids)
    assert 0 < taken.total() <= most
    *whole, oldest = sorted(taken, reverse=True)
    assert whole == sorted(counted, reverse=True)[: len(whole)] and all(taken[window] == counted[window] for window in whole)
    assert taken[oldest] < counted[oldest]


def test_looking_at_the_newest_hours_first_finds_what_counting_finds(connection, settings):
    first = freeze(connection, settings, NOW, max_trajectories=60).batch
    bounds = freeze_bounds(connection, settings, NOW)
    episodes, reasons, looks = [], Counter(), 0
    for found, others in look_at_newest(connection, bounds, RULES):
        episodes += found
        reasons.update(others)
        looks += 1
    assert first is not None and looks > 1
    assert [e.window for e in episodes] == sorted((e.window for e in episodes), reverse=True)
    assert freezable_of(episodes, reasons, count_unread(connection, bounds)) == count_freezable(connection, settings, NOW)


def test_an_episode_that_was_used_up_when_its_hour_was_read_is_left_out_and_still_in_its_group(connection, settings):
    bounds = freeze_bounds(connection, settings, NOW)
    taken, *rest = [e for found, _ in look_at_newest(connection, bounds, RULES) for e in found]
    connection.execute(
        """
        UPDATE trajectories SET "usedInTraining" = TRUE WHERE "trajectoryId" = ANY(
            SELECT unnest("trajectoryIds") FROM babylon_rl.episodes WHERE "window" = %s AND "agentId" = %s
        )
        """,
        [taken.window, taken.agent_id],
    )
    connection.commit()
    for _ in range(2):
        assert [e for found, _ in look_at_newest(connection, bounds, RULES) for e in found] == rest
        connection.commit()
        sync_windows(connection, [taken.window], settings, NOW)


@pytest.mark.slow
def test_what_a_full_batch_leaves_is_not_looked_at(database, settings):
    end = datetime(2025, 11, 1)
    many = ManyRows(4320, end - 24 * HOUR, end, agents=30)
    now, hours = end + timedelta(minutes=10), list(window_range(window_of(many.start), window_of(end)))
    with database.connect() as connection:
        insert_many(connection, many)
        connection.commit()
        sync_windows(connection, hours, settings, now)
        total = count_freezable(connection, settings, now).trajectories
        frozen = freeze(connection, settings, now, max_trajectories=100)
    assert frozen.batch is not None
    assert set(frozen.batch.windows) == {hours[-1]} and 90 < frozen.batch.trajectories <= 100
    assert frozen.batch.dropout["rate"] == dropout_rate(total) == 0.3
    assert DROPOUT_STEADY <= frozen.batch.dropout["freezable"] < total


@pytest.mark.parametrize("credit", WITHOUT_SPREAD)
def test_a_quarantined_hour_and_a_flat_group_are_left_out(connection, settings, credit):
    settings = settings.model_copy(update={"credit": credit})
    score_windows(connection, sorted(READY), settings, NOW)
    connection.execute("UPDATE babylon_rl.windows SET \"state\" = 'quarantined' WHERE \"window\" = '2025-10-29T13:00'")
    connection.execute(f"{WITHOUT_SPREAD[credit]} WHERE \"window\" = '2025-10-29T14:00'")
    counted = count_freezable(connection, settings, NOW)
    assert set(counted.windows) == READY - {"2025-10-29T13:00", "2025-10-29T14:00"}
    assert counted.not_trainable["in quarantined hours"] == 53
    assert counted.not_trainable["in groups without spread"] == 90


def test_a_minimum_that_is_not_reached_is_a_reason_in_numbers(connection, settings):
    frozen = freeze(connection, settings, NOW, minimum=1000)
    assert frozen.batch is None
    assert frozen.reason.startswith("373 of 1000 freezable trajectories in the hours from ")


def test_without_a_trainer_nothing_is_frozen(connection, settings):
    with pytest.raises(TrainingError, match="TRAIN_RL_LOCAL=true"):
        freeze(connection, settings.model_copy(update={"train_rl_local": False}), NOW)


def test_a_pinned_version_is_used_or_refused(connection, settings):
    pinned = freeze(connection, settings.model_copy(update={"model_version": "v3.0.0"}), NOW, max_trajectories=50).batch
    assert pinned.version == "v3.0.0"
    with pytest.raises(TrainingError, match=f"v3.0.0, which {pinned.batch_id} will be; finish it"):
        freeze(connection, settings.model_copy(update={"model_version": "v3.0.0"}), NOW)
    with pytest.raises(TrainingError, match=r"v1\.0\.10, which is registered already"):
        freeze(connection, settings.model_copy(update={"model_version": "v1.0.10"}), NOW)
    with pytest.raises(UsageError, match="vMAJOR"):
        freeze(connection, settings.model_copy(update={"model_version": "3"}), NOW)


@pytest.mark.slow
def test_a_pinned_version_below_the_newest_of_its_line_is_refused(connection, settings):
    high = settings.model_copy(update={"model_version": "v3.0.0"})
    batch = freeze(connection, high, NOW, max_trajectories=50).batch
    prepare_batch(connection, batch.batch_id, high, NOW)
    train_batch(connection, batch.batch_id, high, NOW)
    with pytest.raises(UsageError, match=r"v2\.0\.0, which is below v3\.0\.0, the newest of its line.*to get v3\.0\.1"):
        freeze(connection, settings.model_copy(update={"model_version": "v2.0.0"}), NOW)
    assert freeze(connection, settings.model_copy(update={"model_version": "v3.1.0"}), NOW).batch.version == "v3.1.0"


def test_the_dropout_rate_follows_the_formula():
    assert [dropout_rate(total) for total in (0, 1000, 1250, 100_000)] == [0.0, 0.0, pytest.approx(0.2), 0.3]


def test_dropout_is_seeded_and_never_below_the_smallest_group():
    episodes = [episode(f"agent-{number}") for number in range(8)]
    decided = decide_dropout(episodes, 0.9, seed=3, min_agents=5)
    assert decided == decide_dropout(list(reversed(episodes))[::-1], 0.9, seed=3, min_agents=5)
    assert (len(decided.kept), len(decided.dropped)) == (5, 3)
    assert decide_dropout(episodes, 0.9, seed=3, min_agents=5, decided=frozenset({"2025-10-29T14:00"})).dropped == []
    answered = [replace(one, answered=True) for one in episodes[:4]]
    assert not set(answered) & set(decide_dropout([*answered, *episodes[4:]], 1.0, seed=3, min_agents=1).dropped)
    rates = [len(decide_dropout([episode(str(n), group_size=2000) for n in range(1000)], 0.3, seed, 5).dropped) for seed in range(3)]
    assert all(250 < dropped < 350 for dropped in rates)


def test_a_late_row_of_a_consumed_episode_is_named(connection, settings):
    batch = freeze(connection, settings, NOW).batch
    episode = read_batch_episodes(connection, batch.batch_id)[0]
    cancel_batch(connection, batch.batch_id, "test", NOW)
    connection.execute('UPDATE trajectories SET "usedInTraining" = TRUE WHERE "trajectoryId" = %s', [episode.trajectory_ids[0]])
    counted = count_freezable(connection, settings, NOW)
    assert counted.not_trainable["late_after_training"] == len(episode.trajectory_ids) - 1


def test_an_agent_that_comes_to_an_hour_after_its_judgement_was_used_does_not_trigger_for_ever(connection, settings):
    hour = ("2025-10-29T14:00", "2025-10-29T15:00")
    rows = value(
        connection,
        """SELECT "trajectoryIds" FROM babylon_rl.episodes WHERE "window" = %s AND "usable" AND "trainableSequences" > 0
           ORDER BY "agentId" LIMIT 1""",
        hour[0],
    )

    def come(there: bool) -> None:
        connection.execute('UPDATE trajectories SET "isTrainingData" = %s WHERE "trajectoryId" = ANY(%s)', [there, rows])
        connection.commit()
        sync_windows(connection, hour[:1], settings, NOW)

    come(False)
    batch = freeze(connection, settings, NOW, windows=hour).batch
    prepare_batch(connection, batch.batch_id, settings, NOW)
    come(True)
    assert count_freezable(connection, settings, NOW, windows=hour).trajectories == len(rows)  # nothing of the hour is consumed yet
    train_batch(connection, batch.batch_id, settings, NOW)
    counted = count_freezable(connection, settings, NOW, windows=hour)
    assert (counted.trajectories, counted.not_trainable["late_after_judging"]) == (0, len(rows))
    assert f"{len(rows)} late_after_judging" in freeze(connection, settings, NOW, windows=hour).reason
    assert readiness(connection, settings, NOW).not_trainable["late_after_judging"] == len(rows)
    connection.commit()
    score_windows(connection, hour[:1], settings, NOW, force=True)
    assert freeze(connection, settings, NOW, windows=hour).batch.trajectories == len(rows)


def test_deleted_rows_wait_for_the_hour_to_be_read_again(connection, settings):
    batch = freeze(connection, settings, NOW).batch
    episode = read_batch_episodes(connection, batch.batch_id)[0]
    cancel_batch(connection, batch.batch_id, "test", NOW)
    connection.execute('DELETE FROM trajectories WHERE "trajectoryId" = %s', [episode.trajectory_ids[0]])
    assert count_freezable(connection, settings, NOW).not_trainable["changed since the hour was read"] == len(episode.trajectory_ids) - 1
    connection.commit()
    sync_windows(connection, [episode.window], settings, NOW)
    assert "changed since the hour was read" not in count_freezable(connection, settings, NOW).not_trainable


def test_the_tables_of_an_unmigrated_database_are_missed_by_name(raw_sample_database, settings):
    with raw_sample_database.connect() as connection, pytest.raises(psycopg.errors.UndefinedTable):
        count_freezable(connection, settings, NOW)
