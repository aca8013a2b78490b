"""The demo's hours, generation by generation, and what a training that came to nothing leaves to the next run of the same demo."""

from dataclasses import replace

import pytest

from babylon_rl.automation.instance import open_instance
from babylon_rl.cli.demo_stages import Demo, materialize_hours, planned, play, train
from babylon_rl.cli.output import Table
from babylon_rl.errors import Diverged, NothingToTrain, UsageError
from babylon_rl.evaluation import report
from babylon_rl.market.simulation.games import AMOUNTS, ONE_TICK_GAME, POSITIONS, POSTS, Game
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batch
from babylon_rl.store.database import Database
from babylon_rl.store.recording import read_sources
from babylon_rl.training.batches import fail_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.lifecycle import iterations_of
from babylon_rl.windows import newest_complete, utc_now, window_range

WINDOWS, GENERATIONS = 2, 3
COLLAPSED = "One action has 99% of the policy: it collapsed, and nothing was published."


@pytest.fixture
def demo(database: Database, settings: Settings) -> Demo:
    database.prepare_dagster_schema()
    chosen = {"train_rl_local": True, "local_base_model": "dry", "iterations": 1, "training_min_trajectories": 10}
    return Demo(settings.model_copy(update=chosen), database, WINDOWS, seed=4, generations=GENERATIONS)


def played(demo: Demo, hours: list[str], seed: int = 4, game: Game = ONE_TICK_GAME) -> None:
    """Hours that scripts alone have played."""
    with demo.database.connect() as connection:
        spawn(connection, SpawnRequest(6, 0, len(hours), seed, start=hours[0], game=game), utc_now(), None)


def test_generations_follow_each_other_in_hours_that_no_clock_moves(demo: Demo, settings: Settings) -> None:
    plan = planned(demo)
    # The hour after each generation's is for its release.
    assert plan == [[f"2025-03-03T{first:02}:00", f"2025-03-03T{first + 1:02}:00"] for first in (0, 3, 6)]
    assert (len(plan), len(plan[0])) == (GENERATIONS, WINDOWS) and plan[0][0] > settings.first_window


def test_a_demo_that_goes_on_later_keeps_its_hours(demo: Demo) -> None:
    first = "2026-02-03T04:00"
    played(demo, [first])
    assert planned(demo)[0][0] == first
    assert planned(demo)[-1][-1] == "2026-02-03T11:00"


def test_hours_of_another_seed_are_not_mixed_in(demo: Demo) -> None:
    played(demo, ["2026-02-03T04:00"], seed=5)
    with pytest.raises(UsageError, match="another seed"):
        planned(demo)


def test_a_demo_of_another_prompt_is_refused_and_one_of_another_game_goes_on(demo: Demo) -> None:
    played(demo, ["2026-02-03T04:00"])
    with pytest.raises(UsageError, match="holds a demo of the game one-tick, whose prompt is another"):
        planned(replace(demo, game=POSTS))
    assert planned(demo)[0][0] == "2026-02-03T04:00"


@pytest.mark.parametrize("game", [AMOUNTS, POSITIONS], ids=["amounts", "positions"])
def test_a_game_with_the_same_prompt_goes_on_from_the_versions_of_the_other_one(demo: Demo, game: Game) -> None:
    played(demo, ["2026-02-03T04:00", "2026-02-03T05:00"], game=POSTS)
    plan = planned(replace(demo, game=game))
    assert plan[0] == ["2026-02-03T04:00", "2026-02-03T05:00"] and len(plan) == GENERATIONS
    play(replace(demo, game=game), plan[0], "base")  # nothing is missing, so no model is asked
    with demo.database.connect() as connection:
        assert {source.game for *_, source in read_sources(connection, plan[0]).values() if source} == {"posts"}


def test_generations_that_find_no_room_before_now_are_refused(demo: Demo) -> None:
    played(demo, [newest_complete(utc_now())])
    with pytest.raises(UsageError, match="is not over"):
        planned(demo)


@pytest.mark.long
def test_a_generation_whose_training_failed_is_over_once_later_hours_are_played(demo: Demo) -> None:
    hours = ["2026-02-03T04:00", "2026-02-03T05:00"]
    played(demo, hours)
    materialize_hours(demo, hours)
    with demo.database.connect() as connection:
        batch = freeze(connection, demo.settings, utc_now(), windows=(hours[0], "2026-02-03T06:00"), seed=demo.seed).batch
        assert batch is not None
        fail_batch(connection, batch.batch_id, COLLAPSED, utc_now())
    played(demo, ["2026-02-03T06:00"])
    with pytest.raises(Diverged, match="it collapsed"):
        train(demo, hours)


@pytest.mark.long
def test_a_generation_takes_its_own_hours_alone_as_often_as_asked(demo: Demo) -> None:
    hours = list(window_range("2026-02-03T04:00", "2026-02-03T08:00"))
    played(demo, hours)
    materialize_hours(demo, hours)
    twice = replace(demo, settings=demo.settings.model_copy(update={"epochs": 2, "iterations": 2}))
    batch_id = train(twice, hours[2:])
    with open_instance(demo.database, demo.settings) as instance:
        runs = instance.get_runs_count()
        assert train(twice, hours[2:]) == batch_id
        assert instance.get_runs_count() == runs, "what was decided on is not compared again"
    with demo.database.connect() as connection:
        found = connection.execute('SELECT DISTINCT "window" FROM babylon_rl.batch_episodes WHERE "batchId" = %s', [batch_id]).fetchall()
        batch = read_batch(connection, batch_id)
    assert {window for (window,) in found} == set(hours[2:])
    assert batch is not None and batch.passes == iterations_of(batch) == 2


def test_a_generation_with_too_little_to_train_on_says_so(demo: Demo) -> None:
    hours = ["2026-02-03T04:00", "2026-02-03T05:00"]
    played(demo, hours)
    with pytest.raises(NothingToTrain, match="freezable trajectories"):
        train(demo, hours)


def test_a_version_that_falls_behind_the_deployed_one_is_refused_in_the_table() -> None:
    about = {
        "modelVersion": "v1.0.0",
        "parentVersion": None,
        "reference": "base",
        "decision": "pass",
        "improvement": 244.4,
        "released": True,
    }
    generations = [
        about | {"generation": 1, "player": "base", "deployed": "v1.0.0"},
        about
        | {"modelVersion": "v1.0.1", "parentVersion": "v1.0.0", "reference": "v1.0.0", "decision": "fail", "improvement": -80.0}
        | {"generation": 2, "player": "v1.0.0", "released": False, "deployed": "v1.0.0"},
        {"modelVersion": None, "generation": 3, "player": "v1.0.0", "released": False, "deployed": "v1.0.0"},
    ]
    table = Table(report.GENERATIONS, generations)
    assert [[column.cell(row) for column in table.columns] for row in table.rows] == [
        [1, "base", "v1.0.0", "base", "pass", "+244", "base", "yes", "v1.0.0"],
        [2, "v1.0.0", "v1.0.1", "v1.0.0", "fail", "-80", "v1.0.0", "refused", "v1.0.0"],
        [3, "v1.0.0", None, None, None, None, None, None, "v1.0.0"],
    ]
