"""What an asset or sensor is handed: the settings, the database, and the clock.

The resource reads them from the environment in whichever process runs the asset; launch.py hands over those of its caller.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg
import psycopg

from babylon_rl.assets.alive import beating
from babylon_rl.errors import BabylonError, DatabaseUnreachable
from babylon_rl.progress import Progress, unheard
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import Database, process_database
from babylon_rl.windows import utc_now

CONNECTION_RETRIES = 3
RETRY_AFTER_S = 10.0
# A server that ends a session for having been idle too long is one that was lost, though psycopg files it elsewhere.
LOST = (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout, DatabaseUnreachable)


@dataclass(frozen=True)
class Babylon:
    """The settings, the database and the clock of one run, and who is told how far its long steps are."""

    settings: Settings
    database: Database
    now: Callable[[], datetime] = utc_now
    on_progress: Progress = unheard
    retry_after_s: float = RETRY_AFTER_S

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """An autocommit connection (rooms open their own transactions), closed at the end.

        Raises:
            dagster.RetryRequested: the connection was lost or refused; the step runs again, CONNECTION_RETRIES times, each
                ``retry_after_s`` later. What was not committed is undone, and rooms write an hour in one transaction.
            dagster.Failure: a BabylonError, or a right that the role lacks; the sentence becomes the run's message, and it is not tried
                again.
        """
        try:
            with self.database.connect(autocommit=True) as connection:
                yield connection
        except LOST as lost:
            raise dg.RetryRequested(CONNECTION_RETRIES, self.retry_after_s) from lost
        except BabylonError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        except psycopg.errors.InsufficientPrivilege as refused:
            sentence = f"The database's role may not do this: {refused.diag.message_primary}. docs/database.md lists what it needs."
            raise dg.Failure(sentence, allow_retries=False) from refused


@dg.resource(description="The Babylon database and settings, as the environment of the run's process gives them.")
def babylon(context: dg.InitResourceContext) -> Iterator[Babylon]:
    """The resource of the code location; raises SettingsError, DatabaseUnreachable or EmbeddedServerError."""
    settings = load_settings()
    yield from _held(context, Babylon(settings, process_database(settings)))


def given(babylon: Babylon) -> dg.ResourceDefinition:
    """The resource of a caller who brings his own settings, database and clock."""

    def hold(context: dg.InitResourceContext) -> Iterator[Babylon]:
        yield from _held(context, babylon)

    return dg.ResourceDefinition(hold)


def _held(context: dg.InitResourceContext, babylon: Babylon) -> Iterator[Babylon]:
    """The resource, with the heartbeat of the run that has it; a sensor's tick is no run."""
    with nullcontext() if context.run is None else beating(babylon.database, context.run.run_id):
        yield babylon
