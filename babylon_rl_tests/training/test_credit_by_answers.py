"""CREDIT=answers from simulated hours to a version: what trains, what is marked as used, and where parts take its place."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.answer_groups import sync_answer_groups
from babylon_rl.judge.scoring import score_windows
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.models.checkpoints import verify
from babylon_rl.settings import Settings
from babylon_rl.store.answer_groups import read_replayed
from babylon_rl.store.batches import read_batch, read_batch_episodes
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.freezing import look_at_newest
from babylon_rl.training.backends.protocol import TrainSequence
from babylon_rl.training.batches import NO_SPREAD_REASON, cancel_batch, prepare_batch, train_batch
from babylon_rl.training.checkpoint_checks import Finished, no_leakage
from babylon_rl.training.conversion import NO_VERSION, RECORDED, Conversion, convert, preflight_lines
from babylon_rl.training.freezing import RULES, count_freezable, decide_dropout, freeze, freeze_bounds
from babylon_rl.training.publishing import data_version
from babylon_rl_tests.market.stand_in import by_seed, stand_in

pytestmark = pytest.mark.slow
NOW = datetime(2025, 11, 16, 9, 30)
BY_BASE, BY_VERSION = "2025-11-15T10:00", "2025-11-15T11:00"
HOURS = [BY_BASE, BY_VERSION]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"credit": "answers", "iterations": 1, "epochs": 1, "lookback_hours": 24})


@pytest.fixture
def played(database: Database, settings: Settings) -> Iterator[Connection]:
    """Two hours of five scripts and one agent: the base is asked in the first one, a version in the second one."""
    with stand_in(by_seed) as served, database.connect(autocommit=True) as connection:
        for window, model in ((BY_BASE, "base"), (BY_VERSION, "v1.0.0")):
            with ChatClient(served.url, None, model) as client:
                spawn(connection, SpawnRequest(6, 1, 1, 3, start=window), NOW, model_agent(client))
        sync_windows(connection, HOURS, settings, NOW)
        yield connection


def prepared(connection: Connection, settings: Settings) -> str:
    batch = freeze(connection, settings, NOW).batch
    assert batch is not None
    prepare_batch(connection, batch.batch_id, settings, NOW)
    return batch.batch_id


def converted(connection: Connection, batch_id: str, settings: Settings, backend: str = "cpu") -> Conversion:
    return convert(connection, read_batch_episodes(connection, batch_id), settings, (), backend)


def shown(sequences: Any) -> list[tuple[Any, ...]]:
    return sorted((s.group, s.trajectory_id, s.response, s.score, s.advantage) for s in sequences)


def agent_of(sequence: TrainSequence) -> tuple[str, bool]:
    return sequence.window, bool(sequence.group)


def test_answers_train_in_place_of_the_episodes_of_hours_in_which_a_version_was_asked(played: Connection, settings: Settings) -> None:
    conversion = converted(played, prepared(played, settings), settings)
    assert {agent_of(sequence) for sequence in conversion.sequences} == {(BY_BASE, False), (BY_VERSION, True)}
    assert len(conversion.by_window[BY_BASE]) == 72 and len(conversion.by_window[BY_VERSION]) == 12 * 9
    assert len(conversion.replayed[BY_VERSION]) == 12 and conversion.replayed.keys() == {BY_VERSION}
    assert conversion.answers == 12 * 9 and sum(conversion.per_episode.values()) == 72 + 12
    assert conversion.not_replayed == {NO_VERSION: 1} and conversion.left_out == {RECORDED: 60}
    answers = list(conversion.by_window[BY_VERSION])
    assert len({answer.group for answer in answers}) == 12 and all(
        answer.logprobs is None and answer.score is not None for answer in answers
    )


def test_dropout_and_a_maximum_spare_the_episodes_whose_answers_train(played: Connection, settings: Settings) -> None:
    score_windows(played, HOURS, settings, NOW)
    sync_answer_groups(played, HOURS, settings, NOW)
    looked = [episode for found, _ in look_at_newest(played, freeze_bounds(played, settings, NOW), RULES) for episode in found]
    answered = [episode for episode in looked if episode.answered]
    assert [episode.window for episode in answered] == [BY_VERSION] and len(looked) == 12
    dropped = decide_dropout(looked, 1.0, 0, 1).dropped
    assert len(dropped) == 10 and not set(answered) & set(dropped)
    batch = freeze(played, settings, NOW, max_trajectories=12).batch  # of the newest hour one episode
    assert batch is not None
    assert [(one.window, one.agent_id) for one in read_batch_episodes(played, batch.batch_id)] == [(BY_VERSION, answered[0].agent_id)]


@pytest.mark.parametrize(
    ("change", "backend", "reason"),
    [
        ({"credit": "part"}, "cpu", None),
        ({}, "gpu", "the backend gpu trains recorded answers alone"),
        ({"judge_model": "gpt-x"}, "cpu", "gpt-x judges recorded hours alone, and nobody played these answers"),
    ],
)
def test_elsewhere_the_recorded_sequences_train_and_the_reason_is_given(
    played: Connection, settings: Settings, change: dict[str, str], backend: str, reason: str | None
) -> None:
    conversion = converted(played, prepared(played, settings), settings.model_copy(update=change), backend)
    assert len(conversion.sequences) == 144 and not any(sequence.group for sequence in conversion.sequences)
    assert conversion.not_replayed == ({reason: 2} if reason else {})


def test_a_version_is_trained_and_every_trajectory_is_used_once_or_baseline(
    played: Connection, settings: Settings, tiny_base: Path
) -> None:
    settings = settings.model_copy(update={"local_base_model": str(tiny_base), "warmup_steps": 0, "learning_rate": 1e-4})
    batch_id = prepared(played, settings)
    trained = train_batch(played, batch_id, settings, NOW)
    batch = read_batch(played, batch_id)
    assert batch is not None and batch.state == "completed" and batch.preflight is not None
    # an answer that nobody played is no sequence: each group counts as the call that was played
    assert {name: batch.preflight[name] for name in ("sequences", "answerGroups", "answers", "groups", "notReplayed")} == {
        "sequences": 84, "answerGroups": 12, "answers": 108, "groups": 2, "notReplayed": {NO_VERSION: 1},
    }  # fmt: skip
    assert batch.preflight["scriptedShare"] == 60 / 84
    manifest = verify(trained.checkpoint)
    assert manifest.metrics["answers"] == 108
    assert (trained.model.metrics["sequences"], trained.model.metrics["answers"]) == (84, 108)
    assert [(step.sequences, (step.metrics or {})["sequences"]) for step in trained.steps] == [(84, 84)]
    finished = Finished(batch, trained.model, trained.steps, read_batch_episodes(played, batch_id))
    assert no_leakage(played, finished, settings).numbers == {"sequences": 84, "missing": 0, "leaked": 0}
    assert "  Answer groups: 12 with 108 answers; nothing else of their hours trains" in preflight_lines(batch.preflight, "the base")
    assert trained.steps[0].trainable_tokens
    contributes = {(e.window, e.agent_id): e.contributes for e in read_batch_episodes(played, batch_id)}
    assert [agent for (window, agent), how in contributes.items() if window == BY_VERSION and how == "trained"] == ["test-agent-6"]
    assert [how for (window, _), how in contributes.items() if window == BY_BASE] == ["trained"] * 6
    used = played.execute('SELECT "windowId", count(*) FROM public.trajectories WHERE "usedInTraining" GROUP BY 1 ORDER BY 1').fetchall()
    assert used == [(BY_BASE, 72), (BY_VERSION, 12)]
    # what was baseline is kept out of later batches, as everywhere
    assert freeze(played, settings, NOW).batch is None


def test_a_batch_that_is_resumed_trains_what_it_began_with(played: Connection, settings: Settings) -> None:
    batch_id = prepared(played, settings)
    before = shown(converted(played, batch_id, settings).sequences)
    played.execute("""UPDATE babylon_rl.simulated_hours SET "source" = NULL""")
    played.execute("""UPDATE babylon_rl.replayed_hours SET "sourcesVersion" = 'old'""")
    hours = sync_answer_groups(played, HOURS, settings, NOW)
    assert all(hour.reason for hour in hours.values())
    assert shown(converted(played, batch_id, settings).sequences) == before
    # once no batch holds them, the next plan makes them again
    cancel_batch(played, batch_id, "enough", NOW)
    hours = sync_answer_groups(played, HOURS, settings, NOW)
    assert all(hour.reason and not hour.groups for hour in hours.values())
    assert not any(hour.groups for hour in read_replayed(played, HOURS).values())
    assert not any(hour.changed for hour in sync_answer_groups(played, HOURS, settings, NOW).values())


def test_a_batch_that_began_without_groups_stays_without(played: Connection, settings: Settings) -> None:
    played.execute("""CREATE TEMP TABLE kept AS SELECT "window", "source" FROM babylon_rl.simulated_hours""")
    played.execute("""UPDATE babylon_rl.simulated_hours SET "source" = NULL""")
    batch_id = prepared(played, settings)
    before = shown(converted(played, batch_id, settings).sequences)
    played.execute("""UPDATE babylon_rl.simulated_hours h SET "source" = k."source" FROM kept k WHERE k."window" = h."window" """)
    played.execute("""UPDATE babylon_rl.replayed_hours SET "sourcesVersion" = 'old'""")
    sync_answer_groups(played, HOURS, settings, NOW)
    assert shown(converted(played, batch_id, settings).sequences) == before
    cancel_batch(played, batch_id, "enough", NOW)
    assert any(hour.groups for hour in sync_answer_groups(played, HOURS, settings, NOW).values())


def test_a_batch_that_has_not_begun_trains_groups_by_the_present_rules(played: Connection, settings: Settings) -> None:
    batch_id = prepared(played, settings)
    before = shown(converted(played, batch_id, settings).sequences)
    played.execute("""UPDATE babylon_rl.replayed_hours SET "sourcesVersion" = 'old'""")
    played.execute("UPDATE babylon_rl.answer_groups SET answers = jsonb_set(answers, '{0,2}', '0.123')")
    assert shown(converted(played, batch_id, settings).sequences) != before
    prepare_batch(played, batch_id, settings, NOW)
    assert shown(converted(played, batch_id, settings).sequences) == before


EQUAL_HOURS = """UPDATE babylon_rl.group_scores SET "spread" = 0; UPDATE babylon_rl.episode_scores SET "advantage" = 0"""
EQUAL_ANSWERS = """
    UPDATE babylon_rl.answer_groups SET answers = (SELECT jsonb_agg(jsonb_set(a, '{2}', '0.5')) FROM jsonb_array_elements(answers) a)
