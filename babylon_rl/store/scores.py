"""Scores of groups: stored, stale, in quarantine or pending.

Tables babylon_rl.group_scores, episode_scores, part_scores, judge_quarantine and judge_pending, and the game's reward_judgments and
columns of trajectories. "updatedAt" of trajectories is never touched: it is the producer's last change.

An hour in quarantine has that state in babylon_rl.windows too; it
leaves when a person asks for another try, when another judge scores it, or when its request would differ from the failed one.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from psycopg.types.json import Jsonb

from babylon_rl.store.columns import columns_of, document_of, listed, updates
from babylon_rl.store.connection import Connection
from babylon_rl.types import EpisodeScore, GroupScores, PartScore


class NewScores(NamedTuple):
    """Input of ``replace``: a group's scores, trajectories by agent, rubric and shown content."""

    group: GroupScores
    trajectories: Mapping[str, Sequence[str]]
    criteria: Mapping[str, Any]


class ScoredFrom(NamedTuple):
    """Versions of the sources and rules of some scores. ``rules_changed``: since then, and ``scored_by`` are those that made them."""

    sources: str
    rules: str
    rules_changed: bool = False
    scored_by: str = ""


# Stale: the group's content changed, or the inputs of the prompt were marked as changed. Where the rules did, judge/plan.py compares.
_MARK_STALE = """
    UPDATE babylon_rl.group_scores held SET "stale" = now."stale"
    FROM unnest(%s::text[], %s::text[]) AS given ("window", "version"), LATERAL (
        SELECT own."inputVersion" <> given."version" OR own."sourcesVersion" = '' AS "stale"
        FROM babylon_rl.group_scores own WHERE own."window" = given."window" AND NOT own."rulesChanged"
    ) now
    WHERE held."window" = given."window" AND held."stale" <> now."stale"
"""

# The judgement's hash of what was shown is a column of its own.
_GROUPS = (*columns_of(GroupScores, but=("scores", "changed", "parts")), "shownVersion")
_SCORES = 'babylon_rl.episode_scores WHERE "window" = ANY(%s) ORDER BY "window", "rank", "agentId" COLLATE "C"'
_PARTS = 'babylon_rl.part_scores WHERE "window" = ANY(%s) ORDER BY "window", "startMinute", "agentId" COLLATE "C"'
_READ_GROUPS = f"""SELECT {listed(_GROUPS)} FROM babylon_rl.group_scores WHERE "window" = ANY(%s) ORDER BY "window\""""

# What the game's tables hold of a score, for each of its trajectories.
_JUDGED = """
    FROM jsonb_to_recordset(%(judged)s) AS s ("window" text, "judge" text, "judgeVersion" text, "criteria" jsonb, "score" float8,
        "rank" int, "advantage" float8, "reasoning" text, "trajectoryIds" text[])
"""

# A trajectory used by a training keeps the score of that training: our score in our batch, another producer's in theirs.
_OPEN = """(%(force)s OR NOT row."usedInTraining" OR row."aiJudgeReward" IS NULL OR (
    EXISTS (SELECT FROM public.reward_judgments ours WHERE ours.id = 'judgment-' || row."trajectoryId")
    AND NOT EXISTS (SELECT FROM babylon_rl.batch_items item
                    WHERE item."window" = {window} AND item."trajectoryId" = row."trajectoryId" AND item."consumed")))"""

# The ids are also bound separately: the planner estimates 100,000 rows for the JSON document and would scan the table.
_SCORE_TRAJECTORIES = f"""
    UPDATE public.trajectories row SET "aiJudgeReward" = judged."score", "aiJudgeReasoning" = judged."reasoning", "judgedAt" = %(now)s
    FROM (SELECT s."window", unnest(s."trajectoryIds") AS "trajectoryId", s."score", s."reasoning" {_JUDGED}) judged
    WHERE row."trajectoryId" = ANY(%(ids)s) AND row."trajectoryId" = judged."trajectoryId" AND {_OPEN.format(window='judged."window"')}
"""

