"""Rank correlations of scores with known skill: worked out right, covered as promised, measured on real hours and kept."""

from datetime import datetime

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.judge_agreement import (
    PLAYERS,
    Skill,
    agreement,
    calibration_name,
    calibration_windows,
    measure,
    skills,
)
from babylon_rl.evaluation.statistics.intervals import mean_interval
from babylon_rl.judge.consensus import group_scores, spearman
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.judge_report import judge_agreements, write_judge_agreement
from babylon_rl.store.scores import read
from babylon_rl.types import GroupScores
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge

NOW = datetime(2025, 11, 20, 12)
AGENTS = ("a", "b", "c", "d", "e")
KNOWN = tuple(Skill(agent, f"script-{agent}", 100.0 * place, 5.0) for place, agent in enumerate(AGENTS))
MONEY = dict.fromkeys(AGENTS, 0.0) | {"a": 30.0, "e": 10.0}


def group(window: str, scores: list[float]) -> GroupScores:
    given = {agent: (score, "because") for agent, score in zip(AGENTS, scores, strict=True)}
    return group_scores(window, "some-judge", "7", given, "version")


def compared(groups: list[GroupScores], hours: int = 3):
    money = {one.window: MONEY for one in groups}
    return agreement(groups, money, KNOWN, orders=2, hours=hours, skill_markets=9, seed=4, now=NOW)


def test_ranks_are_correlated_as_scipy_does_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = rng.integers(0, 5, 8).astype(float), rng.normal(size=8)
        assert spearman(list(one), list(other)) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is spearman([1.0], [2.0]) is None


def test_a_judge_that_knows_skill_one_that_knows_nothing_and_one_that_has_it_backwards():
    right, flat, wrong = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5] * 5, [0.9, 0.7, 0.5, 0.3, 0.1]
    knows = compared([group("h1", right), group("h2", right)])
    assert knows.expected == pytest.approx((1.0, 1.0, 1.0)) and (knows.without_spread, knows.not_judged, knows.hours) == (0, 1, 2)
    assert (knows.judge, knows.judge_version, knows.orders, knows.skill_markets, knows.seed) == ("some-judge", "7", 2, 9, 4)
    nothing = compared([group("h1", flat), group("h2", flat)])
    assert tuple(nothing.expected) == (0.0, 0.0, 0.0) and nothing.without_spread == 2
    backwards = compared([group("h1", wrong), group("h2", right), group("h3", wrong)])
    assert backwards.expected[0] == pytest.approx(-1 / 3) and -2 <= backwards.expected[1] <= backwards.expected[2] <= 2
    money = spearman([MONEY[agent] for agent in AGENTS], [skill.expected_usd for skill in KNOWN])
    assert knows.money[0] == pytest.approx(money) and knows.over_money[0] == pytest.approx(1.0 - money)
    assert knows.realized[0] == pytest.approx(money)
    best = knows.rows[0]
    assert (best["name"], best["expected"], best["realized"], best["score"], best["rank"]) == ("script-e", 400.0, 10.0, 0.5, 1.0)


def test_its_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    skill = np.arange(8.0)

    ranks = skill - skill.mean()

    def hours(count: int) -> np.ndarray:
        scored = rankdata(skill + rng.normal(scale=3.0, size=(count, 8)), axis=1)
        return (scored - scored.mean(axis=1, keepdims=True)) @ ranks / (ranks @ ranks)

    truth = float(hours(200_000).mean())
    found = [mean_interval(hours(24), seed=seed, resamples=1000) for seed in range(800)]
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.97


@pytest.mark.slow
def test_skill_is_an_average_over_other_markets_than_the_hours_that_are_judged():
    few, more = skills(20), skills(80)
    assert [skill.agent_id for skill in few] == [player.agent_id for player in PLAYERS] and skills(20) == few
    named = {skill.name: skill for skill in more}
    order = [named[name].expected_usd for name in ("oracle", "news-reader", "conservative", "momentum", "contrarian")]
    assert order == sorted(order, reverse=True) and order[0] > 300 and order[-1] < -50
    assert all(0 < skill.standard_error < 30 for skill in more)
    assert calibration_name(0) == calibration_name(0) != calibration_name(1)
    assert calibration_windows(3) == ["2025-02-01T00:00", "2025-02-01T01:00", "2025-02-01T02:00"]


@pytest.mark.slow
def test_the_heuristic_is_measured_on_real_hours_and_kept(database: Database, settings: Settings):
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    settings = settings.model_copy(update={"credit": "part"})
    with database.connect(autocommit=True) as connection:
        first = measure(connection, settings, NOW, hours=4, skill_markets=20, on_progress=tell)
        assert (first.judge, first.judge_version, first.orders, first.hours, first.not_judged) == ("heuristic", "1, by part", 1, 4, 0)
        assert first.agents == len(PLAYERS) and first.expected[0] > 0.5 and first.realized[0] > 0.5
        assert ("hours played", 4, 4) in told and ("markets of known skill", 20, 20) in told
        assert [row["hours"] for row in first.rows] == [4] * len(PLAYERS)
        scored = read(connection, calibration_windows(4))
        assert {one.group_size for one in scored.values()} == {len(PLAYERS)}
        told.clear()
        more = measure(connection, settings, NOW, hours=6, skill_markets=20, on_progress=tell)
        assert more.hours == 6 and ("hours played", 2, 2) in told
        assert judge_agreements(connection) == []
        write_judge_agreement(connection, first)
        write_judge_agreement(connection, more)
        (kept,) = judge_agreements(connection)
        assert kept.document == more.document and kept.document["expected"]["mean"] == more.expected[0]


@pytest.mark.slow
@pytest.mark.parametrize("credit", ["hour", "part"])
def test_a_language_model_that_counts_money_is_as_good_as_the_money(database: Database, settings: Settings, credit: str):
    with judging(ScriptedJudge(skill="pnl")) as judge, database.connect(autocommit=True) as connection:
        asked = settings.model_copy(
            update={"judge_model": "openai/scripted", "judge_base_url": judge.url, "judge_orders": 2, "credit": credit}
        )
        found = measure(connection, asked, NOW, hours=3, skill_markets=10)
    assert (found.judge, found.orders, found.hours, found.without_spread) == ("openai/scripted", 2, 3, 0)
    if credit == "part":
        # Its mark of a part flattens a large gain, so that the mean of an hour orders agents a little otherwise than their money.
        assert 0.9 < found.realized[0] < 1.0
        return
    assert found.realized == pytest.approx((1.0, 1.0, 1.0)) and found.expected == pytest.approx(found.money)
    assert found.over_money == pytest.approx((0.0, 0.0, 0.0))


def test_a_judge_that_scores_nothing_is_not_called_unable(database: Database, settings: Settings):
    strict = settings.model_copy(update={"min_agents_per_window": 50})
    with database.connect(autocommit=True) as connection, pytest.raises(MarketError, match="no hour has a group"):
        measure(connection, strict, NOW, hours=2, skill_markets=2)
    with database.connect(autocommit=True) as connection, pytest.raises(ValueError, match="1 hours"):
        measure(connection, settings, NOW, hours=1)


def test_a_database_without_the_table_has_no_calibration(empty_database: Database):
    with empty_database.connect() as connection:
        assert judge_agreements(connection) == []
