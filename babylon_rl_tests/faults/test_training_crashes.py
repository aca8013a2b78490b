"""A training that dies at any boundary, any number of times, ends as one that nobody interrupted.

A life is one process, from its start to its death at the n-th thing it does outside itself. ROUNDS=5 in the environment (repeatable.py)
lives five times as many, most of them others, and dies at each statement too.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from babylon_rl.training.batches import pending_batches, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.publishing import prune
from babylon_rl_tests.faults.boundaries import process
from babylon_rl_tests.faults.people import WithPeople
from babylon_rl_tests.faults.world import AGENTS, HOURS, NOW, ROWS, World, check, registry, rows
from babylon_rl_tests.repeatable import ROUNDS, repeatable

pytestmark = pytest.mark.long

MOST = AGENTS * ROWS  # of one hour: every hour is a generation
GAPS = st.integers(1, 120)  # boundaries between deaths; a whole training of two generations passes some 400


def live(world: World, dies_at: int | None, most: int = MOST) -> list[str]:
    """One life of a process that trains whatever can be trained; what it passed."""
    with process(world.url, dies_at) as (connection, passed):
        while True:
            pending = pending_batches(connection)
            batch = pending[0] if pending else freeze(connection, world.settings, NOW, max_trajectories=most).batch
            if batch is None:
                break
            prepare_batch(connection, batch.batch_id, world.settings, NOW)
            train_batch(connection, batch.batch_id, world.settings, NOW)
    return passed


def die_and_recover(world: World, deaths: list[int]) -> dict[str, Any]:
    world.reset()
    for dies_at in deaths:
        live(world, dies_at)
        check(world)
    finish(world)
    return registry(world)


def finish(world: World, most: int = MOST) -> None:
    """Train what is left, and tidy up as the next training would."""
    live(world, None, most)
    prune(world.connection, world.settings, world.checkpoints, NOW)
    check(world, at_rest=True)


@pytest.mark.timeout(900)
def test_a_training_that_dies_often_ends_as_one_that_never_did(world: World) -> None:
    expected = die_and_recover(world, [])
    assert len(expected["models"]) == 1 + HOURS and all(mark is not None for _, mark, _ in expected["marks"])

    @repeatable(70)
    @given(st.lists(GAPS, min_size=2, max_size=20))
    def recovers(deaths: list[int]) -> None:
        assert die_and_recover(world, deaths) == expected

    recovers()


def lasts(boundary: str) -> bool:
    """True if what is behind a boundary outlives the process.

    The server undoes statements without their commit, so that a death before any of them leaves what a death before the commit does.
    """
    return boundary == "commit" or boundary.startswith(("os.", "write "))


@pytest.mark.timeout(900)
def test_a_death_at_each_boundary_is_forgotten(world: World) -> None:
    world.reset()
    boundaries = live(world, None, most=HOURS * MOST)
    expected = registry(world)
    places = [at for at, boundary in enumerate(boundaries, 1) if at == len(boundaries) or ROUNDS > 1 or lasts(boundary)]
    assert len(boundaries) > 150 and len(places) > 80
    for dies_at in places:
        world.reset()
        live(world, dies_at, most=HOURS * MOST)
        check(world)
        finish(world, most=HOURS * MOST)
        assert registry(world) == expected, dies_at


class Trainings(WithPeople):
    """Processes that die, people who cancel, another producer that takes version numbers: whatever their order, all is trained once."""

    now = NOW

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.foreign = 0

    @initialize()
    def begin(self) -> None:
        self.world.reset()

    @rule(dies_at=GAPS)
    def train(self, dies_at: int) -> None:
        live(self.world, dies_at)

    @rule(dies_at=GAPS)
    def train_again(self, dies_at: int) -> None:
        live(self.world, dies_at)

    @precondition(lambda self: self.foreign < 3)
    @rule()
    def another_producer_takes_the_next_number(self) -> None:
        self.foreign += 1
        ((number,),) = rows(self.world, "SELECT max(split_part(version, '.', 3)::int) FROM trained_models")
        version = f"v0.9.{number + 1}"
        self.world.connection.execute(
            """INSERT INTO trained_models (id, "modelId", version, "baseModel", "storagePath", status, "updatedAt")
            VALUES (%s, %s, %s, 'x', 'elsewhere', 'ready', %s)""",
            [f"other-{number}", f"babylon-agent-{version}", version, NOW],
        )
        self.world.connection.commit()

    @invariant()
    def nothing_is_trained_twice_or_lost(self) -> None:
        check(self.world)

    def teardown(self) -> None:
        finish(self.world)
        assert rows(self.world, 'SELECT count(*) FROM trajectories WHERE NOT "usedInTraining"') == [(0,)]
        assert rows(self.world, "SELECT count(*) FROM babylon_rl.model_lineage") == [(HOURS,)]


@pytest.mark.timeout(900)
def test_processes_people_and_other_producers_leave_every_trajectory_trained_once(world: World) -> None:
    chosen = hypothesis_settings(repeatable(20), stateful_step_count=8)
    run_state_machine_as_test(lambda: Trainings(world), settings=chosen)
