"""Watermark of writes to tables, from Postgres' own row counters.

It tells in a millisecond, however long the tables are, whether anything was written. The server counts inserted, updated and deleted
rows of committed and aborted transactions; a session reports its counts when idle, at most a minute after the commit. So equal marks say
that nothing was written until shortly before, and a later mark will show the rest. Counters that went back (a crash, a reset) give
another mark too.
"""

from collections.abc import Sequence
from typing import Any

from babylon_rl.store.connection import Connection
from babylon_rl.versions import content_version

# A truncation counts no rows, but gives the table another file node. Partitions and child tables have counters of their own.
_COUNTERS = """
    SELECT current_setting('track_counts')::bool AND bool_and(c.relkind = 'r' AND NOT c.relhassubclass) AND count(*) = %(number)s,
           array_agg(concat_ws(' ', c.oid, pg_relation_filenode(c.oid),
               CASE WHEN c.oid = ANY(SELECT to_regclass(name)::oid FROM unnest(%(tables)s::text[]) name) THEN
                   pg_stat_get_tuples_inserted(c.oid) END,
               pg_stat_get_tuples_updated(c.oid), pg_stat_get_tuples_deleted(c.oid)) ORDER BY c.oid)::text,
           pg_stat_get_bgwriter_stat_reset_time()::text,
           (SELECT pg_stat_get_db_stat_reset_time(oid)::text FROM pg_database WHERE datname = current_database())
    FROM pg_class c WHERE c.oid = ANY(SELECT to_regclass(name)::oid FROM unnest(%(tables)s::text[] || %(without_inserts)s::text[]) name)
"""


def watermark(connection: Connection, tables: Sequence[str], *of: Any, without_inserts: Sequence[str] = ()) -> str | None:
    """Hash all writes to ``tables`` and the values ``of``; None if unknown.

    Table names are qualified and quoted. Of ``without_inserts`` only updates and deletions count. Read the mark before the data it stands
    for: a write in between then changes the next mark.
    """
    parameters = {"tables": list(tables), "without_inserts": list(without_inserts), "number": len(tables) + len(without_inserts)}
    # ``counted`` is false if counting is off, a table is missing, or a table has partitions or children.
    counted, *counters = connection.execute(_COUNTERS, parameters).fetchone() or (False,)
    return content_version([*counters, *of]) if counted else None
