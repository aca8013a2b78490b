"""The asset hindsight: an hour's page, when automation asks for it, and a planted leak from the row to the batch."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import dagster as dg
import pytest

from babylon_rl.definitions import defs
from babylon_rl.judge.prompt import templates
from babylon_rl.judge.prompt.templates import fill_template
from babylon_rl.store.batches import read_batch_episodes
from babylon_rl.store.database import Database
from babylon_rl.training.freezing import count_freezable, freeze
from babylon_rl_tests.assets.conftest import VERSION, Bench

HOUR, NEXT = "2025-10-29T14:00", "2025-10-29T15:00"
KEY = dg.AssetKey("hindsight")
SECRET = fill_template(templates.SCORE, agent="you", score=0.93, rank=1, group=7)


def plant(bench: Bench) -> tuple[str, str]:
    """Put a judge's score into every action prompt of one agent's rows in HOUR; the agent and the first of the trajectories."""
    with bench.babylon.database.connect(autocommit=True) as connection:
        agent = connection.execute(
            """SELECT "agentId" FROM trajectories
               WHERE "windowId" = %s AND NOT "usedInTraining" AND "stepsJson" LIKE '%%"purpose":"action"%%' AND "agentId" NOT LIKE 'test-%%'
               GROUP BY 1 HAVING count(*) > 5 ORDER BY 1 LIMIT 1""",
            (HOUR,),
        ).fetchone()
        assert agent is not None
        rows = connection.execute(
            """SELECT "trajectoryId", "stepsJson" FROM trajectories WHERE "windowId" = %s AND "agentId" = %s ORDER BY 1""", (HOUR, agent[0])
        ).fetchall()
        changed = [row for row in rows if '"purpose":"action"' in row[1]]
        for trajectory_id, text in changed:
            steps = json.loads(text)
            for call in (call for step in steps for call in step["llmCalls"]):
                call["userPrompt"] = f"{call['userPrompt']}\n{SECRET}"
            connection.execute('UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s', (json.dumps(steps), trajectory_id))
        connection.execute('DELETE FROM llm_call_logs WHERE "trajectoryId" = ANY(%s)', ([row[0] for row in rows],))
    return agent[0], changed[0][0]


@pytest.mark.long
def test_an_hours_page_says_how_often_each_agent_was_right(bench: Bench) -> None:
    bench.run("hours", HOUR)
    metadata = bench.materializations("hindsight")[HOUR].metadata
    assert metadata["dagster/row_count"].value > metadata["known"].value > metadata["right"].value > 0
    assert metadata["leaked_sequences"].value == 0
    assert metadata["pictures"].value.startswith("![")
    assert {record.data["agent"] for record in metadata["agents"].records}  # type: ignore[attr-defined]
    assert sum(len(repr(value)) for value in metadata.values()) < 150_000


def test_an_hour_without_rows_is_no_error(bench: Bench) -> None:
    assert bench.run("hours", "2025-10-29T08:00").success
    assert bench.materializations("hindsight")["2025-10-29T08:00"].metadata["dagster/row_count"].value == 0


@pytest.mark.long
def test_a_planted_leak_fails_the_check_by_name_and_never_trains(bench: Bench) -> None:
    settings = bench.babylon.settings.model_copy(update={"train_rl_local": True, "local_base_model": "dry"})
    agent, trajectory = plant(bench)
    found = bench.verdicts("hours", HOUR, NEXT)["no_leaks"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert (found.description or "").startswith(f"1 of 2 hours: {HOUR}, ")  # an hour without leaks was looked at
    assert "hold score" in (found.description or "") and trajectory in str(found.metadata["hours"])
    with bench.babylon.database.connect() as connection:
        assert count_freezable(connection, settings, bench.babylon.now(), windows=(HOUR, NEXT)).not_trainable["leak"] > 5
        batch = freeze(connection, settings, bench.babylon.now(), windows=(HOUR, NEXT)).batch
        assert batch is not None
        assert agent not in {episode.agent_id for episode in read_batch_episodes(connection, batch.batch_id)}


class Ticks:
    """Evaluates the conditions again and again, as the sensor does."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.cursor = bench, None

    def __call__(self) -> dict[str, set[str]]:
        result = dg.evaluate_automation_conditions(defs, self.bench.instance, cursor=self.cursor)
        self.cursor: Any = result.cursor
        found = {
            name: set(result.get_requested_partitions(dg.AssetKey(name))) for name in ("market_outcomes", "hindsight", "scored_groups")
        }
        return {name: windows for name, windows in found.items() if windows}


@pytest.mark.long
def test_a_late_answer_asks_for_hindsight_and_scores_do_not_wait_for_it(
    make_bench: Callable[..., Bench], sample_database: Database
) -> None:
    bench = make_bench(sample_database, now=datetime(2025, 10, 29, 18, 10), first_window="2025-10-29T13:00")
    first, last = "2025-10-29T13:00", "2025-10-29T17:00"
    bench.run("observe")
    bench.run("hours", first, last)
    before = bench.materializations("hindsight")
    ticks = Ticks(bench)
    assert ticks() == {}
    bench.execute(
        """
        UPDATE "Question" SET "resolvedOutcome" = TRUE, "updatedAt" = '2025-10-29 16:30' WHERE id = (
            SELECT "marketId" FROM babylon_rl.action_outcomes WHERE "window" = %s AND "marketId" IS NOT NULL ORDER BY 1 LIMIT 1)
        """,
        HOUR,
    )
    bench.run("observe")
    asked = ticks()["market_outcomes"]
    assert HOUR in asked
    bench.run("hours", first, last, asset_selection=[dg.AssetKey("market_outcomes")])
    requested = ticks()
    assert requested["hindsight"] == requested["scored_groups"] == asked
    bench.run("hours", first, last, asset_selection=[KEY])
    after = bench.materializations("hindsight")
    assert after[HOUR].tags[VERSION] != before[HOUR].tags[VERSION]
    assert after[HOUR].metadata["known"].value > before[HOUR].metadata["known"].value
    assert ticks() == {}
