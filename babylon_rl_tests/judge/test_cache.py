"""Scores by a language model in the database: what was answered is never asked again, and what is written follows from it."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.consensus import scores_document
from babylon_rl.judge.cost import estimate_hours, total_of
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.settings import Settings
from babylon_rl.store.batches import DROPOUT, record_dropped
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.judge_requests import StoredAnswer, add_answers, find_answers, spent_on
from babylon_rl.store.scores import read_made_from
from babylon_rl_tests.expected import expected
from babylon_rl_tests.judge.model_judge import MODEL, NOW, add_hours, asking, count, filled
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.judge.test_render import fill_market
from babylon_rl_tests.judge.test_scoring import consume, everything
from babylon_rl_tests.rows import WINDOW, insert, make_group, make_trajectory
from babylon_rl_tests.scored import read_hours, score_stale, score_windows
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge

LATER = NOW + timedelta(hours=1)
MOST = timedelta(days=400)


@pytest.fixture
def judge() -> Iterator[Judge]:
    with judging() as running:
        yield running


def requests(judge: Judge) -> int:
    return int(judge.stats()["requests"])


@pytest.mark.long
def test_the_samples_ready_hours_are_scored_everywhere_and_once(sample_database: Database, settings: Settings, judge: Judge) -> None:
    answers = expected("sample_database")
    chosen = asking(settings, judge.url)
    with sample_database.connect(autocommit=True) as connection:
        sync_windows(connection, answers["windows"], chosen, NOW + MOST)
        found = score_windows(connection, answers["windows"], chosen, NOW + MOST)
        assert sorted(found) == sorted(answers["ready_windows"]["5"]) and len(found) == 7
        assert not found.pending and not found.quarantined
        asked, before = requests(judge), rows_of_scores(connection)
        again = score_windows(connection, answers["windows"], chosen, NOW + MOST + timedelta(hours=1))
        assert (requests(judge), rows_of_scores(connection)) == (asked, before)
        assert {w: g.data_version for w, g in again.items()} == {w: g.data_version for w, g in found.items()}
        for window, scores in found.items():
            check_written(connection, window, {s.agent_id: s.score for s in scores.scores}, set(answers["windows"][window]["agents_min5"]))


def check_written(connection: Connection, window: str, scores: dict[str, float], agents: set[str]) -> None:
    assert set(scores) == agents and len(set(scores.values())) > 1
    rows = connection.execute(
        """SELECT t."agentId", t."aiJudgeReward", j."overallScore", j."judgeModel", j."groupId", length(t."aiJudgeReasoning") > 0
           FROM trajectories t JOIN reward_judgments j USING ("trajectoryId") WHERE j."groupId" = %s""",
        (window,),
    ).fetchall()
    assert {row[0] for row in rows} == agents
    assert all(row[1:] == (scores[row[0]], scores[row[0]], MODEL, window, True) for row in rows)
    state = connection.execute('SELECT "state" FROM babylon_rl.windows WHERE "window" = %s', (window,)).fetchone()
    assert state in (("scored",), ("trained",))  # somebody else's training has used rows of some


def rows_of_scores(connection: Connection) -> list[Any]:
    return [*everything(connection), connection.execute("SELECT * FROM babylon_rl.judge_requests ORDER BY id").fetchall()]


def test_how_the_scores_were_come_by_is_kept(connection: Connection, settings: Settings, judge: Judge) -> None:
    (window,) = add_hours(connection, 1)
    found = score_windows(connection, [window], asking(settings, judge.url), NOW)[window]
    held = stored_scores(connection, [window])[window]
    assert held.judgement == found.judgement and held.scores == found.scores
    assert held.judgement is not None and (held.judgement.orders, held.judgement.requests, held.judgement.usd) == (2, 2, None)
    assert [len(score.order_scores) for score in held.scores] == [2] * 5
    assert [score.agent_id for score in held.scores] == [f"agent-{n}" for n in (4, 3, 2, 1, 0)]
    for score in held.scores:
        assert score.places[0] + score.places[1] == pytest.approx(1.0)
    document = scores_document(held)
    assert (document["orders"], document["tau"], document["disagreement"]) == (2, pytest.approx(1.0), 0.0)


def test_only_what_changed_is_asked_about_again(connection: Connection, settings: Settings, judge: Judge) -> None:
    windows = add_hours(connection, 3)
    chosen = asking(settings, judge.url)
    score_windows(connection, windows, chosen, NOW)
    late = make_trajectory("late", "agent-0", minute=50, finalPnL=5000.0, windowId=windows[0], scenarioId=windows[0])
    insert(connection, "trajectories", [late])
    again = score_windows(connection, windows, chosen, LATER)
    assert requests(judge) == 8
    assert [again[window].changed for window in windows] == [True, False, False]
    assert again[windows[0]].scores[0].agent_id == "agent-0"


@pytest.mark.slow
def test_what_came_to_be_known_since_is_noticed_and_what_shows_the_same_is_not_asked_again(
    connection: Connection, settings: Settings, judge: Judge
) -> None:
    (window,) = add_hours(connection, 1)
    fill_market(connection)
    chosen = asking(settings, judge.url)
    score_windows(connection, [window], chosen, NOW)
    of_hour = read_made_from(connection, [window])
    assert list(of_hour) == [window] and requests(judge) == 2
    connection.execute("""UPDATE "User" SET username = 'never-mentioned' WHERE id = 'agent-0'""")
    kept = score_windows(connection, [window], chosen, LATER)
    assert not kept[window].changed and requests(judge) == 2
    assert read_made_from(connection, [window]) == of_hour, "names are those of the first reading"
    for asked, change in enumerate(
        (
            """UPDATE "Question" SET outcome = false""",
            """UPDATE "Question" SET "resolvedOutcome" = true, status = 'resolved', "updatedAt" = now()::timestamp""",
            """UPDATE trajectories SET "metadataJson" = '{"gameKnowledge": {"trueProbabilities": {"241774855181560797": 0.9}}}'""",
            """UPDATE "StockPrice" SET price = 150 WHERE id = 'p50'""",
        ),
        2,
    ):
        connection.execute(change)
        assert score_windows(connection, [window], chosen, LATER)[window].changed, change
        assert requests(judge) == 2 * asked
    for changes in ({"judge_private_fields": "news"}, {"judge_private_fields": "hidden_answers,game_knowledge"}):
        before = requests(judge)
        other = chosen.model_copy(update=changes)
        assert not score_windows(connection, [window], other, LATER)[window].changed and requests(judge) == before
        assert score_stale(connection, [window], other, LATER)[window].changed and requests(judge) == before + 2
    assert score_stale(connection, [window], chosen, LATER)[window].changed and requests(judge) == before + 2


def test_force_writes_again_and_pays_for_nothing(connection: Connection, settings: Settings, judge: Judge) -> None:
    windows = add_hours(connection, 2)
    chosen = asking(settings, judge.url)
    first = score_windows(connection, windows, chosen, NOW)
    forced = score_windows(connection, windows, chosen, LATER, force=True)
    assert requests(judge) == 4
    assert all(group.changed for group in forced.values()) and [cached for _, cached in forced.asked.values()] == [2, 2]
    assert {w: g.data_version for w, g in first.items()} == {w: g.data_version for w, g in forced.items()}


def test_more_orders_ask_only_for_those(connection: Connection, settings: Settings, judge: Judge) -> None:
    windows = add_hours(connection, 1)
    score_windows(connection, windows, asking(settings, judge.url), NOW)
    found = score_stale(connection, windows, asking(settings, judge.url, judge_orders=3), LATER)
    assert requests(judge) == 3 and found.asked[windows[0]][1] == 2


def test_a_consumed_hour_keeps_its_scores(connection: Connection, settings: Settings, judge: Judge) -> None:
    insert(connection, "trajectories", make_group())
    chosen = asking(settings, judge.url)
    score_windows(connection, [WINDOW], chosen, NOW)
    consume(connection, "t0", "agent-0")
    insert(connection, "trajectories", [make_trajectory("late", "agent-0", minute=50, finalPnL=5000.0)])
    read_hours(connection, [WINDOW], chosen, NOW)
    before = everything(connection)
    kept = score_windows(connection, [WINDOW], chosen, LATER)
    assert everything(connection) == before and requests(judge) == 2 and not kept[WINDOW].changed


def test_what_dropout_left_out_is_not_shown_and_what_was_judged_stands(connection: Connection, settings: Settings, judge: Judge) -> None:
    first, second = add_hours(connection, 2, agents=7)
    chosen = asking(settings, judge.url)
    score_windows(connection, [first], chosen, NOW)
    record_dropped(connection, "batch", DROPOUT, [(first, "agent-6"), (second, "agent-6")], NOW)
    found = score_windows(connection, [first, second], chosen, LATER)
    assert requests(judge) == 4
    assert (found[first].changed, found[first].group_size, found[second].group_size) == (False, 7, 6)


def test_an_answer_of_another_judge_is_no_answer_of_this_one(connection: Connection, settings: Settings, judge: Judge) -> None:
    windows = add_hours(connection, 1)
    score_windows(connection, windows, settings, NOW)
    assert stored_scores(connection, windows)[windows[0]].judge == "heuristic"
    found = score_stale(connection, windows, asking(settings, judge.url), NOW)
    other = score_stale(connection, windows, asking(settings, judge.url, judge_model="openai/another"), NOW)
    assert (found[windows[0]].judge, other[windows[0]].judge) == (MODEL, "openai/another") and requests(judge) == 4


def test_what_a_trials_server_answered_does_not_stand_for_the_model_whose_name_it_used(
    connection: Connection, settings: Settings, judge: Judge
) -> None:
    windows = add_hours(connection, 1)
    with judging(ScriptedJudge(skill="text")) as trial:
        tried = score_windows(connection, windows, asking(settings, trial.url), NOW)
        chosen = asking(settings, judge.url)
        assert estimate_hours(connection, windows, chosen) == []
        assert estimate_hours(connection, windows, chosen, stale=True)[0].requests == 2
        found = score_stale(connection, windows, chosen, LATER)
        assert found[windows[0]].changed and requests(judge) == 2 and found[windows[0]].scores != tried[windows[0]].scores
        assert not score_windows(connection, windows, chosen, LATER)[windows[0]].changed and requests(judge) == requests(trial) == 2


def test_scores_of_which_the_server_was_not_noted_stand_while_the_same_would_be_shown(
    connection: Connection, settings: Settings, judge: Judge
) -> None:
    windows = add_hours(connection, 1)
    chosen = asking(settings, judge.url)
    score_windows(connection, windows, chosen, NOW)
    connection.execute("""UPDATE babylon_rl.group_scores SET "judgement" = "judgement" - 'server', "sourcesVersion" = ''""")
    assert not score_windows(connection, windows, chosen, LATER)[windows[0]].changed
    connection.execute("""UPDATE babylon_rl.group_scores SET "shownVersion" = 'another', "sourcesVersion" = ''""")
    assert score_windows(connection, windows, chosen, LATER)[windows[0]].changed


@pytest.mark.slow
def test_two_runs_at_once_pay_once_and_write_the_same(database: Database, settings: Settings) -> None:
    windows = filled(database, 8)
    results = []

    def run(chosen: Settings) -> None:
        with database.connect(autocommit=True) as connection:
            results.append(score_windows(connection, windows, chosen, NOW))

    with judging(ScriptedJudge(latency_s=0.05)) as judge:
        chosen = asking(settings, judge.url, judge_concurrency=2)
        threads = [threading.Thread(target=run, args=(chosen,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert judge.stats()["repeated"] == 0 and requests(judge) == 16
    one, two = results
    assert {w: g.data_version for w, g in one.items()} == {w: g.data_version for w, g in two.items()} and len(one) == 8
    assert count(database.url, "SELECT count(*) FROM babylon_rl.judge_leases") == 0


def test_both_answers_that_two_runs_pay_for_in_the_same_moment_are_billed(database: Database) -> None:
    answers = [
        StoredAnswer(
            key=key, window=WINDOW, judge=MODEL, rubric_version="r1", order=0, part=0, attempt=0, shown_version="s1", ids=[], answer="{}",
            faults=[], scores=None, prompt_tokens=1, completion_tokens=1, usd=usd, latency_seconds=0.1, tries=1, asked_at=NOW,
        )
        for key, usd in (("only here", 1.0), ("paid twice", 2.0), ("paid twice", 4.0), ("only there", 8.0))
    ]  # fmt: skip
    with database.connect() as first, database.connect(autocommit=True) as second, ThreadPoolExecutor(1) as other:
        with first.transaction(), database.connect(autocommit=True) as observer:
            add_answers(first, answers[:2])
            waiting = other.submit(add_answers, second, answers[2:])
            while not (waiting.done() or observer.value("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                time.sleep(0.01)
        waiting.result()
        assert spent_on(second, NOW) == (15.0, 0)
        assert {key: found.usd for key, found in find_answers(second, [a.key for a in answers]).items()} == {
            "only here": 1.0, "paid twice": 2.0, "only there": 8.0,
        }  # fmt: skip


@pytest.mark.long
def test_an_hour_that_changes_while_it_is_judged_waits_for_the_next_run(database: Database, settings: Settings) -> None:
    (window,) = filled(database, 1)
    late = make_trajectory("late", "agent-0", minute=50, finalPnL=5000.0, windowId=window, scenarioId=window)

    with judging(ScriptedJudge(latency_s=2.0)) as judge, database.connect(autocommit=True) as connection, database.connect() as other:
        chosen = asking(settings, judge.url)
        found = []
        thread = threading.Thread(target=lambda: found.append(score_windows(connection, [window], chosen, NOW)))
        thread.start()
        while not judge.stats()["inFlight"]:
            time.sleep(0.01)
        insert(other, "trajectories", [late])
        read_hours(other, [window], chosen, NOW)
        other.commit()
        thread.join()
        assert list(found[0].pending) == [window] and not found[0]
        assert count(database.url, "SELECT count(*) FROM reward_judgments") == 0
        judge.reset()
        again = score_windows(connection, [window], chosen, LATER)
    assert again[window].scores[0].agent_id == "agent-0" and not again.pending


def test_a_dry_run_says_what_is_missing_and_writes_nothing(connection: Connection, settings: Settings, judge: Judge) -> None:
    first, second = add_hours(connection, 2)
    chosen = asking(settings, judge.url, judge_model="openai/gpt-4o-mini")
    score_windows(connection, [first], chosen, NOW)
    connection.execute("DELETE FROM babylon_rl.group_scores")
    read_hours(connection, [first, second], chosen, NOW)
    before = rows_of_scores(connection)
    known, unknown = estimate_hours(connection, [first, second], chosen)
    assert (known.requests, known.cached, known.usd) == (0, 2, 0.0)
    assert (unknown.requests, unknown.cached) == (2, 0) and unknown.usd is not None and unknown.usd > 0
    assert rows_of_scores(connection) == before and requests(judge) == 2
    assert total_of([known, unknown]).prompt_tokens == unknown.prompt_tokens > 1000
    assert [hour.usd for hour in estimate_hours(connection, [second], asking(settings, judge.url))] == [None]
