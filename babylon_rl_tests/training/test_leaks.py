"""A leaked sequence never trains: not counted as freezable, left out of what a batch gives, and said to be so."""

import json

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.hindsight import sync_hindsight
from babylon_rl.judge.prompt import templates
from babylon_rl.judge.prompt.templates import fill_template
from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batch_episodes
from babylon_rl.store.connection import Connection
from babylon_rl.training.backends.protocol import TrainPlan
from babylon_rl.training.conversion import convert, preflight_document
from babylon_rl.training.freezing import count_freezable, freeze
from babylon_rl.training.readiness import readiness
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.training.sample import NOW, value

HOUR = "2025-10-29T14:00"
SECRET = fill_template(templates.HIDDEN_ANSWER, question="Will it?", market="Q1", answer="NO")


def plant(connection: Connection, trajectory_id: str, *, calls: int | None = None) -> int:
    """Put the secret into a row's prompts (the first ``calls`` of them) and read its hour again; how many calls hold it now."""
    steps = json.loads(value(connection, 'SELECT "stepsJson" FROM trajectories WHERE "trajectoryId" = %s', trajectory_id))
    prompts = [call for step in steps for call in step.get("llmCalls", []) if call["purpose"] == "action"][:calls]
    for call in prompts:
        call["userPrompt"] += f"\n{SECRET}"
    connection.execute('UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s', (json.dumps(steps), trajectory_id))
    connection.commit()
    sync_windows(connection, [HOUR], settings_of(), NOW)
    return len(prompts)


def settings_of() -> Settings:
    return Settings(_env_file=None)


def embedded_rows(connection: Connection, agent: str) -> list[str]:
    found = connection.execute(
        """SELECT "trajectoryId" FROM trajectories t JOIN babylon_rl.episodes e ON t."trajectoryId" = ANY(e."trajectoryIds")
           WHERE e."window" = %s AND e."agentId" = %s AND "stepsJson" LIKE '%%"purpose":"action"%%' ORDER BY 1""",
        (HOUR, agent),
    )
    return [trajectory_id for (trajectory_id,) in found]


def an_agent(connection: Connection) -> str:
    """An agent of the hour all of whose calls that train are in its steps."""
    found: str = value(
        connection,
        """SELECT "agentId" FROM babylon_rl.episodes WHERE "window" = %s AND "usable" AND "trainableSequences" > 1
           AND ("messageSources"->>'embedded')::int = cardinality("trajectoryIds") ORDER BY 1 LIMIT 1""",
        HOUR,
    )
    return found


@pytest.mark.slow
def test_an_episode_all_of_whose_calls_leak_is_not_freezable(connection: Connection, settings: Settings) -> None:
    before = count_freezable(connection, settings, NOW)
    agent = an_agent(connection)
    rows = value(
        connection, 'SELECT cardinality("trajectoryIds") FROM babylon_rl.episodes WHERE "window" = %s AND "agentId" = %s', HOUR, agent
    )
    for trajectory_id in embedded_rows(connection, agent):
        plant(connection, trajectory_id)
    sync_hindsight(connection, [HOUR], settings, NOW)
    after = count_freezable(connection, settings, NOW)
    assert after.not_trainable["leak"] == rows == before.trajectories - after.trajectories
    assert readiness(connection, settings, NOW).not_trainable["leak"] == rows
    batch = freeze(connection, settings, NOW).batch
    assert batch is not None
    assert batch.trajectories == after.trajectories
    assert (HOUR, agent) not in {(episode.window, episode.agent_id) for episode in read_batch_episodes(connection, batch.batch_id)}


def test_one_leaked_call_leaves_the_rest_of_its_episode(connection: Connection, settings: Settings) -> None:
    before = count_freezable(connection, settings, NOW)
    assert plant(connection, embedded_rows(connection, an_agent(connection))[0], calls=1) == 1
    sync_hindsight(connection, [HOUR], settings, NOW)
    assert count_freezable(connection, settings, NOW).trajectories == before.trajectories


def test_conversion_finds_leaks_in_an_hour_that_hindsight_has_not_seen(connection: Connection, settings: Settings) -> None:
    agent = an_agent(connection)
    batch = freeze(connection, settings, NOW, windows=(HOUR, "2025-10-29T15:00")).batch
    assert batch is not None
    score_windows(connection, [HOUR], settings, NOW)
    episodes = read_batch_episodes(connection, batch.batch_id)
    clean = convert(connection, episodes, settings)
    planted = plant(connection, embedded_rows(connection, agent)[0], calls=1)
    assert value(connection, "SELECT count(*) FROM babylon_rl.leaks") == 0
    found = convert(connection, episodes, settings)
    assert clean.left_out.get("leak", 0) == 0
    assert found.left_out["leak"] == preflight_document(found, [], {}, TrainPlan())["leftOut"]["leak"] == planted
    assert found.per_episode[HOUR, agent] == clean.per_episode[HOUR, agent] - planted
    assert not [sequence for sequence in found.sequences if SECRET in str(sequence.messages)]
