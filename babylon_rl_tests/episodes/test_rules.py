"""The rules of reading, held against a second and plain reading of generated rows: all producers, all faults, on the real Postgres.

Every example works behind a savepoint of one database. Examples are the same on every run; a failure prints the blob that repeats it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.episodes.decode import Fault, decode_facts, decode_steps
from babylon_rl.episodes.reading import read_windows, stream_trajectories, sync_windows
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.types import Episode, ServedSequence, WindowReading
from babylon_rl_tests import oracle
from babylon_rl_tests.faulty_rows import WINDOWS, Row, copy_in, games, mutations
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.rows import AFTER, WINDOW, make_call, make_group, make_step, make_trajectory

pytestmark = pytest.mark.slow

Game = tuple[list[Row], list[Row]]
PLAIN = Settings.model_construct(**{name: field.default for name, field in Settings.model_fields.items()})


PURPOSES_THAT_TRAIN = st.sampled_from([["action"], ["action"], ["action", "response"], ["other"]])


@contextmanager
def written(connection: Connection, trajectories: list[Row], logs: list[Row]) -> Iterator[None]:
    """These rows and no others, until the block ends."""
    connection.execute("SAVEPOINT example")
    try:
        copy_in(connection, "trajectories", trajectories)
        copy_in(connection, "llm_call_logs", logs)
        yield
    finally:
        connection.execute("ROLLBACK TO SAVEPOINT example")


def text_of(sequence: ServedSequence) -> Any:
    return sequence.trajectory_id, sequence.step, [(m["role"], m["content"]) for m in sequence.messages], sequence.response


def fields_of(episode: Episode) -> dict[str, Any]:
    names = (
        "trajectory_ids", "used_ids", "steps", "start_pnl", "end_pnl", "window_pnl", "wins", "losses", "win_rate", "trades", "posts",
        "message_sources", "actions", "usable", "trainable_sequences",
    )  # fmt: skip
    return {name: getattr(episode, name) for name in names} | {"sequences": [text_of(sequence) for sequence in episode.sequences]}


def check(reading: WindowReading, answer: oracle.Hour) -> None:
    """Everything that the rules define of one hour."""
    assert reading.rows == answer.rows
    assert {found.trajectory_id: found.reason for found in reading.rejections} == {
        id: reason for id, (reason, _) in answer.rejected.items()
    }
    for found in reading.rejections:
        places = answer.rejected[found.trajectory_id][1]
        said = re.match(r"not JSON at (.*?): |(.*?) is ", found.detail)
        assert found.detail and (not places or (said is not None and {*said.groups()} & places)), (found, places)
    assert [episode.agent_id for episode in reading.episodes] == sorted(answer.episodes)
    for episode in reading.episodes:
        assert fields_of(episode) == answer.episodes[episode.agent_id]
    assert reading.ready == answer.ready
    assert reading.quality.other_lengths == answer.other_lengths


def without_texts(reading: WindowReading) -> tuple[Episode, ...]:
    return tuple(msgspec.structs.replace(episode, sequences=()) for episode in reading.episodes)


@pytest.mark.long
@repeatable(200)
@given(game=games(), min_steps=st.integers(1, 6), min_agents=st.integers(1, 3), purposes=PURPOSES_THAT_TRAIN)
def test_every_hour_is_read_as_the_rules_say(
    connection: Connection, game: Game, min_steps: int, min_agents: int, purposes: list[str]
) -> None:
    changes = {"min_actions_per_trajectory": min_steps, "min_agents_per_window": min_agents, "train_purposes": ",".join(purposes)}
    settings = PLAIN.model_copy(update=changes)
    answers = oracle.read_hours(*game, min_steps=min_steps, min_agents=min_agents, purposes=purposes)
    windows = sorted({*WINDOWS, *answers})
    with written(connection, *game):
        readings = read_windows(connection, windows, settings, texts=True)
        in_numbers = read_windows(connection, windows, settings)
    for window in windows:
        check(readings[window], answers.get(window, oracle.Hour()))
        assert in_numbers[window] == replace(readings[window], episodes=without_texts(readings[window]))


def contents(connection: Connection) -> list[Any]:
    """What the pipeline holds of all hours."""
    tables = ('windows ORDER BY "window"', 'episodes ORDER BY "window", "agentId"', 'rejections ORDER BY "window", "trajectoryId"')
    return [connection.execute(f"SELECT * FROM babylon_rl.{table}").fetchall() for table in tables]


def read_and_written(connection: Connection, game: Game) -> tuple[dict[str, WindowReading], list[Any]]:
    with written(connection, *game):
        readings = read_windows(connection, WINDOWS, PLAIN, texts=True)
        sync_windows(connection, WINDOWS, PLAIN, AFTER)
        return readings, contents(connection)


@pytest.mark.long
@repeatable(40)
@given(game=games(), chance=st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(connection: Connection, game: Game, chance: Any) -> None:
    straight = read_and_written(connection, game)
    for rows in game:
        chance.shuffle(rows)
    assert read_and_written(connection, game) == straight


@pytest.mark.long
@repeatable(40)
@given(game=games())
def test_a_range_is_each_of_its_hours(connection: Connection, game: Game) -> None:
    with written(connection, *game):
        together = read_windows(connection, WINDOWS, PLAIN, texts=True)
        apart = {window: read_windows(connection, [window], PLAIN, texts=True)[window] for window in WINDOWS}
        streamed = list(stream_trajectories(connection, WINDOWS, PLAIN))
    assert together == apart
    episodes = [episode for reading in together.values() for episode in reading.episodes]
    held = sorted((found.trajectory_id, list(found.sequences)) for found in streamed)
    assert held == sorted(
        (id, [s for s in episode.sequences if s.trajectory_id == id]) for episode in episodes for id in episode.trajectory_ids
    )
    assert len(streamed) == sum(reading.eligible for reading in together.values())


SERVED = [
    make_step(number, pnl=number, calls=[make_call(reasoning='é \\ "', latencyMs=1.5)], result={"pnl": -1.5e3}) for number in range(2)
]
PLAIN_TEXT = make_trajectory(steps=SERVED)["stepsJson"]


@pytest.mark.long
@repeatable(100)
@given(texts=st.lists(mutations(PLAIN_TEXT), min_size=1, max_size=12))
def test_a_spoilt_text_is_one_rejection_and_loses_no_other_row(connection: Connection, texts: list[str]) -> None:
    good = make_group()
    spoilt = [make_trajectory(f"spoilt-{number}", f"agent-{number % 7}", steps=text) for number, text in enumerate(texts)]
    rows = [row | {"windowHours": 1, "isEvaluation": False, "isTrainingData": True, "usedInTraining": False} for row in good + spoilt]
    with written(connection, rows, []):
        reading = read_windows(connection, [WINDOW], PLAIN, texts=True)[WINDOW]
        summary = sync_windows(connection, [WINDOW], PLAIN, AFTER)[WINDOW]
    check(reading, oracle.read_hours(rows, [])[WINDOW])
    assert {row["trajectoryId"] for row in good} <= {id for episode in reading.episodes for id in episode.trajectory_ids}
    assert summary.rows == len(rows) == summary.eligible + sum(summary.rejected.values())


@pytest.mark.parametrize("inner", ["1", '"\\ud800"', "01"])
@pytest.mark.parametrize(
    "place", ['"environmentState": @', '"agentPnL": @', '"action": @', '"parameters": @', '"llmCalls": @', '"timestamp": @']
)
def test_nesting_to_the_end_of_the_stack_raises_nothing(place: str, inner: str) -> None:
    step = '{"environmentState": {"agentBalance": 1, "agentPnL": 2, "openPositions": 3, @a}, "action": {"actionType": "HOLD", @b}, @c}'
    inside = "@a" if "agentPnL" in place else "@b" if "parameters" in place else "@c"
    for depth in (10, 300, 450, *range(700, 1000, 3), 5000):
        text = step.replace(inside, place.replace("@", "[" * depth + inner + "]" * depth))
        for unused in "abc":
            text = text.replace(f", @{unused}", "")
        for found in (decode_steps(f"[{text}]".encode()), decode_facts(f"[{text}]".encode())):
            reason = found.reason if isinstance(found, Fault) else ""
            assert reason == "malformed_json" or (inner == "1" and reason in ("", "malformed_shape"))
