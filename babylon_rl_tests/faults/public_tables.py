"""Invariant of the simulation: in ``public`` the pipeline changes the contract's columns and its own rows, and nothing else."""

from babylon_rl.store.connection import Connection
from babylon_rl_tests.faults.world import World, rows
from babylon_rl_tests.rows import insert, make_trajectory

# A trajectory that another producer judged, in an hour that is never read, and its market.
OTHERS_TRAJECTORY, OTHERS_HOUR = "foreign", "2025-01-01T00:00"
_OTHERS_RESULTS = f"""
INSERT INTO public.reward_judgments (id, "trajectoryId", "judgeModel", "judgeVersion", "overallScore", reasoning, "criteriaJson")
VALUES ('foreign', '{OTHERS_TRAJECTORY}', 'theirs', '1', 0.5, 'good', '{{}}');
INSERT INTO public.market_outcomes (id, "windowId", "stockTicker", "startPrice", "endPrice")
VALUES ('foreign', '{OTHERS_HOUR}', 'X', 1.5, 2.5)
"""
# Tables of results: those of world.FOREIGN_ROWS and of the actor "other producer" are others' rows.
_OTHERS = "(id = 'foreign' OR id LIKE 'other-%')"
_RESULTS = ("reward_judgments", "training_batches", "trained_models", "market_outcomes")
# Rows of the game and of other producers, each without the columns that the contract gives to the pipeline.
_ROWS = f"""
SELECT 'trajectories ' || "trajectoryId",
md5((to_jsonb(t) - '{{aiJudgeReward,aiJudgeReasoning,judgedAt,usedInTraining,trainedInBatch}}'::text[])::text)
FROM public.trajectories t WHERE "trajectoryId" <> '{OTHERS_TRAJECTORY}'
UNION ALL SELECT 'trajectories ' || "trajectoryId", md5(t::text) FROM public.trajectories t WHERE "trajectoryId" = '{OTHERS_TRAJECTORY}'
UNION ALL SELECT 'llm_call_logs ' || "callId", md5(t::text) FROM public.llm_call_logs t
UNION ALL SELECT 'User ' || id, md5(t::text) FROM public."User" t
""" + "".join(f"UNION ALL SELECT '{table} ' || id, md5(t::text) FROM public.{table} t WHERE {_OTHERS}\n" for table in _RESULTS)
_NOBODYS = f"""
SELECT 'reward_judgments', id FROM public.reward_judgments j WHERE NOT {_OTHERS} AND NOT (id = 'judgment-' || j."trajectoryId"
AND EXISTS (SELECT FROM public.trajectories t WHERE t."trajectoryId" = j."trajectoryId" AND t."windowId" = j."groupId"))
UNION ALL SELECT 'training_batches', id FROM public.training_batches p WHERE NOT {_OTHERS}
AND NOT EXISTS (SELECT FROM babylon_rl.batches b WHERE b."batchId" = p."batchId")
UNION ALL SELECT 'trained_models', id FROM public.trained_models m WHERE NOT {_OTHERS}
AND NOT EXISTS (SELECT FROM babylon_rl.model_lineage l WHERE l."version" = m.version AND l."batchId" = m."trainingBatch")
UNION ALL SELECT 'market_outcomes', id FROM public.market_outcomes o WHERE NOT {_OTHERS}
AND NOT EXISTS (SELECT FROM babylon_rl.market_windows w WHERE w."window" = o."windowId")
"""
_SHAPE = """
SELECT c.relname || coalesce('.' || a.attname, ''), concat_ws(' ', c.relkind, format_type(a.atttypid, a.atttypmod), a.attnotnull,
pg_get_expr(d.adbin, d.adrelid))
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind NOT IN ('i', 'I')
"""


def insert_rows_of_others(connection: Connection, agent: str) -> None:
    """Results of another producer: a judged trajectory of ``agent``, and a market."""
    insert(connection, "trajectories", [make_trajectory(OTHERS_TRAJECTORY, agent, windowId=OTHERS_HOUR, aiJudgeReward=0.5)])
    connection.execute(_OTHERS_RESULTS)


class PublicTables:
    """The schema ``public`` as it was last seen."""

    def __init__(self, world: World) -> None:
        self._world = world
        written = {"trajectories", "llm_call_logs", "User", *_RESULTS}
        tables = [name for (name,) in rows(world, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") if name not in written]
        contents = "UNION ALL ".join(
            f"""SELECT '{name}', md5(coalesce(string_agg(t::text, '' ORDER BY t::text), '')) FROM public."{name}" t\n""" for name in tables
        )
        self._unchanging = f"{_SHAPE} UNION ALL {contents}"
        self._shape = dict(rows(world, self._unchanging))
        self.rows: dict[str, str] = dict(rows(world, _ROWS))

    def check(self) -> None:
        """Compare with the last time; rows may have been added by the game and by others."""
        shape = dict(rows(self._world, self._unchanging))
        differ = {name for name, _ in self._shape.items() ^ shape.items()}
        assert not differ, f"tables or columns of public changed: {sorted(differ)[:5]}"
        found = dict(rows(self._world, _ROWS))
        changed = {name for name, row in self.rows.items() if found.get(name) != row}
        assert not changed, f"rows of others were changed or lost: {sorted(changed)[:5]}"
        self.rows = found
        assert (nobodys := rows(self._world, _NOBODYS)) == [], f"rows of no batch or trajectory: {nobodys[:5]}"
