"""The report finds what was planted in a judge, its intervals hold what they should, and what is not known is not made up."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.consensus import centred_ranks, spearman
from babylon_rl.judge.reliability.measures import length_correlation, length_moments, length_points, mean_estimate, slope_estimate
from babylon_rl.judge.reliability.plots import draw_plots
from babylon_rl.judge.reliability.report import (
    ReliabilityReport,
    audited_scores,
    default_range,
    reliability_report,
    report_document,
    report_rows,
)
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl_tests.judge.model_judge import MODEL, NOW, PRICED, add_hours, asking
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge

SPAN = ("2025-11-15T00:00", "2025-11-17T00:00")


@pytest.fixture
def judge() -> Iterator[Judge]:
    with judging() as running:
        yield running


def judged(connection: Connection, settings: Settings, hours: int, agents: int = 6) -> ReliabilityReport:
    windows = add_hours(connection, hours, agents)
    sync_windows(connection, windows, settings, NOW)
    score_windows(connection, windows, settings, NOW)
    return reliability_report(connection, *SPAN, settings)


def test_a_mean_has_students_interval_within_what_it_can_be_and_one_group_has_none() -> None:
    found = mean_estimate([0.1, 0.2, 0.3, 0.4])
    assert found is not None and found.low is not None and found.high is not None
    assert (found.value, found.groups) == (0.25, 4)
    half = 0.3182446 * math.sqrt(5 / 12)
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half))
    wide = mean_estimate([0.4, 1.0])
    assert wide is not None and (wide.low, wide.high) == (-1.0, 1.0)
    assert mean_estimate([]) is None
    alone = mean_estimate([0.5])
    assert alone is not None and (alone.value, alone.low, alone.high) == (0.5, None, None)


def test_ranks_share_places_and_a_side_that_does_not_rank_has_no_correlation() -> None:
    assert centred_ranks([3.0, 1.0, 3.0]) == [0.25, -0.5, 0.25]
    assert spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8)
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1, 2], [1, 2]) is None


def test_the_interval_of_a_slope_holds_the_true_one_about_as_often_as_it_says() -> None:
    random, hits = np.random.default_rng(5), 0
    for _ in range(200):
        parts = []
        for _ in range(20):
            x = random.permutation(8) / 7 - 0.5
            y = -0.3 * x + random.normal(0, 0.1, 8) + random.normal(0, 0.1) * x  # groups differ in their slope
            parts.append((float(x @ y), float(x @ x)))
        found = slope_estimate(parts)
        assert found is not None and found.low is not None and found.high is not None
        hits += found.low <= -0.3 <= found.high
    assert 180 <= hits <= 200
    assert slope_estimate([]) is None and slope_estimate([(0.0, 0.0)]) is None


@pytest.mark.parametrize(("bonus", "finds"), [(0.0, False), (0.15, True)])
def test_length_sways_no_judge_that_goes_by_profit_and_is_found_in_one_that_it_does(bonus: float, finds: bool) -> None:
    random, found = np.random.default_rng(6), 0
    for _ in range(30):
        groups = []
        for _ in range(40):
            pnls = random.normal(100, 150, 8)
            lengths = 1800 - 0.5 * np.abs(pnls) + random.normal(0, 60, 8)  # those who win or lose much say less
            scores = 1 / (1 + np.exp(-pnls / 100)) + random.normal(0, 0.07, 8) + bonus * np.array(centred_ranks(list(lengths)))
            groups.append(length_moments(list(scores.clip(0, 1)), list(lengths), list(pnls)))
        estimate = length_correlation(groups)
        assert estimate is not None and estimate.low is not None and estimate.high is not None
        found += estimate.low > 0 or estimate.high < 0
    assert found >= 28 if finds else found <= 6


def test_scores_that_profit_explains_wholly_and_lengths_that_are_one_leave_nothing_to_length() -> None:
    pnls = [0.0, 10.0, 20.0, 30.0]
    wholly = length_correlation([length_moments([0.1, 0.2, 0.3, 0.4], [5.0, 9.0, 1.0, 7.0], pnls)] * 3)
    assert wholly is not None and wholly.value == 0
    assert length_correlation([length_moments([0.1, 0.2, 0.3, 0.4], [5.0] * 4, pnls)]) is None
    assert length_correlation([]) is None and length_points([]) is None


@pytest.mark.slow
@pytest.mark.parametrize("planted", [0.0, 0.5, -0.3])
def test_a_planted_length_bias_is_found_in_points_from_the_shortest_to_the_longest(
    connection: Connection, settings: Settings, planted: float
) -> None:
    windows = add_hours(connection, 12, 6, wordy=True)
    with judging(ScriptedJudge(noise=0.03, length_bias=planted)) as biased:
        chosen = asking(settings, biased.url)
        sync_windows(connection, windows, chosen, NOW)
        score_windows(connection, windows, chosen, NOW)
    found = reliability_report(connection, *SPAN, chosen)
    points = report_document(found)["lengthBias"]["points"]
    assert points["groups"] == 12 and points["low"] < points["mean"] < points["high"]
    assert points["mean"] == pytest.approx(0.7 * planted, abs=0.15 * abs(planted) + 0.05), "scores end at 1, where half of these agents are"
    assert (points["low"] <= 0 <= points["high"]) is (planted == 0)
    line = next(line for line in report_rows(found) if line[0] == "length bias")
    assert line[1].startswith(f"{points['mean']:+.3f} (") and "longest transcript over the shortest" in line[2]


@pytest.mark.long
def test_a_planted_position_bias_is_found_and_two_orders_leave_nothing_of_it(connection: Connection, settings: Settings) -> None:
    with judging(ScriptedJudge(noise=0.05, position_bias=0.3)) as biased:
        found = judged(connection, asking(settings, biased.url, judge_max_orders=2), 8)
    slope = found.position_slope
    assert slope is not None and slope.high is not None and slope.low is not None
    assert slope.groups == 8 and -0.31 < slope.low < slope.value < slope.high < -0.1, "scores end at 1, where half of these agents are"
    assert found.position_left == pytest.approx(0, abs=1e-12)
    assert found.self_difference is not None and found.self_difference.value > 0.08
    places = report_document(found)["positionBias"]["places"]
    assert [entry["place"] for entry in places] == sorted(entry["place"] for entry in places)
    assert places[0]["mean"] > 0.05 > -0.05 > places[-1]["mean"]
    assert set(draw_plots(found)) == {"position", "agreement", "pnl", "cost"}
    assert all(png.startswith(b"\x89PNG") for png in draw_plots(found).values())


def test_a_judge_without_faults_agrees_with_itself_and_with_the_profit(connection: Connection, settings: Settings, judge: Judge) -> None:
    found = judged(connection, asking(settings, judge.url), 3)
    document = json.loads(json.dumps(report_document(found), allow_nan=False))
    assert (document["judge"], document["groups"], document["episodes"]) == (MODEL, 3, 18)
    agreement = document["selfAgreement"]
    assert (agreement["meanAbsoluteDifference"]["mean"], agreement["kendallTau"]["mean"], agreement["orders"]) == pytest.approx((0, 1, 2))
    assert document["pnlCorrelation"] == {"spearman": 1.0, "low": 1.0, "high": 1.0, "groups": 3, "withoutRanks": 0}
    assert document["positionBias"]["slope"] == pytest.approx(0, abs=1e-9)
    assert (document["quarantinedShare"], document["pending"], document["auditAgreement"]) == (0, 0, None)
    (cost,) = document["cost"]["byJudge"]
    assert (cost["answers"], cost["unusable"], document["cost"]["answersInUse"]) == (6, 0, 6)
    assert document["tokens"]["prompt"] > 1000 and document["tokens"]["answersWithoutCount"] == 0
    assert document["usd"] is None and ("cost", "unknown") in [line[:2] for line in report_rows(found)]


@pytest.mark.slow
def test_a_known_price_is_summed_by_the_day_of_the_hours(connection: Connection, settings: Settings, judge: Judge) -> None:
    chosen = asking(settings, judge.url, judge_model=PRICED, judge_orders=1)
    found = judged(connection, chosen, 15, agents=5)
    document = report_document(found)
    assert document["usd"] > 0
    days = document["cost"]["byDay"]
    assert [(day["day"], day["hours"]) for day in days] == [("2025-11-15", 14), ("2025-11-16", 1)]
    assert sum(day["usd"] for day in days) == pytest.approx(document["usd"])


@pytest.mark.slow
def test_one_order_shows_position_bias_between_episodes_and_no_agreement(connection: Connection, settings: Settings) -> None:
    with judging(ScriptedJudge(position_bias=0.3)) as biased:
        found = judged(connection, asking(settings, biased.url, judge_orders=1, judge_max_orders=1), 8)
    assert found.self_difference is None and found.self_tau is None and found.orders == 1
    assert found.position_slope is not None and found.position_slope.value < -0.1
    assert found.position_left is not None and found.position_left > 0.02, "with one order it stays in the scores"
    assert "one order each" in dict((line[0], line[2]) for line in report_rows(found))["orders differ by"]
    assert "agreement" not in draw_plots(found)


def test_of_the_heuristic_only_what_it_has_is_reported(connection: Connection, settings: Settings) -> None:
    document = report_document(judged(connection, settings, 2))
    assert (document["judge"], document["judges"], document["groups"]) == ("heuristic", {"heuristic": 2}, 2)
    assert document["selfAgreement"] is document["positionBias"] is document["lengthBias"] is document["auditAgreement"] is None
    assert document["pnlCorrelation"]["spearman"] > 0.9 and document["usd"] == 0 and document["cost"]["byJudge"] == []


@pytest.mark.slow
def test_a_profit_beyond_all_measure_and_one_that_is_none_break_nothing(connection: Connection, settings: Settings, judge: Judge) -> None:
    chosen = asking(settings, judge.url)
    judged(connection, chosen, 2)
    for agent, pnl in (("agent-0", "1e300"), ("agent-1", "Infinity"), ("agent-2", "NaN")):
        connection.execute('UPDATE babylon_rl.episodes SET "windowPnl" = %s::float8 WHERE "agentId" = %s', (pnl, agent))
    found = reliability_report(connection, *SPAN, chosen)
    assert json.dumps(report_document(found), allow_nan=False) and found.sums.without_pnl_ranks == 0
    assert draw_plots(found)["pnl"]


@pytest.mark.slow
def test_groups_without_scores_are_counted_beside_those_with(connection: Connection, settings: Settings, judge: Judge) -> None:
    chosen = asking(settings, judge.url)
    windows = add_hours(connection, 4)
    sync_windows(connection, windows, chosen, NOW)
    score_windows(connection, windows[:2], chosen, NOW)
    judge.reset(faults={"empty": 1.0})
    score_windows(connection, windows[2:3], chosen, NOW)
    judge.reset(faults={"unavailable": 1.0})
    score_windows(connection, windows[3:], chosen.model_copy(update={"judge_timeout_seconds": 0.2}), NOW)
    found = reliability_report(connection, *SPAN, chosen)
    assert (found.groups, found.quarantined, found.pending) == (2, 1, 1)
    assert found.quarantined_share == pytest.approx(1 / 3)
    (cost,) = found.paid
    assert cost.of == MODEL and 0 < cost.unusable < cost.answers == 4 + cost.unusable
    assert "1 more in quarantine (33.3%), 1 wait" in report_rows(found)[0][2]


def test_nothing_judged_is_a_report_of_nothing(connection: Connection, settings: Settings) -> None:
    assert default_range(connection) is None
    found = reliability_report(connection, *SPAN, settings)
    document = report_document(found)
    assert (document["groups"], document["quarantinedShare"], document["pnlCorrelation"], document["usd"]) == (0, None, None, 0)
    assert draw_plots(found) == {} and len(report_rows(found)) == 9


def test_an_order_counts_where_all_its_parts_are_there_and_about_these_agents() -> None:
    whole = {"a": 0.2, "b": 0.4, "c": 0.6}
    assert audited_scores({0: [whole], 1: [{"a": 0.4, "b": 0.4, "c": 0.4}]}, ["c", "a", "b"]) == pytest.approx(
        {"a": 0.3, "b": 0.4, "c": 0.5}
    )
    assert audited_scores({0: [whole], 1: [{"a": 0.9, "b": 0.9}]}, ["a", "b", "c"]) == whole
    assert audited_scores({0: [whole]}, ["a", "b"]) is None and audited_scores({}, ["a"]) is None
    assert audited_scores({0: [{"a": 0.1, "b": 0.2}, {"c": 0.3, "d": 0.4}]}, ["a", "b", "c", "d"]) is None, "on no common scale"
