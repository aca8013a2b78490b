"""Tables of results have a name for every cell, each once."""

import pytest

from babylon_rl.evaluation import html_report, report
from babylon_rl.reporting.numbers import legend


@pytest.mark.parametrize(
    "made",
    [
        report.gate_columns("base"), report.gate_columns(None), report.leaderboard_columns("base"), report.contest_columns("base"),
        report.demo_columns("base"), report.AGENTS, report.PAIRS, report.NEEDED, html_report.RUNS, html_report.ACTIONS, report.CRITERIA,
        report.GENERATIONS,
    ],
)  # fmt: skip
def test_every_column_has_its_own_title(made):
    titles = [column.title for column in made]
    assert len(set(titles)) == len(titles) > 2


@pytest.mark.parametrize(
    "made", [report.gate_columns("base"), report.leaderboard_columns("base"), report.demo_columns("base"), report.AGENTS, report.PAIRS]
)
def test_tables_of_results_end_with_what_their_columns_mean(made):
    told = legend(made)
    for word in ("P&L", "win rate", "accuracy", "answers right", "Brier (crowd's)", "optimality", "p (Holm)", "against the reference"):
        assert all(f"{column.title}: " in told for column in made if column.title.startswith(word))
    assert told.count(": ") >= 5 and len(told) < 650


def test_accuracy_is_of_orders_and_answers_right_of_positions_in_questions():
    agents, runs = ({column.title for column in columns} for columns in (report.AGENTS, html_report.RUNS))
    assert "accuracy" not in agents | runs
    assert "answers right" in agents and "answers_right" in runs
    for made in (report.gate_columns("base"), report.leaderboard_columns("base"), report.demo_columns("base")):
        assert {column.title: column.meaning for column in made}["accuracy"] == "orders in the market's direction"


def test_without_a_reference_there_is_no_column_of_differences():
    with_one, without = ([column.title for column in report.gate_columns(name)] for name in ("base", None))
    assert [title for title in with_one if title not in without] == ["against the reference"]
