"""Version of the inputs behind the scores of an hour.

While it is unchanged, the prompt need not be built again for a comparison.
"""

from collections.abc import Mapping, Sequence

from babylon_rl.store.connection import Connection

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
    """Return the input version of the scores by window, where known."""
    return dict(connection.execute(_READ, (list(windows),)).fetchall())


def keep_sources(connection: Connection, versions: Mapping[str, str]) -> None:
    """Store the input versions of scores (window -> version); they are not stale any more.

    Runs in the caller's transaction. New scores clear the version.
    """
    if versions:
        connection.execute(_KEEP, (list(versions), list(versions.values())))


def forget_sources(connection: Connection, versions: Mapping[str, str]) -> None:
    """Mark scores with these input versions (window -> version) as stale.

    They stay so until they are compared again.
    """
    if versions:
        with connection.transaction():
            connection.execute(_FORGET, (list(versions), list(versions.values())))
