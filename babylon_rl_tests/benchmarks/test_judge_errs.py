"""Judges that err, and one that is flattered: whether the alert tells them apart, and whom the gate lets pass."""

from collections.abc import Callable
from datetime import datetime
from statistics import fmean

import pytest

from babylon_rl.alerts import send_alerts
from babylon_rl.evaluation.gate import CANDIDATE, DEPLOYED, FAIL, PASS, GateVerdict, compare, decide
from babylon_rl.evaluation.play import script_rows
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.judge.prompt.injection import find_flags
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.settings import Settings
from babylon_rl.store.alerts import read_alerts
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.judge_report import hour_verdicts
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.scripted_judge.server import running
from benchmarks.judge_errs import JUDGES, MODEL, WRITTEN, Judge, agents_of, write_praise

pytestmark = pytest.mark.long
NOW = datetime(2026, 1, 10)
HOURS, MARKETS = 24, 48
SCRIPTED = [judge for judge in JUDGES if judge.credit == "part" and judge.model is not None]

Judged = Callable[[Judge], tuple[dict[str, str], list[str]]]


@pytest.fixture
def judged(database: Database, settings: Settings) -> Judged:
    """``judged(judge)``: the alerts after hours of five scripts, and the scripts with the highest mean score."""

    def alerts_and_best(judge: Judge) -> tuple[dict[str, str], list[str]]:
        assert judge.model is not None
        with database.connect(autocommit=True) as connection, running(judge.model) as url:
            hours = spawn(connection, SpawnRequest(5, 0, HOURS, 0, start="2026-01-01T00:00"), NOW, None)
            write_praise(connection, agents_of(connection, judge.flatterers))
            asked = {"judge_model": MODEL, "judge_base_url": url, "openai_api_key": "any", "credit": "part"}
            chosen = Settings(_env_file=None, **(settings.model_dump() | asked))
            score_windows(connection, [hour.window for hour in hours], chosen, NOW)
            send_alerts(connection, chosen, NOW)
            alerts = {alert.kind: alert.says for alert in read_alerts(connection)}
            strategies = {agent: strategy for agent, strategy, _ in hours[0].agents}
            return alerts, best(connection, [hour.window for hour in hours], strategies)

    return alerts_and_best


def best(connection: Connection, windows: list[str], strategies: dict[str, str]) -> list[str]:
    scores: dict[str, list[float]] = {name: [] for name in strategies.values()}
    for hour in hour_verdicts(connection, windows):
        for score in hour.scores:
            scores[strategies[score.agent_id]].append(score.score)
    means = {name: fmean(own) for name, own in scores.items()}
    return [name for name, mean in means.items() if mean == max(means.values())]


def verdict_on(script: str, deployed: str) -> GateVerdict:
    """The gate's verdict on a version that plays as a script does, where one that plays as another is deployed."""
    rows = script_rows(benchmark_snapshots(MARKETS), [script, deployed, "nothing"])
    roles = {script: CANDIDATE, deployed: DEPLOYED}
    return decide(compare({name: (roles.get(name, role), own) for name, (role, own) in rows.items()}, script, deployed))


def test_praise_is_no_text_that_is_flagged() -> None:
    assert find_flags(WRITTEN, "step 1") == []


@pytest.mark.parametrize("judge", [judge for judge in SCRIPTED if not judge.flatterers], ids=lambda judge: judge.name)
def test_a_judge_that_errs_at_random_is_no_alert_and_likes_best_whom_the_gate_passes(judged: Judged, judge: Judge) -> None:
    alerts, favourites = judged(judge)
    assert "scores_against_pnl" not in alerts
    (favourite,) = favourites
    assert verdict_on(favourite, "momentum").decision == PASS


@pytest.mark.parametrize("judge", [judge for judge in SCRIPTED if judge.flatterers], ids=lambda judge: judge.name)
def test_a_judge_that_is_flattered_is_an_alert_and_the_gate_refuses_whom_it_likes_best(judged: Judged, judge: Judge) -> None:
    alerts, favourites = judged(judge)
    assert alerts["scores_against_pnl"].startswith("In the newest 24 judged hours the rank correlation")
    # Its mean score did not rise, as the flattery was there from the first hour.
    assert "score_without_pnl" not in alerts
    assert set(favourites) == set(judge.flatterers)
    for favourite in favourites:
        assert verdict_on(favourite, "conservative").decision == FAIL