_JUDGEMENT = ["judgeModel", "judgeVersion", "overallScore", "rank", "normalizedScore", "groupId", "reasoning", "criteriaJson", "judgedAt"]
# The game keeps one judgement per trajectory.
_JUDGE_TRAJECTORIES = f"""
    INSERT INTO public.reward_judgments (id, "trajectoryId", {listed(_JUDGEMENT)})
    SELECT 'judgment-' || row."trajectoryId", row."trajectoryId", s."judge", s."judgeVersion", s."score", s."rank", s."advantage",
        s."window", s."reasoning", s."criteria"::text, %(now)s {_JUDGED}
    JOIN public.trajectories row ON row."trajectoryId" = ANY(s."trajectoryIds") AND {_OPEN.format(window='s."window"')}
    ON CONFLICT ("trajectoryId") DO UPDATE SET {updates(_JUDGEMENT)}
"""


def have_scores(connection: Connection) -> bool:
    return connection.has_table("babylon_rl.group_scores")


def input_versions(connection: Connection, windows: Sequence[str]) -> dict[str, str]:
    """Return the judged group version by window; windows without scores are absent."""
    return connection.of_hours("babylon_rl.group_scores", "inputVersion", windows)


def consumed_windows(connection: Connection, windows: Sequence[str]) -> set[str]:
    """Return those of ``windows`` with an episode consumed by one of our batches."""
    consumed = """SELECT DISTINCT "window" FROM babylon_rl.batch_items WHERE "window" = ANY(%s) AND consumed"""
    return set(connection.column(consumed, (list(windows),)))


def mark_stale(connection: Connection, versions: Mapping[str, str]) -> None:
    """Mark the scores of changed groups (window -> present version) as stale, and unmark scores that match again."""
    connection.execute(_MARK_STALE, (list(versions), list(versions.values())))


def read(connection: Connection, windows: Sequence[str]) -> dict[str, GroupScores]:
    """Return the stored scores by window; windows without scores are absent."""
    scores, parts = connection.by_window(EpisodeScore, _SCORES, windows), connection.by_window(PartScore, _PARTS, windows)
    groups: dict[str, GroupScores] = {}
    for row in connection.execute(_READ_GROUPS, (list(windows),)).fetchall():
        document = dict(zip(_GROUPS, row, strict=True))
        judgement = document["judgement"] and {**document["judgement"], "shown_version": document["shownVersion"]}
        held = {"scores": tuple(scores[document["window"]]), "parts": tuple(parts[document["window"]])}
        groups[document["window"]] = msgspec.convert({**document, "judgement": judgement or None, **held}, GroupScores)
    return groups


def replace(connection: Connection, groups: Sequence[NewScores], now: datetime, *, force: bool = False) -> None:
    """Write the scores of ``groups`` to our tables and the game's, in the caller's transaction and under the windows' locks.

    Trajectories used by a training keep the score of that training, unless ``force`` is set.
    """
    scores = [{"window": new.group.window, **msgspec.to_builtins(score)} for new in groups for score in new.group.scores]
    parts = [{"window": new.group.window, **msgspec.to_builtins(part)} for new in groups for part in new.group.parts]
    judged = [
        {"criteria": dict(criteria), "trajectoryIds": list(trajectories[score.agent_id])}
        | document_of(group, "window", "judge", "judge_version")
        | document_of(score, "score", "rank", "advantage", "reasoning")
        for group, trajectories, criteria in groups
        for score in group.scores
    ]
    ids = [trajectory for row in judged for trajectory in row["trajectoryIds"]]
    parameters = {"judged": Jsonb(judged), "ids": ids, "now": now, "force": force}
    windows = [new.group.window for new in groups]
    delete(connection, windows)
    connection.insert("babylon_rl.group_scores", [_group_document(new.group, now) for new in groups])
    connection.insert("babylon_rl.episode_scores", scores)
    connection.insert("babylon_rl.part_scores", parts)
    # Judgements before scores: both ask ``_OPEN``, which reads the score that the second statement writes.
    connection.execute(_JUDGE_TRAJECTORIES, parameters)
    connection.execute(_SCORE_TRAJECTORIES, parameters)
    connection.execute("""UPDATE babylon_rl.windows SET "state" = 'scored' WHERE "window" = ANY(%s) AND "state" = 'ready'""", (windows,))


def _group_document(group: GroupScores, now: datetime) -> dict[str, Any]:
    document = msgspec.to_builtins(group)
    judgement = document["judgement"] or {}
    judgement.pop("shown_version", None)
    derived = document_of(group, "shown_version", "group_size", "data_version")
    return {name: document[name] for name in _GROUPS if name in document} | derived | {"judgement": judgement, "judgedAt": now}


