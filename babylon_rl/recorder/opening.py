"""Construction of a recorder's writer and sampling rate from the settings."""

import contextlib

from pydantic import SecretStr

from babylon_rl.recorder.writer import BackgroundWriter
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.recording import require_recording_tables


def open_writer(
    url: str | None, settings: Settings | None, *, room: int, patience_s: float, stack: contextlib.ExitStack
) -> tuple[BackgroundWriter | None, float]:
    """Return (writer, sampling rate), or (None, 0) if the settings disable recording.

    Without recording, no database is opened. ``url`` replaces DATABASE_URL; without either the embedded database is held until ``stack``
    closes.

    Raises:
        DatabaseUnreachable: the database does not answer.
        SchemaMismatch: it has no trajectories or llm_call_logs.
        SettingsError: a setting is not allowed.
    """
    # The off switch comes first: without recording nothing needs a database.
    chosen = settings if settings is not None else load_settings()
    if url is not None:
        chosen = chosen.model_copy(update={"database_url": SecretStr(url)})
    if not chosen.record_agent_trajectories or chosen.trajectory_sampling_rate == 0:
        return None, 0.0
    database = stack.enter_context(open_database(chosen, prepare=False))
    # Fail at once, not when the first trajectory ends.
    with database.connect() as connection:
        require_recording_tables(connection)

    def connect() -> Connection:
        return database.connect(autocommit=True)

    return BackgroundWriter(connect, room=room, patience_s=patience_s), chosen.trajectory_sampling_rate
