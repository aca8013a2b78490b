"""Has anything been written to some tables since? Answered from Postgres' own counters, in a millisecond, however long the tables are.

The server counts the rows that committed and aborted transactions insert, update and delete; a session hands its counts over when it
is idle, at most a minute after the commit. So equal marks say that nothing was written but a moment ago, and a later mark will say so.
Counters that went back (a crash, a reset) are another mark too.
"""

from collections.abc import Sequence
from typing import Any

import psycopg

from babylon_rl.versions import content_version

# A truncation counts no rows but gives the table another file. Partitions and inheriting tables are counted apart from their parent.
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


def watermark(connection: psycopg.Connection[Any], tables: Sequence[str], *of: Any, without_inserts: Sequence[str] = ()) -> str | None:
    """A hash of everything written to ``tables`` so far (qualified, quoted names) and of the values ``of``; None: it cannot be known.

    Of ``without_inserts`` only updates and deletions count. To be read before what it stands for: what is written in between then
    makes the next mark another.
    """
    given = {"tables": list(tables), "without_inserts": list(without_inserts), "number": len(tables) + len(without_inserts)}
    counted, *counters = connection.execute(_COUNTERS, given).fetchone() or (False,)
    return content_version([*counters, *of]) if counted else None
