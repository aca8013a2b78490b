"""A game's database that goes on: the rows of a later dump are written over those of an earlier one, as the game itself would have."""

from collections.abc import Iterable

from babylon_rl.store.connection import Connection

# What this pipeline writes: no game's row is about it.
OURS = {"market_outcomes", "reward_judgments", "training_batches", "trained_models"}
OUR_COLUMNS = {"trajectories": {"aiJudgeReward", "aiJudgeReasoning", "judgedAt", "usedInTraining", "trainedInBatch"}}

TABLES = """
    SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum = ANY(k.conkey)),
           array_agg(a.attname::text ORDER BY a.attnum)
    FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    WHERE c.relnamespace = 'public'::regnamespace GROUP BY 1 ORDER BY 1
"""


def bring_up_to_date(early: Connection, full: Connection) -> dict[str, set[str]]:
    """Insert, change and delete rows of the game in ``early`` until they are those of ``full``; the keys that differed, by table."""
    touched = {}
    with early.transaction():
        # Parents and children come in any order; what a deletion takes with it is deleted by name as well.
        early.execute("SET LOCAL session_replication_role = replica")
        for table, key, columns in full.execute(TABLES).fetchall():
            if table not in OURS:
                touched[table] = _bring(early, full, table, key[0], [name for name in columns if name not in OUR_COLUMNS.get(table, ())])
    return {table: keys for table, keys in touched.items() if keys}


def _bring(early: Connection, full: Connection, table: str, key: str, columns: list[str]) -> set[str]:
    before, after = _rows(early, table, key, columns), _rows(full, table, key, columns)
    gone, differing = before.keys() - after.keys(), [row for row in after if before.get(row) != after[row]]
    early.execute(f'DELETE FROM public."{table}" WHERE "{key}"::text = ANY(%s)', [sorted(gone)])
    if differing:
        _copy(early, full, table, key, columns, differing)
    return gone | set(differing)


def _rows(connection: Connection, table: str, key: str, columns: list[str]) -> dict[str, str]:
    return dict(connection.execute(f'SELECT "{key}"::text, md5(ROW({_names(columns)})::text) FROM public."{table}"').fetchall())


def _copy(early: Connection, full: Connection, table: str, key: str, columns: list[str], keys: list[str]) -> None:
    early.execute(f'CREATE TEMPORARY TABLE late ON COMMIT DROP AS SELECT {_names(columns)} FROM public."{table}" LIMIT 0')
    wanted = f'COPY (SELECT {_names(columns)} FROM public."{table}" WHERE "{key}"::text = ANY(%s)) TO STDOUT (FORMAT BINARY)'
    with full.cursor().copy(wanted, [keys]) as source, early.cursor().copy("COPY late FROM STDIN (FORMAT BINARY)") as target:
        for block in source:
            target.write(block)
    changes = ", ".join(f'"{name}" = excluded."{name}"' for name in columns)
    early.execute(
        f'INSERT INTO public."{table}" ({_names(columns)}) SELECT {_names(columns)} FROM late ON CONFLICT ("{key}") DO UPDATE SET {changes}'
    )
    early.execute("DROP TABLE late")


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)
