"""Batches moved along the transitions of their life without a training."""

from datetime import datetime
from typing import Any

import psycopg

from babylon_rl.store.batches import advance_batch, claim_batch
from babylon_rl.training.lifecycle import JUDGE, PREPARE, PUBLISH, REGISTER, TRAIN


def move_batch(connection: psycopg.Connection[Any], batch_id: str, state: str, now: datetime) -> int:
    """Move a pending batch forward to ``state``, and return its attempt."""
    attempt = claim_batch(connection, batch_id, now)
    assert attempt is not None
    for transition in (PREPARE, JUDGE, TRAIN, PUBLISH, REGISTER):
        advance_batch(connection, batch_id, attempt, transition, now)
        if transition.target == state:
            return attempt
    raise ValueError(f"no transition leads forward to {state}")
