"""Versions of hours that were reported to a Dagster storage, by source and hour.

They are written after the report. Each Dagster storage has rows of its own, so that a new one, or another project's, gets everything.
"""

from collections.abc import Mapping

from babylon_rl.store.connection import Connection

_TOLD = """
    SELECT "window", "version" FROM babylon_rl.observed_versions
    WHERE "storage" = %s AND "source" = %s AND "window" >= %s AND "window" < %s
"""
_NOTE = """
    INSERT INTO babylon_rl.observed_versions ("storage", "source", "window", "version")
    SELECT %s, %s, * FROM unnest(%s::text[], %s::text[])
    ON CONFLICT ("storage", "source", "window") DO UPDATE SET "version" = excluded."version"
"""


def told_versions(connection: Connection, storage: str, source: str, first: str, end: str) -> dict[str, str]:
    """Return the versions last reported of a source, by window, from ``first`` (inclusive) to ``end`` (exclusive)."""
    return dict(connection.execute(_TOLD, [storage, source, first, end]).fetchall())


def lock_reports(connection: Connection, storage: str) -> None:
    """Keep other reports to a storage waiting until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"observed_versions {storage}"])


def note_versions(connection: Connection, storage: str, source: str, versions: Mapping[str, str]) -> None:
    """Store the versions that were reported of a source, by window."""
    connection.execute(_NOTE, [storage, source, list(versions), list(versions.values())])


def forget_versions(connection: Connection, storage: str, source: str) -> None:
    """Delete the reports of a source to a storage that has lost them."""
    connection.execute('DELETE FROM babylon_rl.observed_versions WHERE "storage" = %s AND "source" = %s', [storage, source])
