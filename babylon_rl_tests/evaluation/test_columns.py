"""Tables of results have a name for every cell, each once."""

import pytest

from babylon_rl.evaluation import report


@pytest.mark.parametrize(
    "made",
    [
        report.gate_columns("base"), report.gate_columns(None), report.leaderboard_columns("base"), report.contest_columns("base"),
        report.demo_columns("base"), report.AGENTS, report.PAIRS, report.NEEDED, report.RUNS, report.ACTIONS, report.CRITERIA,
        report.GENERATIONS,
    ],
)  # fmt: skip
def test_every_column_has_its_own_title(made):
    titles = [column.title for column in made]
    assert len(set(titles)) == len(titles) > 2


def test_without_a_reference_there_is_no_column_of_differences():
    with_one, without = ([column.title for column in report.gate_columns(name)] for name in ("base", None))
    assert [title for title in with_one if title not in without] == ["against the reference"]
