"""What people and the clock do to trainings, whatever trains: rules that the state machines share."""

from datetime import datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from babylon_rl.training.batches import cancel_batch, fail_stuck, pending_batches
from babylon_rl_tests.faults.boundaries import process
from babylon_rl_tests.faults.world import World


class WithPeople(RuleBasedStateMachine):
    """Somebody cancels a batch, or finds one stuck, and may die over it. ``now`` is when."""

    world: World
    now: datetime

    @rule(dies_at=st.integers(1, 12))
    def cancel(self, dies_at: int) -> None:
        # No precondition: how far a life comes hangs on the clock as well, and what is drawn must not.
        pending = pending_batches(self.world.connection)
        self.world.connection.commit()
        with process(self.world.url, dies_at) as (connection, _):
            for batch in pending[:1]:
                cancel_batch(connection, batch.batch_id, "enough", self.now)

    @rule(dies_at=st.integers(1, 12))
    def give_up_what_is_stuck(self, dies_at: int) -> None:
        with process(self.world.url, dies_at) as (connection, _):
            fail_stuck(connection, self.now + timedelta(days=8))
