"""From what the scores of an hour follow, as a version beside them: while that stands, what was shown need not be built to be compared."""

from collections.abc import Mapping, Sequence

from babylon_rl.store.trajectories import Connection

_READ = """SELECT "window", "sourcesVersion" FROM babylon_rl.group_scores WHERE "window" = ANY(%s) AND "sourcesVersion" <> ''"""
_KEEP = """
    UPDATE babylon_rl.group_scores held SET "sourcesVersion" = given."version", "stale" = FALSE
    FROM unnest(%s::text[], %s::text[]) AS given ("window", "version") WHERE held."window" = given."window"
"""
_FORGET = """
    UPDATE babylon_rl.group_scores held SET "sourcesVersion" = '', "stale" = TRUE
    FROM unnest(%s::text[], %s::text[]) AS given ("window", "version")
    WHERE held."window" = given."window" AND held."sourcesVersion" = given."version"
"""


def read_sources(connection: Connection, windows: Sequence[str]) -> dict[str, str]:
    """The version of what the scores of some hours rest on, where it is known."""
    return dict(connection.execute(_READ, (list(windows),)).fetchall())


def keep_sources(connection: Connection, versions: Mapping[str, str]) -> None:
    """Say of the scores of some hours (window -> version) what they rest on, in the caller's transaction. New scores forget it."""
    if versions:
        connection.execute(_KEEP, (list(versions), list(versions.values())))


def forget_sources(connection: Connection, versions: Mapping[str, str]) -> None:
    """Mark the scores of some hours stale that rest on these versions (window -> version), until they are compared again."""
    if versions:
        with connection.transaction():
            connection.execute(_FORGET, (list(versions), list(versions.values())))
