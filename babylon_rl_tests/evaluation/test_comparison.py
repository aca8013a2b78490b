"""What a comparison says beside the gate's decision: contests, clustered rates, success criteria, and the report of it."""

import json
from itertools import accumulate, pairwise
from statistics import mean, stdev

import pytest

from babylon_rl.evaluation.gate import compare, decide
from babylon_rl.evaluation.report import benchmark_png, criteria, markdown, rows_of
from babylon_rl.reporting.plots import spaced
from babylon_rl_tests.evaluation.results import compared, invalid, nothing, result


def met(comparison) -> dict[str, str]:
    return {criterion.name: criterion.met for criterion in criteria(comparison)}


def varied(mean: float, count: int = 24, spread: float = 10.0) -> list[float]:
    return [mean + spread * ((index * 7) % 5 - 2) for index in range(count)]


def test_the_candidate_meets_the_reference_the_base_and_doing_nothing() -> None:
    comparison = compared(varied(100), varied(50), deployed=varied(80, spread=11), analyses=3)
    assert [contest.b for contest in comparison.pairs] == ["v1.0.0", "base", "nothing"]
    assert [contest.paired.difference.mean for contest in comparison.pairs] == pytest.approx([20, 50, 100], abs=1.5)
    assert comparison.pairs[0].paired.difference == comparison.row("v1.0.1").improvement
    for contest in comparison.pairs:
        assert contest.paired.p * 3 <= contest.adjusted_p <= contest.paired.p * 9
    assert comparison.row("base").improvement.mean == pytest.approx(-30, abs=1.5)


def test_a_rate_knows_which_orders_come_from_one_market() -> None:
    alike = [result(index, 1.0 + index, wins=5 + 2 * (index % 2), losses=7 - 2 * (index % 2)) for index in range(24)]
    apart = [result(index, 1.0 + index, wins=12 * (index % 2), losses=12 * (1 - index % 2)) for index in range(24)]
    one, other = compared(alike).row("v1.0.1").win_rate, compared(apart).row("v1.0.1").win_rate
    assert one.mean == other.mean == 0.5
    assert other.high - other.low > 3 * (one.high - one.low) / 2
    nothing = compared(alike).row("nothing")
    assert nothing.win_rate is None and nothing.accuracy is None


@pytest.mark.parametrize(("mean", "answer"), [(130, "yes"), (111, "unknown"), (80, "no")])
def test_ten_percent_more_is_asked_of_the_pnl(mean: float, answer: str) -> None:
    ours = [value + 4 * (-1) ** index for index, value in enumerate(varied(mean))]
    assert met(compared(ours, varied(100)))["10%+ better P&L"] == answer


def test_ten_percent_of_a_loss_is_less_of_it() -> None:
    assert met(compared(varied(-80), varied(-100)))["10%+ better P&L"] == "yes"
    assert met(compared(varied(-95), varied(-100)))["10%+ better P&L"] == "no"


def test_rates_answer_yes_no_or_unknown() -> None:
    good = [result(index, 5.0 + index, wins=9 + index % 2, losses=3 - index % 2, predictions_right=9 + index % 2) for index in range(24)]
    plain = [result(index, 5.0, wins=6 + index % 2, losses=6 - index % 2, predictions_right=6 + index % 2) for index in range(24)]
    better, worse, same = met(compared(good, plain)), met(compared(plain, good)), met(compared(plain, plain))
    assert (better["better win rate"], better["better timing"]) == ("yes", "yes")
    assert (worse["better win rate"], worse["better timing"]) == ("no", "no")
    assert (same["better win rate"], same["fewer errors"]) == ("no", "unknown")


def test_errors_are_unusable_answers_and_refused_orders() -> None:
    clean = [result(index, 5.0 + index) for index in range(24)]
    refused = [result(index, 5.0, trades=10, refused=2, wins=6, losses=4, predictions=10) for index in range(24)]
    unusable = [result(index, 5.0, **invalid(1 + index % 2)) for index in range(24)]
    assert met(compared(clean, refused))["fewer errors"] == met(compared(clean, unusable))["fewer errors"] == "yes"
    assert met(compared(refused, clean))["fewer errors"] == "no"
    words = next(criterion.words for criterion in criteria(compared(clean, refused)) if criterion.name == "fewer errors")
    assert "(0 errors against 48)" in words


def test_who_never_trades_has_no_rates_to_compare() -> None:
    idle = [result(i, 0.0, wins=0, losses=0, trades=0, predictions=0, predictions_right=0) for i in range(24)]
    found = met(compared(idle, varied(5)))
    assert (found["better win rate"], found["better timing"]) == ("unknown", "unknown")


def test_the_report_is_plain_json_and_a_page_with_every_comparison() -> None:
    comparison = compared(varied(100), varied(50), deployed=varied(80, spread=11), analyses=3)
    verdict = decide(comparison)
    rows = json.loads(json.dumps(rows_of(comparison, verdict), allow_nan=False))
    assert [contest["rival"] for contest in rows[0]["contests"]] == ["v1.0.0", "base", "nothing"]
    assert {check["name"] for check in rows[0]["checks"]} >= {"improvement", "no_collapse", "better_than_nothing"}
    assert [criterion["met"] for criterion in rows[0]["criteria"]] == ["yes", "no", "unknown", "no"]
    assert "contests" not in rows[1]
    page = markdown(comparison, verdict)
    assert "| v1.0.0 (the reference) | +2" in page and "| 10%+ better P&L | yes |" in page and "look at a growing benchmark 3 times" in page


def test_sharpe_and_drawdown_are_means_over_markets_and_their_curves_end_there() -> None:
    steps = [(4, -2, 6, -3, 5, 1, -7, 2, 3, 4, -1, 5), (-1, -2, 3, 3, -4, 5, 2, -6, 1, 2, 4, -3)]
    paths = [tuple(accumulate(float(step) for step in market)) for market in steps]
    row = compared([result(index, path[-1], equity_usd=path) for index, path in enumerate(paths)]).row("v1.0.1")
    ratios = [mean(market) / stdev(market) * len(market) ** 0.5 for market in steps]
    assert row.sharpe == pytest.approx(sum(ratios) / 2) and row.sharpe_path[-1] == pytest.approx(row.sharpe)
    assert row.max_drawdown_usd == (7 + 6) / 2 and row.drawdown_path[:3] == [0.0, 0.5, 2.5]
    assert row.sharpe_path[:4] == [None] * 4 and row.sharpe_path[4] is not None
    assert (row.document["sharpe"], row.document["maxDrawdown"]) == (row.sharpe, row.max_drawdown_usd)
    assert compared([result(index, path[-1], equity_usd=path) for index, path in enumerate(paths)]).row("nothing").sharpe is None


def test_names_beside_the_lines_of_the_picture_keepspaced() -> None:
    places = spaced([0.0, 0.0, 1.0, 50.0, 51.0, 200.0], 10.0)
    assert all(after - before >= 10.0 - 1e-9 for before, after in pairwise(places))
    assert places[-1] == 200.0 and sum(places[:3]) / 3 == pytest.approx(1 / 3) and sum(places[3:5]) / 2 == pytest.approx(50.5)


@pytest.mark.slow
def test_the_picture_is_a_png_with_and_without_a_candidate() -> None:
    comparison = compared(varied(100), varied(50), analyses=3)
    alone = compare({"nothing": ("strategy", nothing(3))}, None, None, ["Nobody is here."])
    for one in (comparison, alone):
        assert benchmark_png(one, decide(one)).startswith(b"\x89PNG")