def delete(connection: Connection, windows: Sequence[str]) -> None:
    """Delete our scores of ``windows``; the game's tables stay unchanged."""
    connection.delete_hours("babylon_rl.group_scores", windows)


class Quarantined(msgspec.Struct, frozen=True, rename="camel"):
    """One row of babylon_rl.judge_quarantine. ``transcript`` holds the requests and answers, shortened, in order.

    While ``sources_version`` is unchanged, the same request would be sent. Empty: unknown.
    """

    window: str
    judge: str
    judge_version: str
    reason: str
    transcript: list[dict[str, Any]]
    at: datetime
    sources_version: str = ""


_QUARANTINED = """babylon_rl.judge_quarantine
    WHERE %(windows)s::text[] IS NULL OR "window" = ANY(%(windows)s) ORDER BY "window"
"""
# The state of the hour follows from its readiness and from current scores.
_RELEASE = """
    WITH released AS (DELETE FROM babylon_rl.judge_quarantine WHERE "window" = ANY(%s) RETURNING "window")
    UPDATE babylon_rl.windows held SET "state" = CASE
        WHEN NOT held."ready" THEN 'thin'
        WHEN EXISTS (
            SELECT FROM babylon_rl.group_scores s WHERE s."window" = held."window" AND s."inputVersion" = held."groupVersion"
        ) THEN 'scored'
        ELSE 'ready' END
    FROM released WHERE held."window" = released."window" AND held."state" = 'quarantined'
"""
_PENDING = """
    SELECT "window", "reason", "at", "asked" FROM babylon_rl.judge_pending
    WHERE (%(windows)s::text[] IS NULL OR "window" = ANY(%(windows)s)) AND "judge" = COALESCE(%(judge)s::text, "judge") ORDER BY "window"
"""
_ASKED_AGAIN = {"asked": 'CASE WHEN held."judge" = excluded."judge" THEN held."asked" + 1 ELSE 1 END'}


def read_quarantined(connection: Connection, windows: Sequence[str] | None = None) -> dict[str, Quarantined]:
    """Return the quarantined groups among ``windows``, or all of them, by window."""
    with connection.transaction():
        found = connection.rows(Quarantined, _QUARANTINED, {"windows": None if windows is None else list(windows)})
    return {group.window: group for group in found}


def quarantine(connection: Connection, entry: Quarantined) -> None:
    """Quarantine a group, in the caller's transaction and under the hour's lock."""
    connection.upsert("babylon_rl.judge_quarantine", [entry])
    connection.execute("""UPDATE babylon_rl.windows SET "state" = 'quarantined' WHERE "window" = %s""", (entry.window,))
    end_pending(connection, [entry.window])


def release(connection: Connection, windows: Sequence[str]) -> None:
    """Remove groups from quarantine and from the pending ones."""
    connection.execute(_RELEASE, (list(windows),))
    end_pending(connection, windows)


_WITH_OLD_TRANSCRIPT = """WHERE "at" < %s AND jsonb_array_length("transcript") > 0"""


def forget_transcripts(connection: Connection, before: datetime, *, dry_run: bool) -> int:
    """Empty the transcripts of groups quarantined before a time, and return their number; ``dry_run`` only counts."""
    if dry_run:
        return int(connection.value(f"SELECT count(*) FROM babylon_rl.judge_quarantine {_WITH_OLD_TRANSCRIPT}", [before]) or 0)
    return connection.execute(f"""UPDATE babylon_rl.judge_quarantine SET "transcript" = '[]' {_WITH_OLD_TRANSCRIPT}""", [before]).rowcount


class PendingHour(NamedTuple):
    """An hour that is not judged: reason, time of the last request, requests in a row."""

    reason: str
    asked_at: datetime
    asked: int


def read_pending(connection: Connection, windows: Sequence[str] | None = None, judge: str | None = None) -> dict[str, PendingHour]:
    """Return the pending hours among ``windows`` (None: all) by window; with ``judge``, only its own."""
    with connection.transaction():
        found = connection.execute(_PENDING, {"windows": None if windows is None else list(windows), "judge": judge})
        return {window: PendingHour(*pending) for window, *pending in found.fetchall()}


