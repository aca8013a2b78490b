"""The heuristic, groups, and where scores are written."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.errors import JudgeError
from babylon_rl.judge.consensus import group_scores, without_agents
from babylon_rl.judge.scoring import heuristic_score, stored_scores
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.types import GroupScores
from babylon_rl_tests.expected import SAMPLES, expected
from babylon_rl_tests.rows import AFTER, START, WINDOW, insert, make_call, make_group, make_step, make_trajectory
from babylon_rl_tests.scored import score_windows

LATER = AFTER + timedelta(hours=1)
NOW = datetime(2026, 1, 1)


def score_window(connection: Connection, window: str, settings: Settings, now: datetime, *, force: bool = False) -> GroupScores | None:
    """The scores of one hour, None when it has no group or waits."""
    return score_windows(connection, [window], settings, now, force=force).get(window)


@pytest.mark.parametrize(
    ("pnl", "actions", "wins", "losses", "score"),
    [(400, 15, 1, 1, 0.65), (-5000, 0, 0, 3, 0.0), (5000, 40, 2, 0, 1.0), (0, 10, 0, 0, 0.25 + 0.15 + 0.1)],
)
def test_heuristic_formula(pnl: float, actions: int, wins: int, losses: int, score: float) -> None:
    assert heuristic_score(pnl, actions, wins, losses) == pytest.approx(score)


def group(*scores: float) -> GroupScores:
    return group_scores(WINDOW, "heuristic", "1", {f"a{number}": (score, "") for number, score in enumerate(scores)}, "v")


def test_equal_scores_share_the_better_rank() -> None:
    assert [(entry.agent_id, entry.rank) for entry in group(0.5, 0.9, 0.1 + 0.2 + 0.2, 0.1).scores] == [
        ("a1", 1),
        ("a0", 2),
        ("a2", 2),
        ("a3", 4),
    ]


def test_dropped_episodes_leave_ranks_and_advantages_to_the_rest() -> None:
    whole = group(0.9, 0.5, 0.1)
    rest = without_agents(whole, {"a0"})
    assert rest == group_scores(WINDOW, "heuristic", "1", {"a1": (0.5, ""), "a2": (0.1, "")}, "v")
    assert [(entry.rank, round(entry.advantage, 6)) for entry in rest.scores] == [(1, 1.0), (2, -1.0)]
    assert without_agents(whole, ()) is whole


def test_advantage_divides_by_the_population_deviation() -> None:
    found = group(0.2, 0.4, 0.9)
    assert found.spread == pytest.approx(0.29439202887759)
    assert [entry.advantage for entry in found.scores] == pytest.approx([1.3587324, -0.3396831, -1.0190493])


def test_group_without_spread_has_no_advantage() -> None:
    found = group(0.1, 0.1, 0.1)
    assert not found.has_spread
    assert {entry.advantage for entry in found.scores} == {0.0}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_advantages_sum_to_zero_and_follow_the_ranks(scores: list[float]) -> None:
    found = group(*scores)
    advantages = [entry.advantage for entry in found.scores]
    assert sum(advantages) == pytest.approx(0, abs=1e-6)
    ranks = [entry.rank for entry in found.scores]
    assert ranks == sorted(ranks) and ranks[0] == 1


@pytest.mark.parametrize("fixture", SAMPLES)
def test_samples_are_scored_as_expected(request: pytest.FixtureRequest, settings: Settings, fixture: str) -> None:
    answers = expected(fixture)
    with request.getfixturevalue(fixture).connect() as connection:
        found = score_windows(connection, answers["windows"], settings.model_copy(update={"credit": "hour"}), NOW)
    assert sorted(found) == sorted(answers["ready_windows"]["5"])
    for window, scores in found.items():
        answer = answers["windows"][window]
        theirs = answer["heuristic_window"]
        assert {entry.agent_id for entry in scores.scores} == set(answer["agents_min5"])
        for entry in scores.scores:
            assert entry.score == pytest.approx(theirs[entry.agent_id], abs=1e-6)
            better = sum(theirs[other] > theirs[entry.agent_id] + 1e-9 for other in answer["agents_min5"])
            assert entry.rank == 1 + better


def everything(connection: Connection) -> list[Any]:
    queries = (
        "SELECT ctid::text, * FROM babylon_rl.group_scores", 'SELECT ctid::text, * FROM babylon_rl.episode_scores ORDER BY "agentId"',
        'SELECT ctid::text, * FROM reward_judgments ORDER BY "trajectoryId"',
        'SELECT ctid::text, * FROM trajectories ORDER BY "trajectoryId"',
    )  # fmt: skip
    return [connection.execute(query).fetchall() for query in queries]


def test_scores_are_written_everywhere_and_labelled(connection: Connection, settings: Settings) -> None:
    extra = make_trajectory("t9", "agent-4", minute=30, finalPnL=41.0)
    insert(connection, "trajectories", [*make_group(), extra])
    sync_windows(connection, [WINDOW], settings, AFTER)
    found = score_window(connection, WINDOW, settings, AFTER)
    assert found is not None and found.changed
    rows = connection.execute(
        'SELECT "trajectoryId", "aiJudgeReward", "aiJudgeReasoning", "judgedAt", "updatedAt" FROM trajectories ORDER BY "trajectoryId"'
    ).fetchall()
    judged = connection.execute(
        'SELECT "trajectoryId", "judgeModel", "overallScore", "rank", "normalizedScore", "groupId", "criteriaJson" '
        "FROM reward_judgments ORDER BY 1"
    ).fetchall()
    state = connection.execute('SELECT "state" FROM babylon_rl.windows').fetchall()
    assert stored_scores(connection, [WINDOW]) == {WINDOW: group_scores_as_stored(found)}
    best = found.scores[0]
    assert (best.agent_id, best.rank) == ("agent-4", 1)
    for trajectory_id, reward, reasoning, judged_at, updated_at in rows:
        own = best if trajectory_id == "t9" else next(entry for entry in found.scores if entry.agent_id == f"agent-{trajectory_id[1]}")
        assert (reward, judged_at, updated_at) == (
            own.score,
            AFTER,
            START + timedelta(minutes=30 if trajectory_id == "t9" else 5 + int(trajectory_id[1])),
        )
        assert "Heuristic" in reasoning and f"{own.score:.4f}" in reasoning
    assert [row[:2] for row in judged] == [(f"t{number}", "heuristic") for number in (0, 1, 2, 3, 4, 9)]
    assert judged[4][2:6] == (best.score, 1, best.advantage, WINDOW) == judged[5][2:6]
    assert "rubric" in json.loads(judged[0][6])
    assert state == [("scored",)]


def group_scores_as_stored(found: GroupScores) -> GroupScores:
    """The same scores, as a reader who did not write them sees them."""
    return structs.replace(found, changed=False)


def test_unchanged_hour_is_not_judged_again(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", make_group())
    first = score_window(connection, WINDOW, settings, AFTER)
    before = everything(connection)
    again = score_window(connection, WINDOW, settings, LATER)
    assert everything(connection) == before
    assert first is not None and again is not None
    assert (first.changed, again.changed, first.data_version) == (True, False, again.data_version)
    forced = score_window(connection, WINDOW, settings, LATER, force=True)
    assert forced is not None and forced.changed and forced.data_version == first.data_version
    assert connection.execute('SELECT "judgedAt" FROM babylon_rl.group_scores').fetchall() == [(LATER,)]


def test_changed_group_is_marked_stale_and_judged_again(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", make_group())
    sync_windows(connection, [WINDOW], settings, AFTER)
    first = score_window(connection, WINDOW, settings, AFTER)
    insert(connection, "trajectories", [make_trajectory("late", "agent-0", minute=50, finalPnL=500.0)])
    sync_windows(connection, [WINDOW], settings, LATER)
    stale = connection.execute(
        'SELECT g."stale", w."state" FROM babylon_rl.group_scores g JOIN babylon_rl.windows w USING ("window")'
    ).fetchall()
    again = score_window(connection, WINDOW, settings, LATER)
    late = connection.execute("""SELECT "aiJudgeReward" FROM trajectories WHERE "trajectoryId" = 'late'""").fetchone()
    after = connection.execute('SELECT "stale" FROM babylon_rl.group_scores').fetchall()
    assert (stale, after) == ([(True, "ready")], [(False,)])
    assert first is not None and again is not None and again.scores[0].agent_id == "agent-0"
    assert first.data_version != again.data_version
    assert late == (again.scores[0].score,)


def consume(connection: Connection, trajectory_id: str, agent_id: str) -> None:
    """As if a batch of ours had trained the trajectory."""
    batch = ["b1", "base", "cpu", "v1.0.0", 0, "completed", AFTER, AFTER]
    connection.execute(
        """INSERT INTO babylon_rl.batches ("batchId", "baseModel", "backend", "version", "seed", "state", "createdAt", "heartbeatAt")
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s)""",
        batch,
    )
    connection.execute(
        """INSERT INTO babylon_rl.batch_items ("batchId", "window", "agentId", "trajectoryId", "position", "live", "consumed")
           VALUES ('b1', %s, %s, %s, 0, false, true)""",
        (WINDOW, agent_id, trajectory_id),
    )
    connection.execute("""UPDATE trajectories SET "usedInTraining" = true WHERE "trajectoryId" = %s""", (trajectory_id,))


def test_consumed_hour_keeps_its_scores_unless_forced(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", make_group())
    score_window(connection, WINDOW, settings, AFTER)
    consume(connection, "t0", "agent-0")
    insert(connection, "trajectories", [make_trajectory("late", "agent-0", minute=50, finalPnL=500.0)])
    sync_windows(connection, [WINDOW], settings, LATER)
    before = everything(connection)
    kept = score_window(connection, WINDOW, settings, LATER)
    assert everything(connection) == before
    forced = score_window(connection, WINDOW, settings, LATER, force=True)
    assert kept is not None and not kept.changed and kept.scores[0].agent_id == "agent-4"
    assert forced is not None and forced.scores[0].agent_id == "agent-0"


def test_used_rows_scored_by_somebody_else_keep_that_score(connection: Connection, settings: Settings) -> None:
    rows = make_group()
    rows[0] |= {"usedInTraining": True, "aiJudgeReward": 0.123}
    insert(connection, "trajectories", rows)
    for moment in (AFTER, LATER):
        score_window(connection, WINDOW, settings, moment)
        kept = connection.execute("""SELECT "aiJudgeReward" FROM trajectories WHERE "trajectoryId" = 't0'""").fetchone()
        judged = connection.execute("""SELECT count(*) FROM reward_judgments WHERE "trajectoryId" = 't0'""").fetchone()
        assert (kept, judged) == ((0.123,), (0,))
        insert(connection, "trajectories", [make_trajectory("late", "agent-9", finalPnL=500.0)] if moment == AFTER else [])


def test_rows_that_somebody_elses_training_used_unscored_follow_changes(connection: Connection, settings: Settings) -> None:
    rows = make_group()
    rows[0] |= {"usedInTraining": True}
    insert(connection, "trajectories", rows)
    score_window(connection, WINDOW, settings, AFTER)
    insert(connection, "trajectories", [make_trajectory("late", "agent-0", minute=50, finalPnL=500.0)])
    again = score_window(connection, WINDOW, settings, LATER)
    rows_from_scores = connection.execute("""SELECT "aiJudgeReward" FROM trajectories WHERE "trajectoryId" = 't0'""").fetchone()
    assert again is not None and again.changed and again.scores[0].agent_id == "agent-0"
    assert rows_from_scores == (pytest.approx(again.scores[0].score),)


def test_hour_that_is_thin_or_not_over_has_no_group(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", make_group())
    assert score_window(connection, WINDOW, settings, START + timedelta(minutes=59)) is None
    assert score_window(connection, WINDOW, settings, AFTER) is not None
    connection.execute("""DELETE FROM trajectories WHERE "trajectoryId" = 't1'""")
    assert score_window(connection, WINDOW, settings, AFTER) is None
    assert stored_scores(connection, [WINDOW]) == {}


def test_group_without_spread_is_reported(connection: Connection, settings: Settings) -> None:
    rows = [make_trajectory(f"t{n}", f"a{n}", steps=[make_step(k, calls=[make_call()]) for k in range(5)]) for n in range(5)]
    insert(connection, "trajectories", rows)
    found = score_window(connection, WINDOW, settings, AFTER)
    assert found is not None and not found.has_spread and {entry.rank for entry in found.scores} == {1}


def test_a_judge_that_nobody_knows_is_an_error_and_no_reason_for_another(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", make_group())
    with pytest.raises(JudgeError, match="some/judge"):
        score_window(connection, WINDOW, settings.model_copy(update={"judge_model": "some/judge"}), AFTER)
    assert connection.execute("SELECT count(*) FROM reward_judgments").fetchone() == (0,)
