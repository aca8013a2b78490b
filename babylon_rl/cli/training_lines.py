"""Progress lines of `babylon-rl train`, printed as the database shows them.

A training runs inside Dagster. These lines are read from its tables, so they are the same whichever process runs the batch.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from babylon_rl.cli.output import say
from babylon_rl.errors import DatabaseUnreachable
from babylon_rl.settings import HEURISTIC
from babylon_rl.store.batches import JudgedGroup, judged_groups, read_batch
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.write_ahead import read_steps
from babylon_rl.training.iterations import iterations_of
from babylon_rl.training.preflight import preflight_lines

POLL_EVERY_S = 0.5


class TrainingLines:
    """Prints each line once; ``tell`` may be called any number of times.

    It connects again after a lost connection.
    """

    def __init__(self, database: Database, batch_id: str, write: Callable[[str], None]) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._batch_id = batch_id
        self._write = write
        self._said: set[str] = set()
        self._lost = False

    def tell(self) -> bool:
        """Print new lines; return False while the database does not answer.

        Reports once that the database does not answer, and once that it answers again.
        """
        try:
            self._connection = self._connection or self._database.connect(autocommit=True)
            self._tell(self._connection)
        except (psycopg.OperationalError, DatabaseUnreachable):
            self.close()
            if not self._lost:
                say("The database does not answer. The training goes on when it does; what is finished is kept.")
            self._lost = True
            return False
        if self._lost:
            say("The database answers again.")
        self._lost = False
        return True

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _tell(self, connection: Connection) -> None:
        """Print judged groups, then the result of pre-flight, then each finished iteration."""
        batch = read_batch(connection, self._batch_id)
        if batch is None:
            return
        # The keys keep every line from being printed twice, in the order in which facts appear.
        for group in judged_groups(connection, self._batch_id):
            self._once(f"group/{group.window}", group_lines(group))
        if batch.preflight is not None:
            self._once("preflight", preflight_lines(batch.preflight, batch.parent_version or batch.base_model))
        for step in read_steps(connection, self._batch_id):
            if step.finished_at is not None:
                line = (
                    f"Iteration {step.iteration}/{iterations_of(batch)}: checkpoint step {step.iteration}, loss {_shown(step.loss)}, "
                    f"{step.trainable_tokens} trainable tokens, {len(step.windows)} windows"
                )
                self._once(f"step/{step.iteration}", [line])

    def _once(self, key: str, lines: list[str]) -> None:
        if key not in self._said:
            self._said.add(key)
            for line in lines:
                self._write(line)


def _shown(loss: float | None) -> str:
    return "not known" if loss is None else f"{loss:.4f}"


def group_lines(group: JudgedGroup) -> list[str]:
    """Lines about one judged hour; RULER names scores of a language model only."""
    scores = "Heuristic scores" if group.judge == HEURISTIC else "RULER scores"
    lines = [
        f"{group.window}: Found {group.agents} simultaneous agents ({group.training} of them train)",
        f"  {scores}: min {group.lowest:.3f}, max {group.highest:.3f}, avg {group.mean:.3f}",
        f"  Best: {group.best_agent} ({group.best_score:.3f}, P&L {group.best_pnl:+.2f})",
    ]
    return [*lines, f"  Left out: {group.dropped}"] if group.dropped is not None else lines


@contextmanager
def following(database: Database, batch_id: str, write: Callable[[str], None]) -> Iterator[None]:
    """Print a batch's lines while the block runs, and the rest at its end."""
    stop = threading.Event()
    lines = TrainingLines(database, batch_id, write)

    def follow() -> None:
        while not stop.wait(POLL_EVERY_S):
            lines.tell()

    thread = threading.Thread(target=follow, name=f"following {batch_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        lines.tell()
        lines.close()
