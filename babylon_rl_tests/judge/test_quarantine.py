"""Groups that a judge could not score: unusable answers set them aside, a judge that is down lets them wait, nothing is made up."""

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.errors import JudgeRefused
from babylon_rl.judge.plan import release_quarantined
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.scores import read_pending, read_quarantined
from babylon_rl.store.windows import quarantined
from babylon_rl_tests.judge.model_judge import NOW, add_hours, asking
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.scripted_judge.judge import CONTENT_FAULTS, TRANSPORT_FAULTS, ScriptedJudge

READABLE = ("fenced", "prefixed", "trailing-comma")
AGENTS = [f"agent-{n}" for n in (4, 3, 2, 1, 0)]


def states(connection: Connection) -> dict[str, str]:
    return dict(connection.execute('SELECT "window", "state" FROM babylon_rl.windows').fetchall())


@pytest.mark.long
@pytest.mark.parametrize("fault", [*TRANSPORT_FAULTS, *CONTENT_FAULTS])
def test_a_fault_that_lasts_makes_up_no_score_and_one_that_passes_leaves_no_trace(
    connection: Connection, settings: Settings, fault: str
) -> None:
    windows = add_hours(connection, 2)
    with judging(ScriptedJudge(faults={fault: 1.0}, retry_after_s=0.01, slow_s=30)) as judge:
        chosen = asking(settings, judge.url, judge_timeout_seconds=10.0 if fault in CONTENT_FAULTS else 0.25)
        faulty = score_windows(connection, windows, chosen, NOW)
        judge.reset(faults={fault: 0.0})
        if fault in READABLE:
            assert list(faulty) == windows
        else:
            assert not faulty and sorted([*faulty.pending, *faulty.quarantined]) == windows
            assert connection.execute("SELECT count(*) FROM reward_judgments").fetchone() == (0,)
            release_quarantined(connection)
        found = score_windows(connection, windows, chosen.model_copy(update={"judge_timeout_seconds": 10.0}), NOW)
    assert [[score.agent_id for score in found[window].scores] for window in windows] == [AGENTS, AGENTS]
    assert read_pending(connection, windows) == read_quarantined(connection) == {}


@pytest.mark.slow
def test_faults_that_come_and_go_lose_no_group(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 6)
    faults = dict.fromkeys([*TRANSPORT_FAULTS, *CONTENT_FAULTS], 0.03)
    with judging(ScriptedJudge(faults=faults, retry_after_s=0.01, slow_s=30)) as judge:
        chosen = asking(settings, judge.url, judge_timeout_seconds=1.0)
        for _ in range(5):  # a request that was not answered in time waits
            found = score_windows(connection, windows, chosen, NOW)
            assert not found.quarantined
            if len(found) == len(windows):
                break
    assert {window: [score.agent_id for score in group.scores] for window, group in found.items()} == dict.fromkeys(windows, AGENTS)


@pytest.mark.slow
def test_unusable_answers_quarantine_the_hour_with_its_transcript(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 1)
    sync_windows(connection, windows, settings, NOW)
    with judging(ScriptedJudge(faults={"missing-id": 1.0})) as judge:
        chosen = asking(settings, judge.url)
        found = score_windows(connection, windows, chosen, NOW)
        assert list(found.quarantined) == windows and not found and states(connection) == {windows[0]: "quarantined"}
        assert quarantined(connection, windows) == set(windows) and stored_scores(connection, windows) == {}
        entry = read_quarantined(connection)[windows[0]]
        assert len(entry.transcript) == 12 and "is missing" in entry.reason
        assert '<episode nonce="' in entry.transcript[0]["messages"][1]["content"] and entry.transcript[0]["answer"]
        asked = judge.stats()["requests"]
        again = score_windows(connection, windows, chosen, NOW)
        assert judge.stats()["requests"] == asked and again.quarantined == found.quarantined
        sync_windows(connection, windows, settings, NOW)
        assert states(connection) == {windows[0]: "quarantined"}
        judge.reset(faults={"missing-id": 0.0})
        assert release_quarantined(connection, windows) == windows and states(connection) == {windows[0]: "ready"}
        assert list(score_windows(connection, windows, chosen, NOW)) == windows
    assert states(connection) == {windows[0]: "scored"}


@pytest.mark.slow
def test_force_asks_a_quarantined_hour_anew_and_another_judge_need_not_wait(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 1)
    sync_windows(connection, windows, settings, NOW)
    with judging(ScriptedJudge(faults={"empty": 1.0})) as judge:
        chosen = asking(settings, judge.url)
        score_windows(connection, windows, chosen, NOW)
        judge.reset(faults={"empty": 0.0})
        assert list(score_windows(connection, windows, chosen.model_copy(update={"judge_model": "openai/other"}), NOW)) == windows
        assert states(connection) == {windows[0]: "scored"} and read_quarantined(connection) == {}
        judge.reset(faults={"empty": 1.0})
        score_windows(connection, windows, chosen.model_copy(update={"judge_orders": 1}), NOW, force=True)
        judge.reset(faults={"empty": 0.0})
        forced = score_windows(connection, windows, chosen, NOW, force=True)
    assert list(forced) == windows and states(connection) == {windows[0]: "scored"}


@pytest.mark.slow
def test_a_judge_that_is_down_lets_hours_wait_and_never_becomes_the_heuristic(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 3)
    with judging() as judge:
        chosen = asking(settings, judge.url)
        score_windows(connection, windows[:1], chosen, NOW)
    found = score_windows(connection, windows, chosen.model_copy(update={"judge_timeout_seconds": 0.2}), NOW)
    assert list(found) == windows[:1] and list(found.pending) == windows[1:]
    assert {window: hour.reason for window, hour in read_pending(connection, windows).items()} == found.pending
    assert connection.execute('SELECT DISTINCT "judgeModel" FROM reward_judgments').fetchall() == [("openai/scripted",)]


@pytest.mark.slow
def test_a_wrong_key_is_an_error_and_loses_nothing(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 3)
    with judging() as judge:
        chosen = asking(settings, judge.url)
        score_windows(connection, windows[:1], chosen, NOW)
        judge.reset(faults={"bad-key": 1.0})
        with pytest.raises(JudgeRefused, match="OPENAI_API_KEY"):
            score_windows(connection, windows, chosen, NOW)
        assert list(read_pending(connection, windows)) == windows[1:]
        judge.reset(faults={"bad-key": 0.0})
        assert list(score_windows(connection, windows, chosen, NOW)) == windows


def test_text_that_a_database_does_not_take_is_stored_all_the_same(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 1)
    with judging(ScriptedJudge(faults={"truncated": 1.0})) as judge:
        found = score_windows(connection, windows, asking(settings, judge.url), NOW)
    assert list(found.quarantined) == windows