"""


@pytest.mark.parametrize(
    ("credit", "equal", "train"),
    [
        ("hour", EQUAL_HOURS, []),
        ("part", EQUAL_HOURS, HOURS),
        ("part", f"""{EQUAL_HOURS}; UPDATE babylon_rl.part_scores SET "advantage" = 0""", []),
        ("answers", EQUAL_HOURS, [BY_VERSION]),
        ("answers", EQUAL_ANSWERS, [BY_BASE]),
        ("answers", f"{EQUAL_HOURS}; {EQUAL_ANSWERS}", []),
    ],
)
def test_an_hour_is_left_out_only_if_what_trains_of_it_has_no_advantage(
    played: Connection, settings: Settings, credit: str, equal: str, train: list[str]
) -> None:
    settings = settings.model_copy(update={"credit": credit})
    score_windows(played, HOURS, settings, NOW)
    if credit == "answers":
        sync_answer_groups(played, HOURS, settings, NOW)
    played.execute(equal)
    counted = count_freezable(played, settings, NOW)
    assert sorted(counted.windows) == train
    assert counted.not_trainable == ({"in groups without spread": 72 * (2 - len(train))} if len(train) < 2 else {})
    frozen = freeze(played, settings, NOW)
    if not train:
        assert frozen.batch is None
        return
    assert frozen.batch is not None and frozen.batch.dropout["freezable"] == counted.trajectories
    prepared = prepare_batch(played, frozen.batch.batch_id, settings, NOW)
    assert sorted({episode.window for episode in prepared.remaining}) == train


def test_hours_of_equal_scores_that_are_not_replayed_yet_are_decided_by_their_batch(played: Connection, settings: Settings) -> None:
    score_windows(played, HOURS, settings, NOW)
    played.execute(EQUAL_HOURS)
    batch = freeze(played, settings, NOW).batch
    assert batch is not None and sorted(batch.windows) == HOURS
    prepared = prepare_batch(played, batch.batch_id, settings, NOW)
    assert {episode.window for episode in prepared.remaining} == {BY_VERSION}
    assert prepared.dropped_groups == {BY_BASE: NO_SPREAD_REASON}


def test_the_data_version_of_a_batch_covers_its_answers(played: Connection, settings: Settings) -> None:
    batch = freeze(played, settings, NOW).batch
    assert batch is not None
    first = prepare_batch(played, batch.batch_id, settings, NOW)
    played.execute("UPDATE babylon_rl.answer_groups SET answers = jsonb_set(answers, '{0,2}', '0.123')")
    other = prepare_batch(played, batch.batch_id, settings, NOW)
    assert first.remaining == other.remaining
    assert data_version(first.remaining, first.answers) != data_version(other.remaining, other.answers)