def end_pending(connection: Connection, windows: Sequence[str]) -> None:
    connection.delete_hours("babylon_rl.judge_pending", windows)


def keep_pending(connection: Connection, judge: str, reasons: Mapping[str, str], now: datetime) -> None:
    """Mark hours as pending for ``judge`` (window -> reason)."""
    if reasons:
        with connection.transaction():
            # In one order: two runs that wait with the same hours must not wait for each other.
            rows = [{"window": window, "judge": judge, "reason": reasons[window], "at": now, "asked": 1} for window in sorted(reasons)]
            connection.upsert("babylon_rl.judge_pending", rows, but=_ASKED_AGAIN)


_READ_MADE_FROM = """
    SELECT "window", "sourcesVersion", "rulesVersion", "rulesChanged", "scoredBy" FROM babylon_rl.group_scores WHERE "window" = ANY(%s)
"""
_KEEP_MADE_FROM = """
    UPDATE babylon_rl.group_scores SET "sourcesVersion" = given."sources", "rulesVersion" = %(rules)s, "rulesChanged" = %(changed)s,
        "stale" = FALSE, "scoredBy" = CASE WHEN %(changed)s THEN "scoredBy" ELSE %(rules)s END
    FROM unnest(%(windows)s::text[], %(sources)s::text[]) AS given ("hour", "sources")
    WHERE "window" = given."hour"
      AND ("sourcesVersion", "rulesVersion", "rulesChanged", "stale", "scoredBy")
          <> (given."sources", %(rules)s, %(changed)s, FALSE, CASE WHEN %(changed)s THEN "scoredBy" ELSE %(rules)s END)
"""
_FORGET_SOURCES = """
    UPDATE babylon_rl.group_scores SET "sourcesVersion" = '', "rulesChanged" = FALSE, "stale" = TRUE
    WHERE "window" = ANY(%s) AND ("sourcesVersion", "rulesChanged", "stale") <> ('', FALSE, TRUE)
"""


def read_made_from(connection: Connection, windows: Sequence[str]) -> dict[str, ScoredFrom]:
    """Return the versions from which the scores were made, by window."""
    return {window: ScoredFrom(*versions) for window, *versions in connection.execute(_READ_MADE_FROM, (list(windows),)).fetchall()}


def keep_made_from(connection: Connection, sources: Mapping[str, str], rules: str, *, rules_changed: bool = False) -> None:
    """Store the present versions of scores (window -> sources), not stale. ``rules_changed``: other rules made them, and they stay."""
    if sources:
        parameters = {"rules": rules, "changed": rules_changed, "windows": list(sources), "sources": list(sources.values())}
        connection.execute(_KEEP_MADE_FROM, parameters)


def forget_sources(connection: Connection, windows: Sequence[str]) -> None:
    """Mark the scores of ``windows`` as stale: their data changed. They stay so until they are compared or replaced."""
    connection.execute(_FORGET_SOURCES, (list(windows),))


_UNSCORED = """
SELECT w."window" FROM unnest(%s::text[]) AS w("window")
WHERE NOT EXISTS (SELECT FROM babylon_rl.group_scores g WHERE g."window" = w."window" AND NOT g."stale")
"""


def unscored_windows(connection: Connection, windows: list[str]) -> set[str]:
    return set(connection.column(_UNSCORED, [windows]))


# By another judge, or by rules that have changed since; a training that has used an episode fixed its hour's scores.
_BY_OTHER_RULES = """
SELECT count(*), sum((g."judgement" ->> 'usd')::float8) FROM babylon_rl.group_scores g
WHERE g."window" >= %(first)s AND g."window" < %(end)s AND NOT g."stale"
  AND (g."rulesChanged" OR g."judge" <> %(judge)s OR g."judgeVersion" <> %(version)s)
  AND NOT EXISTS (SELECT FROM babylon_rl.batch_items i WHERE i."window" = g."window" AND i."consumed")
"""


def by_other_rules(connection: Connection, first: str, end: str, judge: str, version: str) -> tuple[int, float | None]:
    """Count the hours of a range that other rules scored, and the dollars that these cost then (None: no price is known)."""
    hours, usd = connection.row(_BY_OTHER_RULES, {"first": first, "end": end, "judge": judge, "version": version})
    return hours, usd
