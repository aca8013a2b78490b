"""The table of a batch's life: complete, obeyed by the database's rows, and drawn in the docs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import babylon_rl
from babylon_rl.errors import (
    BatchConflict,
    CheckpointError,
    DatabaseUnreachable,
    Diverged,
    JudgeRefused,
    JudgeUnavailable,
    NothingToTrain,
    TrainingPaused,
)
from babylon_rl.store.batches import LIVE_STATES, advance_batch, claim_batch, end_failed, read_batch
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.batches import cancel_batch, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.lifecycle import FAILURES, FREEZE, STATES, TRANSITIONS, FailureEffect, failure_rule
from babylon_rl_tests.training.sample import NOW

ROOT = Path(__file__).parents[2]
PACKAGE = Path(babylon_rl.__file__).parent
MOVES = [transition for transition in TRANSITIONS if transition is not FREEZE]


def test_states_are_those_of_the_schema_and_every_one_is_reached(connection):
    (constraint,) = connection.execute("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'batches_state'").fetchone()
    assert set(re.findall(r"'(\w+)'", constraint)) == set(STATES)
    assert set(LIVE_STATES) == set(STATES) - {"completed", "failed"}
    assert {transition.target for transition in TRANSITIONS} == set(STATES)
    assert all(set(transition.sources) <= set(LIVE_STATES) for transition in TRANSITIONS)  # nothing leads out of an end


@pytest.mark.parametrize("transition", MOVES, ids=lambda transition: transition.name)
def test_a_transition_is_refused_in_every_state_that_the_table_does_not_name(connection, settings, transition):
    batch = freeze(connection, settings, NOW).batch
    assert batch.state == FREEZE.target
    attempt = claim_batch(connection, batch.batch_id, NOW)
    connection.commit()
    for state in STATES:
        connection.execute('UPDATE babylon_rl.batches SET "state" = %s WHERE "batchId" = %s', [state, batch.batch_id])
        moved = True
        try:
            if transition.target == "failed":
                moved = end_failed(connection, batch.batch_id, transition, "enough", NOW)
            else:
                advance_batch(connection, batch.batch_id, attempt, transition, NOW)
        except BatchConflict:
            moved = False
        assert moved == (state in transition.sources), state
        assert read_batch(connection, batch.batch_id).state == (transition.target if moved else state)
        connection.rollback()


class Interrupted(DryTrainer):
    """Raises its errors in turn, then trains."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self._errors = list(errors)

    def train(self, iteration, parent, out, on_step):
        if self._errors:
            raise self._errors.pop(0)
        return super().train(iteration, parent, out, on_step)


@pytest.mark.slow
def test_every_change_of_a_state_is_a_transition_of_the_table(connection, settings):
    connection.execute('CREATE TEMP TABLE changes ("before" text, "after" text)')
    connection.execute(
        """
        CREATE FUNCTION pg_temp.note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO pg_temp.changes VALUES (OLD."state", NEW."state"); RETURN NEW; END $$
        """
    )
    connection.execute("CREATE TRIGGER note AFTER UPDATE ON babylon_rl.batches FOR EACH ROW EXECUTE FUNCTION pg_temp.note()")
    connection.commit()
    # Trained at the third run: the first waited, the second died.
    batch = freeze(connection, settings, NOW, max_trajectories=60).batch
    trainer = Interrupted(TrainingPaused("nobody answers"), RuntimeError("unforeseen"))
    prepare_batch(connection, batch.batch_id, settings, NOW)
    for error in (TrainingPaused, RuntimeError):
        prepare_batch(connection, batch.batch_id, settings, NOW)
        with pytest.raises(error):
            train_batch(connection, batch.batch_id, settings, NOW, trainer)
        assert read_batch(connection, batch.batch_id).state == "training"
    train_batch(connection, batch.batch_id, settings, NOW, trainer)
    # One diverges, one is cancelled.
    for error in (Diverged("too far"), None):
        batch = freeze(connection, settings, NOW, max_trajectories=60).batch
        prepare_batch(connection, batch.batch_id, settings, NOW)
        if error is None:
            cancel_batch(connection, batch.batch_id, "enough", NOW)
        else:
            with pytest.raises(Diverged):
                train_batch(connection, batch.batch_id, settings, NOW, Interrupted(error))
        assert read_batch(connection, batch.batch_id).state == "failed"
    changes = {(before, after) for before, after in connection.execute("SELECT * FROM pg_temp.changes") if before != after}
    allowed = {(source, transition.target) for transition in MOVES for source in transition.sources}
    assert changes <= allowed
    assert {("pending", "preparing"), ("preparing", "scoring"), ("training", "uploading"), ("uploading", "completed")} <= changes


@pytest.mark.slow
def test_code_names_no_state_that_a_batch_is_to_have():
    # A state is written by the functions that take a transition, and by the default of the column alone.
    written = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"UPDATE babylon_rl\.batches", node.value):
                written += re.findall(r"\"state\" = ([^\s,]+)", node.value.split("WHERE")[0])
    assert written and set(written) <= {"%s", "COALESCE(%s"}


@pytest.mark.parametrize(
    ("error", "effect", "when_paid"),
    [
        (BatchConflict("taken over"), FailureEffect.LEFT, FailureEffect.LEFT),
        (DatabaseUnreachable("away"), FailureEffect.RETRIED, FailureEffect.RETRIED),
        (psycopg.OperationalError("away"), FailureEffect.RETRIED, FailureEffect.RETRIED),
        (JudgeRefused("a wrong key"), FailureEffect.FAILED, FailureEffect.WAITS),
        (JudgeRefused("this hour", for_all=False), FailureEffect.WAITS, FailureEffect.WAITS),
        (JudgeUnavailable("down"), FailureEffect.WAITS, FailureEffect.WAITS),
        (TrainingPaused("down"), FailureEffect.WAITS, FailureEffect.WAITS),
        (NothingToTrain("no token"), FailureEffect.FAILED, FailureEffect.WAITS),
        (Diverged("too far"), FailureEffect.FAILED, FailureEffect.WAITS),
        (CheckpointError("damaged"), FailureEffect.FAILED, FailureEffect.WAITS),
        (OSError(28, "No space left on device"), FailureEffect.WAITS, FailureEffect.WAITS),
        (KeyboardInterrupt(), FailureEffect.LEFT, FailureEffect.LEFT),
        (ZeroDivisionError(), FailureEffect.RETRIED, FailureEffect.RETRIED),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, BaseException) else str(given),
)
def test_an_error_has_the_effect_of_its_rule(error, effect, when_paid):
    rule = failure_rule(error)
    assert (rule.effect, rule.when_paid) == (effect, when_paid) and rule in FAILURES


@pytest.mark.slow
def test_the_picture_in_the_docs_is_that_of_the_table():
    drawn = subprocess.run([sys.executable, "scripts/lifecycle_picture.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/images/batch-lifecycle.svg").read_text() == drawn, (
        "Write it again: .venv/bin/python scripts/lifecycle_picture.py > docs/images/batch-lifecycle.svg"
    )
